"""Two-phase gradients and their estimators: against closed forms, the recordings of 2017, and laws."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from problems import GOLDEN, each_golden, golden, rbm_tree, row, step
from test_convergence import classic_optimizer

from paysage_jax import (
    contrastive_divergence,
    loss_gradient,
    persistent_contrastive_divergence,
    phase_gradient,
    rbm,
)

KEY = jax.random.key(0)
VISIBLE, HIDDEN = 4, 3
PARAMS = rbm_tree(VISIBLE, HIDDEN)

with_and_without_jit = pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "no jit"])
each_estimator = pytest.mark.parametrize(
    "estimator", [contrastive_divergence, persistent_contrastive_divergence], ids=["cd", "pcd"]
)


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


def assert_trees_close(actual, expected, atol=1e-6):
    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=atol), actual, expected)


# --- the gradient ------------------------------------------------------------------------------------

free_energy_gradient = jax.jit(phase_gradient(rbm.free_energy))


@with_and_without_jit
@pytest.mark.parametrize("model_rows", [3, 11])
def test_gradient_is_the_hand_written_one_of_a_bernoulli_rbm(jit, model_rows):
    v_data, v_model = states(6), states(model_rows, seed=1)
    gradient = jit(phase_gradient(rbm.free_energy))(PARAMS, v_data, v_model)
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
        gradient = phase_gradient(rbm.free_energy)(carry[1], v_data, v_model)
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
    """All states, weighted by their probability, stand for the model; in the place of the data they change the sign."""
    every_state = ((np.arange(2**VISIBLE)[:, None] >> np.arange(VISIBLE)) & 1).astype(np.float32)
    v_data = states(6)

    def negative_log_likelihood(params):
        log_z = logsumexp(-rbm.free_energy(params, every_state))
        return jnp.mean(rbm.free_energy(params, v_data)) + log_z

    probabilities = jax.nn.softmax(-rbm.free_energy(PARAMS, every_state))
    gradient = free_energy_gradient(PARAMS, every_state, v_data, probabilities)
    expected = jax.jit(jax.grad(negative_log_likelihood))(PARAMS)
    assert_trees_close(jax.tree.map(jnp.negative, gradient), expected)


@hypothesis.given(seed=st.integers(0, 2**31), constant=st.floats(-100, 100))
def test_laws(seed, constant):
    """Phases swapped change the sign; the same states in both cancel; a constant in the energy has no part."""
    a, b = states(5, seed), states(5, seed + 1)
    gradient = free_energy_gradient(PARAMS, a, b)
    assert_trees_close(jax.tree.map(jnp.negative, free_energy_gradient(PARAMS, b, a)), gradient)
    chex.assert_trees_all_equal(free_energy_gradient(PARAMS, a, a), jax.tree.map(jnp.zeros_like, PARAMS))
    assert_trees_close(shifted_gradient((PARAMS, np.float32(constant)), a, b)[0], gradient, atol=1e-5)


@jax.jit
def shifted_gradient(params, v_data, v_model):
    """Of the free energy plus a parameter that is the same for all states."""

    def energy(params, v):
        params, constant = params
        return rbm.free_energy(params, v) + constant[None]

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
    """Where the samples are a function of the parameters, only the energy's own dependence counts."""

    def size(params, v_model):
        gradient = phase_gradient(rbm.free_energy)(params, states(6), v_model)
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


@pytest.mark.parametrize(
    ("energy", "v_data", "weights", "message"),
    [
        (lambda p, v: jnp.sum(v), states(6), None, r"energy\(params, v\): expected shape \(6,\).*got \(\)"),
        (lambda p, v: v, states(6), None, r"energy\(params, v\): expected shape \(6,\).*got \(6, 4\)"),
        (lambda p, v: jnp.sum(v, 1)[1:], states(6), None, r"energy\(params, v\): expected shape \(6,\).*got \(5,\)"),
        (lambda p, v: jnp.sum(v, 1)[:, None], states(6), None, r"expected shape \(6,\).*got \(6, 1\)"),
        (lambda p, v: jnp.sum(v, 1), states(6), np.ones(5), r"weights: expected shape \(6,\).*got \(5,\)"),
        (lambda p, v: jnp.sum(v, 1), states(6), np.ones((6, 1)), r"weights: expected shape \(6,\).*got \(6, 1\)"),
        (lambda p, v: jnp.sum(v), np.float32(1), None, r"v: expected leaves with one common leading batch axis"),
        (lambda p, v: v["a"], {"a": np.ones(3), "b": np.ones(2)}, None, r"v\['a'\] \(3,\), v\['b'\] \(2,\)"),
        (lambda p, v: jnp.ones(3), {}, None, r"leading batch axis, got no leaves"),
    ],
)
def test_mistakes_are_named(energy, v_data, weights, message):
    with pytest.raises(ValueError, match=message):
        phase_gradient(energy)(PARAMS, v_data, v_data, weights)


