"""Two-phase gradients: against closed forms, the recordings of 2017, and laws."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from paysage_jax import rbm
from paysage_jax.extend import phase_gradient
from tests.helpers.problems import (
    GOLDEN,
    assert_trees_close,
    classic_optimizer,
    each_golden,
    golden,
    rbm_tree,
    row,
    step,
)

MODEL = rbm.RBM()

KEY = jax.random.key(0)
VISIBLE, HIDDEN = 4, 3
PARAMS = rbm_tree(VISIBLE, HIDDEN)

with_and_without_jit = pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "no jit"])


def states(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (rows, VISIBLE)).astype(np.float32)


def closed_form_of_one_phase(params, v):
    """The hand-written gradient of the mean free energy of a Bernoulli RBM, in float64."""
    c, W = (np.asarray(x, np.float64) for x in (params["layers"][1]["loc"], params["weights"][0]["matrix"]))
    v = np.asarray(v, np.float64)
    h = 1 / (1 + np.exp(-(v @ W + c)))
    return {"layers": [{"loc": -v.mean(0)}, {"loc": -h.mean(0)}], "weights": [{"matrix": -v.T @ h / len(v)}]}


def closed_form(params, v_data, v_model):
    phases = (closed_form_of_one_phase(params, v) for v in (v_data, v_model))
    return jax.tree.map(np.subtract, *phases)


# --- the gradient ------------------------------------------------------------------------------------

free_energy_gradient = jax.jit(phase_gradient(MODEL.energy))


@pytest.mark.parametrize(
    ("jit", "model_rows"),
    [
        (jax.jit, 3),
        (jax.jit, 11),
        (lambda f: f, 3),
        pytest.param(lambda f: f, 11, marks=pytest.mark.slow),
    ],
    ids=["jit-3", "jit-11", "no jit-3", "no jit-11"],
)
def test_gradient_is_the_hand_written_one_of_a_bernoulli_rbm(jit, model_rows):
    v_data, v_model = states(6), states(model_rows, seed=1)
    gradient = jit(phase_gradient(MODEL.energy))(PARAMS, v_data, v_model)
    assert_trees_close(gradient, closed_form(PARAMS, v_data, v_model))


def recorded_states(case):
    """v_data and v_model of every update, (steps, batch, units)."""
    packed = (GOLDEN["rbm_replay"][f"{case['id']}/{name}"] for name in ("v_data", "v_model"))
    return [np.unpackbits(v, axis=-1).astype(np.float32) for v in packed]


@each_golden("rbm_replay")
def test_gradient_is_the_recorded_one(case):
    v_data, v_model = recorded_states(case)
    params, recorded = (golden("rbm_replay", case["id"], name) for name in ("param", "grad_first2"))
    for t in (0, 1):
        gradient = free_energy_gradient(row(params, t), v_data[t], v_model[t])
        assert_trees_close(gradient, row(recorded, t), atol=1e-6)


@jax.jit
def replay(optimizer, params, v_data, v_model, epochs):
    """The parameters after every update."""

    def update(carry, xs):
        v_data, v_model, epoch = xs
        gradient = phase_gradient(MODEL.energy)(carry[1], v_data, v_model)
        _, *carry = step(optimizer, gradient, *carry, epoch=epoch)
        return carry, carry[1]

    return jax.lax.scan(update, [optimizer.init(params), params], (v_data, v_model, epochs))[1]


@each_golden("rbm_replay")
def test_a_training_lands_on_the_recorded_parameters(case):
    recorded = golden("rbm_replay", case["id"], "param")
    epochs = GOLDEN["rbm_replay"][f"{case['id']}/epoch"]
    params = replay(classic_optimizer(case), row(recorded, 0), *recorded_states(case), epochs)
    after = np.array(case["param_rows_after_step"][1:])
    assert_trees_close(row(params, after - 1), row(recorded, slice(1, None)), atol=1e-4)


@hypothesis.given(
    counts=st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any),
    scale=st.floats(0.01, 100),
)
def test_weights_are_repeated_rows(counts, scale):
    v_data, v_model = states(6), states(5, seed=1)
    gradient = free_energy_gradient(PARAMS, v_data, v_model, np.float32(scale) * np.array(counts, np.float32))
    assert_trees_close(gradient, closed_form(PARAMS, np.repeat(v_data, counts, axis=0), v_model))


def test_integer_weights():
    v_data, v_model = states(6), states(5, seed=1)
    counts = np.array([2, 0, 1, 0, 3, 1])
    gradient = free_energy_gradient(PARAMS, v_data, v_model, counts)
    assert_trees_close(gradient, closed_form(PARAMS, np.repeat(v_data, counts, axis=0), v_model))


def test_gradient_is_that_of_the_negative_log_likelihood():
    """All states, weighted by their probability, replace the model; in place of the data they change the sign."""
    every_state = ((np.arange(2**VISIBLE)[:, None] >> np.arange(VISIBLE)) & 1).astype(np.float32)
    v_data = states(6)

    def negative_log_likelihood(params):
        log_z = logsumexp(-MODEL.energy(params, every_state))
        return jnp.mean(MODEL.energy(params, v_data)) + log_z

    probabilities = jax.jit(lambda params: jax.nn.softmax(-MODEL.energy(params, every_state)))(PARAMS)
    gradient = free_energy_gradient(PARAMS, every_state, v_data, probabilities)
    expected = jax.jit(jax.grad(negative_log_likelihood))(PARAMS)
    assert_trees_close(jax.tree.map(np.negative, gradient), expected)


@hypothesis.given(seed=st.integers(0, 2**31), constant=st.floats(-100, 100))
def test_laws(seed, constant):
    """Swapping the phases changes the sign; equal states cancel; a constant in the energy has no effect."""
    a, b = states(5, seed), states(5, seed + 1)
    gradient = free_energy_gradient(PARAMS, a, b)
    assert_trees_close(jax.tree.map(np.negative, free_energy_gradient(PARAMS, b, a)), gradient)
    chex.assert_trees_all_equal(free_energy_gradient(PARAMS, a, a), jax.tree.map(np.zeros_like, PARAMS))
    assert_trees_close(shifted_gradient((PARAMS, np.float32(constant)), a, b)[0], gradient, atol=1e-5)


@jax.jit
def shifted_gradient(params, v_data, v_model):
    """The gradient of the free energy plus a parameter that is the same for all states."""

    def energy(params, v):
        params, constant = params
        return MODEL.energy(params, v) + constant[None]

    return phase_gradient(energy)(params, v_data, v_model)


def complete_energy(params, state):
    """The energy of complete states {"v": (batch, visible), "h": (batch, hidden)}."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    return -(state["v"] @ b) - state["h"] @ c - jnp.sum((state["v"] @ W) * state["h"], axis=1)


def closed_form_of_complete_states(data, model):
    def correlation(state):
        return state["v"].T @ state["h"] / len(state["v"])

    return {
        "layers": [{"loc": model[name].mean(0) - data[name].mean(0)} for name in ("v", "h")],
        "weights": [{"matrix": correlation(model) - correlation(data)}],
    }


def test_states_may_be_trees():
    rng = np.random.default_rng(0)
    data, model = ({"v": rng.random((n, VISIBLE)), "h": rng.random((n, HIDDEN))} for n in (6, 5))
    gradient = jax.jit(phase_gradient(complete_energy))(PARAMS, *jax.tree.map(np.float32, (data, model)))
    assert_trees_close(gradient, closed_form_of_complete_states(data, model))


def test_samples_are_not_differentiated():
    """If the samples are a function of the parameters, only the direct dependence of the energy counts."""

    def size(params, v_model):
        gradient = phase_gradient(MODEL.energy)(params, states(6), v_model)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    def sample(params):
        return states(5, seed=1) * params["layers"][0]["loc"][None]

    through = jax.jit(jax.grad(lambda params: size(params, sample(params))))(PARAMS)
    at_fixed = jax.jit(jax.grad(size))(PARAMS, sample(PARAMS))
    chex.assert_trees_all_close(through, at_fixed, rtol=1e-6)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(at_fixed)) > 1e-2