# --- estimators --------------------------------------------------------------------------------------


@jax.jit
def estimate(estimator, params, batch, estimator_state, key=KEY):
    return estimator.estimate(params, batch, estimator_state, key)


@jax.jit
def first_estimate(estimator, params, batch, key=KEY):
    return estimator.estimate(params, batch, estimator.init(params, batch, KEY), key)


def shift(params, v, key):
    """A transition without chance: in every state the units move on by one."""
    del params, key
    return jnp.roll(v, 1, axis=1)


def draw(params, v, key):
    """Every state moves on and gets a draw in front: it holds the draws of the last transitions."""
    del params
    return jnp.roll(v, 1, axis=1).at[:, 0].set(jax.random.uniform(key, (len(v),)))


@each_estimator
def test_a_pair_unpacks_and_reports_both_phases(estimator):
    init, estimate = estimator(rbm.free_energy, shift)
    batch = states(6)
    samples = np.roll(batch, 1, axis=1)
    gradient, _, statistics = jax.jit(estimate)(PARAMS, batch, init(PARAMS, batch, KEY), KEY)
    assert_trees_close(gradient, closed_form(PARAMS, batch, samples))
    for phase, v in (("data", batch), ("model", samples)):
        energies = np.asarray(rbm.free_energy(PARAMS, v), np.float64)
        np.testing.assert_allclose(getattr(statistics, f"{phase}_energy"), energies.mean(), rtol=1e-6)
        assert_trees_close(getattr(statistics, f"{phase}_gradient"), closed_form_of_one_phase(PARAMS, v))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_cd_k_makes_k_transitions_from_the_batch(steps):
    estimator = contrastive_divergence(rbm.free_energy, shift, steps=steps)
    batch = states(6)
    estimator_state = estimator.init(PARAMS, batch, KEY)
    for _ in range(2):  # the second call starts from the batch again
        gradient, estimator_state, _ = estimate(estimator, PARAMS, batch, estimator_state)
        assert_trees_close(gradient, closed_form(PARAMS, batch, np.roll(batch, steps, axis=1)))


def test_pcd_k_is_k_calls_of_pcd_1():
    batch = states(6)

    def run(estimator, calls):
        chains = estimator.init(PARAMS, batch, KEY)
        for _ in range(calls):
            gradient, chains, _ = estimate(estimator, PARAMS, batch, chains)
        return gradient, chains

    at_once = run(persistent_contrastive_divergence(rbm.free_energy, shift, steps=3), calls=1)
    in_turn = run(persistent_contrastive_divergence(rbm.free_energy, shift), calls=3)
    chex.assert_trees_all_equal(at_once, in_turn)
    np.testing.assert_array_equal(at_once[1], np.roll(batch, 3, axis=1))


@each_estimator
def test_every_transition_has_a_key_of_its_own(estimator):
    """What a transition draws is in the states, whose mean is minus the gradient of the energy -v·b."""

    def energy(b, v):
        return -(v @ b)

    def draws(key):
        b, batch = np.zeros(VISIBLE, np.float32), np.zeros((1, VISIBLE), np.float32)
        statistics = first_estimate(estimator(energy, draw, steps=VISIBLE), b, batch, key)[2]
        return -statistics.model_gradient

    first, again, other = (draws(jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == again
    assert len({*first, *other}) == 2 * VISIBLE


@pytest.mark.parametrize("chains", [None, 2, 6, 14])
def test_chains_start_from_the_first_batch_and_go_on(chains):
    """Fewer or more of them than the batch has states; batches may differ in size."""
    estimator = persistent_contrastive_divergence(rbm.free_energy, shift, chains=chains)
    first = states(6)
    expected = first[np.arange(chains or 6) % 6]
    state = estimator.init(PARAMS, first, KEY)
    np.testing.assert_array_equal(state, expected)
    for batch in (first, states(6, seed=1), states(2, seed=2)):
        expected = np.roll(expected, 1, axis=1)
        gradient, state, _ = estimate(estimator, PARAMS, batch, state)
        np.testing.assert_array_equal(state, expected)
        assert_trees_close(gradient, closed_form(PARAMS, batch, expected))


@each_estimator
def test_states_of_an_estimator_may_be_trees(estimator):
    def transition(params, state, key):
        return {"v": state["v"][::-1], "h": 1 - state["h"]}

    batch = {"v": states(5), "h": states(5, seed=1)[:, :HIDDEN]}
    gradient, _, _ = first_estimate(estimator(complete_energy, transition), PARAMS, batch)
    assert_trees_close(gradient, closed_form_of_complete_states(batch, transition(PARAMS, batch, KEY)))


@each_estimator
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_whole_numbers_as_data_and_floats_as_chains(estimator, dtype):
    def energy(params, v):
        return rbm.free_energy(params, v.astype(float))

    def halve(params, v, key):
        return v.astype(float) / 2

    gradient, chains, _ = first_estimate(estimator(energy, halve, steps=2), PARAMS, states(6).astype(dtype))
    assert_trees_close(gradient, closed_form(PARAMS, states(6), states(6) / 4))
    if estimator is persistent_contrastive_divergence:
        np.testing.assert_array_equal(chains, states(6) / 4)


@each_estimator
def test_steps_of_an_estimator_are_not_differentiated(estimator):
    """The chains depend on the parameters, through a transition that is smooth; only the energy's dependence counts."""

    def smooth(params, v, key):
        return rbm.visible_mean(params, rbm.hidden_mean(params, v))

    batch = states(6)
    gradient, _, _ = first_estimate(estimator(rbm.free_energy, smooth, steps=2), PARAMS, batch)
    samples = smooth(PARAMS, smooth(PARAMS, batch, KEY), KEY)
    assert_trees_close(gradient, closed_form(PARAMS, batch, samples))


@each_estimator
def test_equal_estimators_are_traced_once(estimator):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(pair, batch):
        return pair.estimate(PARAMS, batch, pair.init(PARAMS, batch, KEY), KEY)[0]

    for seed in (0, 1):
        traced_once(estimator(rbm.free_energy, shift), states(6, seed))
    assert estimator(rbm.free_energy, shift) == estimator(rbm.free_energy, shift)
    assert estimator(rbm.free_energy, shift) != estimator(rbm.free_energy, shift, steps=2)


@each_estimator
def test_a_transition_that_changes_the_shape_is_an_error(estimator):
    pair = estimator(rbm.free_energy, lambda params, v, key: v[:, 1:])
    with pytest.raises(
        ValueError, match=r"transition\(params, v, key\).*expected shape \(6, 4\) as in v, got \(6, 3\)"
    ):
        pair.estimate(PARAMS, states(6), pair.init(PARAMS, states(6), KEY), KEY)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: contrastive_divergence(None, None, steps=0), ValueError, "steps must be a whole number"),
        (lambda: contrastive_divergence(None, None, steps=1.5), TypeError, "steps must be a whole number"),
        (
            lambda: persistent_contrastive_divergence(None, None, steps=0),
            ValueError,
            "steps must be a whole number",
        ),
        (
            lambda: persistent_contrastive_divergence(None, None, chains=0),
            ValueError,
            "chains must be a whole number",
        ),
        (lambda: persistent_contrastive_divergence(None, None, chains=2.0), TypeError, "chains must be a whole number"),
    ],
)
def test_wrong_numbers_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- an ordinary loss --------------------------------------------------------------------------------


def squares(params, batch):
    return jnp.mean((batch @ params - 1) ** 2)


@with_and_without_jit
def test_gradient_of_a_loss(jit):
    params, batch = jnp.arange(4.0), states(6)
    init, estimate = loss_gradient(squares)
    gradient, state, statistics = jit(estimate)(params, batch, init(params, batch, KEY), KEY)
    residuals = batch.astype(np.float64) @ np.arange(4.0) - 1
    np.testing.assert_allclose(gradient, 2 * batch.T @ residuals / 6, rtol=1e-6)
    np.testing.assert_allclose(statistics.loss, np.mean(residuals**2), rtol=1e-6)
    assert state == ()


def noisy(params, batch, key):
    return squares(params + jax.random.normal(key, params.shape), batch)


def noisy_by_keyword(params, batch, *, key):
    return noisy(params, batch, key)


def noisy_among_others(params, batch, **extra):
    return noisy(params, batch, extra["key"])


@pytest.mark.parametrize("loss", [noisy, noisy_by_keyword, noisy_among_others, jax.jit(noisy)])
def test_a_loss_may_take_the_key(loss):
    params, batch = jnp.arange(4.0), states(6)
    for key in (KEY, jax.random.key(1)):
        gradient, _, _ = estimate(loss_gradient(loss), params, batch, (), key)
        chex.assert_trees_all_close(gradient, gradient_of_noisy(params, batch, key), rtol=1e-6)


gradient_of_noisy = jax.jit(jax.grad(noisy))


def test_a_loss_that_is_not_a_scalar_is_an_error():
    with pytest.raises(TypeError, match="scalar"):
        loss_gradient(lambda params, batch: batch @ params).estimate(jnp.ones(4), states(6), (), KEY)