def test_dtype_of_the_gradient_is_that_of_the_parameters():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    v_data, v_model = (jnp.asarray(states(5, seed), jnp.bfloat16) for seed in (0, 1))
    gradient = free_energy_gradient(params, v_data, v_model)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)


def test_of_complex_parameters_it_is_the_direction_in_which_the_loss_rises_fastest():
    """E = |v·θ|² has the derivatives 2 Re(v·θ) v by the real part of θ and 2 Im(v·θ) v by the imaginary one."""
    theta = np.array([1 + 2j, -1j, 0.5, 2 - 1j], np.complex64)

    def energy(theta, v):
        return jnp.abs(v.astype(theta.dtype) @ theta) ** 2

    v_data, v_model = states(6), states(5, seed=1)
    expected = sum(sign * 2 * v.T @ (v @ theta) / len(v) for v, sign in ((v_data, 1), (v_model, -1)))
    np.testing.assert_allclose(phase_gradient(energy)(theta, v_data, v_model), expected, rtol=1e-5)


@pytest.mark.parametrize("phase", ["v_data", "v_model"])
def test_empty_phases_are_refused(phase):
    phases = {"v_data": states(6), "v_model": states(5)} | {phase: states(0)}
    for weights in (None, np.ones(len(phases["v_data"]))):
        with pytest.raises(ValueError, match=r"(v|v_data|v_model): expected states, got 0 rows"):
            free_energy_gradient(PARAMS, **phases, weights=weights)


@pytest.mark.parametrize(("dtype", "name"), [(jnp.int32, "int32"), (bool, "bool"), (jnp.complex64, "complex64")])
def test_energies_that_are_not_floating_are_refused(dtype, name):
    with pytest.raises(TypeError, match=rf"energy\(params, v\): expected a floating dtype, got {name}"):
        phase_gradient(lambda params, v: v[:, 0].astype(dtype))(PARAMS, states(6), states(5))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1, -1], "nonnegative numbers, got -1 in row 2"),
        ([0, 0, 0], "some positive weight, all are 0"),
        ([1, np.nan, 1], "nonnegative numbers, got nan in row 1"),
    ],
)
def test_numbers_that_cannot_be_weights_are_refused_where_they_are_known(weights, message):
    with pytest.raises(ValueError, match=f"weights: expected {message}"):
        phase_gradient(MODEL.energy)(PARAMS, states(3), states(5), np.array(weights))


@pytest.mark.parametrize(
    ("energy", "v_data", "weights", "message"),
    [
        (lambda p, v: jnp.sum(v), states(6), None, r"energy\(params, v\): expected shape \(6,\).*got \(\)"),
        (lambda p, v: v, states(6), None, r"energy\(params, v\): expected shape \(6,\).*got \(6, 4\)"),
        (lambda p, v: jnp.sum(v, 1)[1:], states(6), None, r"energy\(params, v\): expected shape \(6,\).*got \(5,\)"),
        (lambda p, v: jnp.sum(v, 1)[:, None], states(6), None, r"expected shape \(6,\).*got \(6, 1\)"),
        (lambda p, v: jnp.sum(v, 1), states(6), np.ones(5), r"weights: expected shape \(6,\).*got \(5,\)"),
        (lambda p, v: jnp.sum(v, 1), states(6), np.ones((6, 1)), r"weights: expected shape \(6,\).*got \(6, 1\)"),
        (lambda p, v: jnp.sum(v), np.float32(1), None, r"v_data: expected leaves with one common leading batch axis"),
        (lambda p, v: v["a"], {"a": np.ones(3), "b": np.ones(2)}, None, r"v_data\['a'\] \(3,\), v_data\['b'\] \(2,\)"),
        (lambda p, v: jnp.ones(3), {}, None, r"leading batch axis, got no leaves"),
    ],
)
def test_mistakes_are_named(energy, v_data, weights, message):
    with pytest.raises(ValueError, match=message):
        phase_gradient(energy)(PARAMS, v_data, v_data, weights)
