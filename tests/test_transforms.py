"""The small transforms: against optax, closed forms and float64 loops, and by the laws they promise."""

from functools import partial

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import OPTIMIZERS, assert_runs_close, each, gradients, rbm_tree, row, run, step

from paysage_jax import (
    Join,
    PhaseStatistics,
    adam,
    add_decayed_weights,
    add_l1_decay,
    apply_updates,
    average_parameters,
    averaged_parameters,
    center,
    chain,
    clip_by_global_norm,
    contrastive_divergence,
    converged,
    freeze,
    loss_gradient,
    non_negative,
    project,
    sgd,
    skip_nonfinite,
    track_convergence,
    unit_column_norm,
)

PARAMS = rbm_tree()
KEY = jax.random.key(0)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def is_weight(path):
    return path.startswith("weights/")


def is_hidden_bias(path):
    return path == "layers/1/loc"


@jax.jit
def update(optimizer, updates, state, params):
    return optimizer.update(updates, state, params)


def states_after(optimizer, steps, params=PARAMS):
    """(state, params) after some ordinary steps."""
    state, g = optimizer.init(params), gradients(params, steps)
    for t in range(steps):
        updates, state = update(optimizer, row(g, t), state, params)
        params = apply_updates(params, updates)
    return state, params


@jax.jit
def first_update(optimizer, updates, params):
    return optimizer.update(updates, optimizer.init(params), params)[0]


def scaled(tree, factor):
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def assert_trees_close(actual, expected, atol=1e-6):
    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=atol), actual, expected)


def zero_gradients(steps):
    return jax.tree.map(lambda p: jnp.zeros((steps, *p.shape)), PARAMS)


# --- clip, weight decay ------------------------------------------------------------------------------


@hypothesis.given(max_norm=st.floats(1e-3, 1e3), ratio=st.floats(1e-6, 1e6))
@hypothesis.example(max_norm=2.0, ratio=0.9)
@hypothesis.example(max_norm=2.0, ratio=1.1)
def test_clip_is_that_of_optax(max_norm, ratio):
    """For a gradient whose norm is that many times max_norm."""
    g = scaled(PARAMS, ratio * max_norm / norm64(PARAMS))
    expected = optax_clip(np.float32(max_norm), g)
    clipped = first_update(clip_by_global_norm(max_norm), g, PARAMS)
    chex.assert_trees_all_close(clipped, expected, rtol=1e-5)


@jax.jit
def optax_clip(max_norm, g):
    return optax.clip_by_global_norm(max_norm).update(g, optax.EmptyState())[0]


def norm64(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


@hypothesis.given(exponent=st.integers(-35, 37), max_norm=st.floats(1e-3, 1e3))
def test_a_clipped_norm_is_at_most_max_norm_however_large_the_gradient(exponent, max_norm):
    g = scaled(PARAMS, 10.0**exponent)
    clipped = first_update(clip_by_global_norm(max_norm), g, PARAMS)
    np.testing.assert_allclose(norm64(clipped), min(norm64(g), max_norm), rtol=1e-5)


def test_clip_lets_nan_through():
    g = PARAMS | {"weights": [{"matrix": PARAMS["weights"][0]["matrix"].at[0, 0].set(np.nan)}]}
    chex.assert_trees_all_equal(first_update(clip_by_global_norm(0.1), g, PARAMS), g)


@pytest.mark.parametrize("where", [None, is_weight])
def test_add_decayed_weights_is_that_of_optax(where):
    mask = {"layers": [{"loc": where is None}] * 2, "weights": [{"matrix": True}]}
    g = row(gradients(PARAMS, 1), 0)
    expected, _ = optax.add_decayed_weights(0.3, mask=mask).update(
        g, optax.add_decayed_weights(0.3, mask=mask).init(PARAMS), PARAMS
    )
    chex.assert_trees_all_close(first_update(add_decayed_weights(0.3, where), g, PARAMS), expected, rtol=1e-6)


def test_weights_decay_geometrically():
    """Without a gradient, p is multiplied by 1 - learning_rate weight_decay at every step."""
    _, _, params = run(chain(add_decayed_weights(0.5, is_weight), sgd(0.1)), PARAMS, zero_gradients(20))
    chex.assert_trees_all_equal(params["layers"], PARAMS["layers"])
    expected = 0.95**20 * np.asarray(PARAMS["weights"][0]["matrix"], np.float64)
    np.testing.assert_allclose(params["weights"][0]["matrix"], expected, rtol=1e-5)


def test_l1_decay_is_a_constant_pull_to_zero():
    """Without a gradient, |p| falls by learning_rate l1_decay at every step."""
    _, _, params = run(chain(add_l1_decay(0.05, is_weight), sgd(0.1)), PARAMS, zero_gradients(3))
    chex.assert_trees_all_equal(params["layers"], PARAMS["layers"])
    W = np.asarray(PARAMS["weights"][0]["matrix"], np.float64)
    assert np.abs(W).min() > 0.015
    np.testing.assert_allclose(params["weights"][0]["matrix"], W - 0.015 * np.sign(W), rtol=1e-5)


def test_l1_decay_leaves_zeros_at_zero():
    chex.assert_trees_all_equal(first_update(add_l1_decay(0.1), ZEROS, ZEROS), ZEROS)


def test_new_hyperparameters_do_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(optimizer):
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)[0]

    for x in (0.1, 0.2):
        average = average_parameters(x)
        traced_once(chain(clip_by_global_norm(x), add_decayed_weights(x, is_weight), add_l1_decay(x), sgd(x), average))


# --- project -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@each({"sgd": sgd(0.5), "adam": adam(0.5), "optax": optax.sgd(0.5)})
def test_projected_parameters_are_never_negative(optimizer, dtype):
    params = jax.tree.map(lambda p: jnp.abs(p).astype(dtype), PARAMS)
    g = jax.tree.map(lambda g: g.astype(dtype), gradients(PARAMS, 30, decades=(-2, 1)))
    updates, _, _ = run(chain(optimizer, project(non_negative)), params, g)
    zeros = 0
    for t in range(30):
        params = apply_updates(params, row(updates, t))
        assert all(jnp.all(p >= 0) for p in jax.tree.leaves(params))
        zeros += sum(int(jnp.sum(p == 0)) for p in jax.tree.leaves(params))
    assert zeros  # some of them would have been


@pytest.mark.parametrize("gradient_dtype", [jnp.float32, jnp.bfloat16])
def test_a_projected_zero_is_zero_whatever_the_dtype_of_the_gradient(gradient_dtype):
    """optax's sgd makes updates in the gradient's dtype, which may be coarser than the parameters'."""
    params = jax.tree.map(lambda p: jnp.abs(p) + 0.1, PARAMS)
    g = jax.tree.map(lambda p: jnp.full(p.shape, 10, gradient_dtype), PARAMS)
    optimizer = chain(optax.sgd(1.0), project(non_negative))
    chex.assert_trees_all_equal(apply_updates(params, first_update(optimizer, g, params)), ZEROS)


def test_columns_have_unit_norm_after_every_update():
    updates, _, _ = run(chain(sgd(0.5), project(unit_column_norm)), PARAMS, gradients(PARAMS, 30, decades=(-2, 1)))
    params, plain = PARAMS, PARAMS
    for t in range(30):
        params = apply_updates(params, row(updates, t))
        W = np.asarray(params["weights"][0]["matrix"], np.float64)
        np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, atol=1e-6)
        plain = apply_updates(plain, row(updates, t))
    chex.assert_trees_all_equal(params["layers"], plain["layers"])


def test_skip_nonfinite_takes_an_optimizer_whose_state_changes_its_dtype():
    """optax's moments start in the dtype of the parameters and go on in that of the gradients."""
    params, optimizer = jnp.ones(2, jnp.bfloat16), skip_nonfinite(optax.adam(0.1))
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for g in (jnp.array([jnp.nan, 1.0]), jnp.ones(2)):
            updates, state = optimizer.update(g, state, params)
    assert state.skipped == 1
    chex.assert_trees_all_close(updates.astype(float), jnp.full(2, -0.1), rtol=1e-2)


def test_unit_column_norm():
    W = np.array([[3, 0, 1e-30, 1e30], [4, 0, 0, 1e30]], np.float32)
    scaled = unit_column_norm({"bias": jnp.arange(3.0), "matrix": jnp.asarray(W)})
    np.testing.assert_array_equal(scaled["bias"], np.arange(3.0))
    root = 0.5**0.5
    np.testing.assert_allclose(scaled["matrix"], [[0.6, 0, 1, root], [0.8, 0, 0, root]], rtol=1e-6)
    assert unit_column_norm(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.bfloat16


def test_projections_of_optax():
    def in_ball(params):
        return optax.projections.projection_l2_ball(params, 0.5)

    g = scaled(PARAMS, 2.0)
    for projection in (optax.projections.projection_non_negative, in_ball):
        updates = first_update(chain(sgd(0.1), project(projection)), g, PARAMS)
        expected = projection(jax.tree.map(lambda p: p - 0.2 * p, PARAMS))
        chex.assert_trees_all_close(apply_updates(PARAMS, updates), expected, atol=1e-6)


def test_project_only_where_selected():
    updates = first_update(chain(sgd(1.0), project(non_negative, is_weight)), scaled(PARAMS, 2), PARAMS)
    params = apply_updates(PARAMS, updates)  # -p without the projection
    chex.assert_trees_all_close(params["layers"], scaled(PARAMS["layers"], -1), rtol=1e-6)
    np.testing.assert_allclose(
        params["weights"][0]["matrix"], np.maximum(-PARAMS["weights"][0]["matrix"], 0), rtol=1e-6
    )


# --- average -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
@each({"chain": lambda a: chain(adam(0.01), a), "skip": lambda a: skip_nonfinite(chain(chain(adam(0.01), a)))})
def test_average_is_that_of_a_float64_loop(optimizer, decay):
    steps = 40
    updates, state, _ = run(optimizer(average_parameters(decay)), PARAMS, gradients(PARAMS, steps))
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
    total, weights = jax.tree.map(np.zeros_like, params), 0.0
    for t in range(steps):
        params = jax.tree.map(lambda p, u, t=t: p + np.asarray(u[t], np.float64), params, updates)
        total = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, total, params)
        weights = decay * weights + (1 - decay)
    average = averaged_parameters(state)
    assert_runs_close(average, jax.tree.map(lambda a: a / weights, total), 1e-5)


def test_average_does_not_change_the_updates():
    g = gradients(PARAMS, 5)
    averaged, _, _ = run(chain(adam(0.01), average_parameters(0.9)), PARAMS, g)
    plain, _, _ = run(adam(0.01), PARAMS, g)
    chex.assert_trees_all_equal(averaged, plain)


def test_average_of_bfloat16_is_kept_in_float32():
    """The mean of 1 and 1 + 2⁻⁷ lies between two bfloat16 numbers."""
    params = jnp.ones(2, jnp.bfloat16)
    optimizer = average_parameters(0.5)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.zeros(2, jnp.bfloat16), state, params)
    _, state = optimizer.update(jnp.full(2, 2.0**-7, jnp.bfloat16), state, params)
    average = averaged_parameters(state)
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 1 + 2.0**-7 * 2 / 3, rtol=1e-6)


def test_average_before_any_update_is_zero():
    chex.assert_trees_all_equal(averaged_parameters(average_parameters().init(PARAMS)), ZEROS)


@pytest.mark.parametrize("members", [0, 2])
def test_average_that_is_not_there_or_twice_is_an_error(members):
    state = chain(sgd(0.1), *[average_parameters()] * members).init(PARAMS)
    with pytest.raises(ValueError, match=f"expected one average_parameters in the state, found {members}"):
        averaged_parameters(state)


# --- skip_nonfinite ----------------------------------------------------------------------------------

WITH_OPTAX = OPTIMIZERS | {"optax": optax.sgd(0.01, momentum=0.9)}


def poisoned(g, value):
    """g with one element of the weights replaced."""
    return g | {"weights": [{"matrix": g["weights"][0]["matrix"].at[1, 2].set(value)}]}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@each(WITH_OPTAX)
def test_a_nonfinite_gradient_changes_nothing_and_is_counted(optimizer, value):
    skip = skip_nonfinite(optimizer)
    state, params = states_after(skip, 2)
    updates, after = update(skip, poisoned(PARAMS, value), state, params)
    chex.assert_trees_all_equal(updates, ZEROS)
    chex.assert_trees_all_equal(after.inner, state.inner)
    assert (int(state.skipped), int(after.skipped)) == (0, 1)


def test_a_hundred_in_a_row_are_never_accepted():
    skip = skip_nonfinite(adam(0.01))
    bad = jax.tree.map(lambda p: jnp.full((100, *p.shape), np.nan), PARAMS)
    updates, state, params = run(skip, PARAMS, bad)
    assert all(jnp.all(u == 0) for u in jax.tree.leaves(updates))
    chex.assert_trees_all_equal(params, PARAMS)
    chex.assert_trees_all_equal(state.inner, adam(0.01).init(PARAMS))
    assert int(state.skipped) == 100


@hypothesis.given(bad=st.lists(st.sampled_from([0.0, np.nan, np.inf]), min_size=8, max_size=8))
def test_a_run_is_that_on_the_finite_gradients_alone(bad):
    g = gradients(PARAMS, 8)
    optimizer = adam(0.01)
    skip, state, params = skip_nonfinite(optimizer), optimizer.init(PARAMS), PARAMS
    for t in range(8):
        if bad[t] == 0:
            updates, state = update(optimizer, row(g, t), state, params)
            params = apply_updates(params, updates)
    with_bad = g | {"weights": [{"matrix": g["weights"][0]["matrix"] + np.float32(bad)[:, None, None]}]}
    _, skip_state, skip_params = run(skip, PARAMS, with_bad)
    assert int(skip_state.skipped) == 8 - bad.count(0)
    assert int(skip_state.inner.step) == bad.count(0)
    chex.assert_trees_all_close((skip_state.inner, skip_params), (state, params), rtol=1e-6)


def test_a_skipped_update_does_not_count_for_convergence():
    optimizer = skip_nonfinite(chain(sgd(0.1), track_convergence(1e-3)))
    _, state = update(optimizer, poisoned(PARAMS, np.nan), optimizer.init(PARAMS), PARAMS)
    assert not converged(state)


# --- freeze ------------------------------------------------------------------------------------------


@each(WITH_OPTAX)
def test_frozen_leaves_get_zeros_and_the_others_what_they_would_alone(optimizer):
    frozen, optimizer = freeze(optimizer, is_weight), chain(optimizer)
    (state, params), (state_alone, params_alone) = states_after(frozen, 2), states_after(optimizer, 2, PARAMS["layers"])
    chex.assert_trees_all_equal(params, {"layers": params_alone, "weights": PARAMS["weights"]})
    updates, _ = update(frozen, PARAMS, state, params)
    alone, _ = update(optimizer, PARAMS["layers"], state_alone, params_alone)
    chex.assert_trees_all_equal(updates, {"layers": alone, "weights": ZEROS["weights"]})


@each({"ours": adam(0.01), "optax": optax.adam(0.01)})
def test_frozen_leaves_have_no_moments(optimizer):
    state = freeze(optimizer, is_weight).init(PARAMS)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert shapes == {(), *(layer["loc"].shape for layer in PARAMS["layers"])}


def test_a_frozen_gradient_may_be_nan():
    updates = first_update(freeze(sgd(0.1), is_weight), poisoned(PARAMS, np.nan), PARAMS)
    chex.assert_trees_all_equal(updates["weights"], ZEROS["weights"])
    chex.assert_trees_all_close(updates["layers"], scaled(PARAMS["layers"], -0.1), rtol=1e-6)


def test_frozen_zeros_are_of_the_parameters_dtype_and_trees_may_have_holes():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": None, "c": [jnp.ones(3)]}
    optimizer = freeze(adam(0.1), lambda path: path == "a")
    updates, state = optimizer.update(params, optimizer.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert state.mean["a"] is None


def test_all_may_be_frozen():
    chex.assert_trees_all_equal(first_update(freeze(adam(0.1), lambda path: True), PARAMS, PARAMS), ZEROS)


# --- center ------------------------------------------------------------------------------------------

JOINS = {2: [(0, 1)], 3: [(0, 1), (1, 2)], 4: [(0, 1), (1, 2), (2, 3)], "skip connection": [(0, 1), (1, 2), (0, 2)]}
SIZES = [5, 4, 3, 2]


def machine(joins, seed=0):
    """A Boltzmann machine of layers joined so: its parameters, and the explicit specification for `center`."""
    rng = np.random.default_rng(seed)
    layers = 1 + max(max(join) for join in joins)
    params = {
        "layers": [{"loc": rng.normal(size=n)} for n in SIZES[:layers]],
        "weights": [{"matrix": rng.normal(size=(SIZES[i], SIZES[j]))} for i, j in joins],
    }
    names = [(f"weights/{k}/matrix", f"layers/{i}/loc", f"layers/{j}/loc") for k, (i, j) in enumerate(joins)]
    return jax.tree.map(jnp.float32, params), names


def energy_of(joins):
    def energy(params, state):
        biases = sum(x @ layer["loc"] for x, layer in zip(state, params["layers"], strict=True))
        pairs = zip(joins, params["weights"], strict=True)
        return -biases - sum(jnp.sum((state[i] @ w["matrix"]) * state[j], axis=1) for (i, j), w in pairs)

    return energy


def draw_states(layers, rows, seed, mean=0.5):
    rng = np.random.default_rng(seed)
    return [(rng.random((rows, n)) < mean).astype(np.float32) for n in SIZES[:layers]]


def centred(joins, data, model, offsets):
    """Melchior, Fischer & Wiskott, from the states themselves, in float64: covariances round the offsets."""
    data, model = ([x.astype(np.float64) for x in states] for states in (data, model))

    def covariance(states, i, j):
        return (states[i] - offsets[i]).T @ (states[j] - offsets[j]) / len(states[i])

    W = [covariance(model, i, j) - covariance(data, i, j) for i, j in joins]
    b = [m.mean(0) - d.mean(0) for d, m in zip(data, model, strict=True)]
    for (i, j), dW in zip(joins, W, strict=True):
        b[i] = b[i] - dW @ offsets[j]
        b[j] = b[j] - dW.T @ offsets[i]
    return {"layers": [{"loc": x} for x in b], "weights": [{"matrix": x} for x in W]}


@pytest.mark.parametrize("enhanced", [False, True], ids=["centred", "enhanced"])
@pytest.mark.parametrize("kind", JOINS)
def test_center_is_the_centred_gradient_of_the_paper(kind, enhanced):
    """Over three steps of an estimator, with offsets that are running means of the activations."""
    joins, decay = JOINS[kind], 0.7

    def mean_of_two(data, model):
        return (data + model) / 2

    def running_mean(offset, activation):
        return decay * offset + (1 - decay) * activation

    params, names = machine(joins)
    optimizer = center(decay, enhanced, names if kind == "skip connection" else None)
    layers = len(params["layers"])

    @jax.jit
    def estimate_and_center(data, model, state):
        estimator = contrastive_divergence(energy_of(joins), lambda params, v, key: model)
        gradient, _, statistics = estimator.estimate(params, data, (), KEY)
        return optimizer.update(gradient, state, params, statistics=statistics)

    state, offsets = optimizer.init(params), None
    for t in range(3):
        data, model = draw_states(layers, 6, seed=t, mean=0.8), draw_states(layers, 6, seed=10 + t, mean=0.4)
        activations = [x.mean(0) for x in (jax.tree.map(mean_of_two, data, model) if enhanced else data)]
        offsets = activations if t == 0 else jax.tree.map(running_mean, offsets, activations)
        updates, state = estimate_and_center(data, model, state)
        assert_trees_close(updates, centred(joins, data, model, offsets))
    assert_trees_close(state.offsets, {f"layers/{i}/loc": offset for i, offset in enumerate(offsets)})
    assert int(state.step) == 3


def test_the_enhanced_gradient_is_a_difference_of_covariances():
    """Cho, Raiko & Ilin (2013): dW = Cov_data - Cov_model, each round its own mean, less the biases' part."""
    params, _ = machine(JOINS[2])
    (v, h), (v_model, h_model) = draw_states(2, 6, seed=0, mean=0.8), draw_states(2, 6, seed=1, mean=0.3)
    statistics = statistics_of(params, [v, h], [v_model, h_model])
    optimizer = center(0.0, enhanced=True)
    updates, _ = optimizer.update(gradient_of(statistics), optimizer.init(params), params, statistics=statistics)

    def covariance(v, h):
        return v.T @ h / len(v) - np.outer(v.mean(0), h.mean(0))

    dW = covariance(v_model, h_model) - covariance(v, h)
    db = v_model.mean(0) - v.mean(0) - dW @ (h.mean(0) + h_model.mean(0)) / 2
    dc = h_model.mean(0) - h.mean(0) - dW.T @ (v.mean(0) + v_model.mean(0)) / 2
    assert_trees_close(updates, {"layers": [{"loc": db}, {"loc": dc}], "weights": [{"matrix": dW}]})


pair_energy = energy_of(JOINS[2])


@partial(jax.jit, static_argnames="energy")
def statistics_of(params, data, model, energy=pair_energy):
    """Both phases, straight from autodiff."""
    (data_energy, data_gradient), (model_energy, model_gradient) = (
        jax.value_and_grad(lambda params, v=v: jnp.mean(energy(params, v)))(params) for v in (data, model)
    )
    return PhaseStatistics(data_energy, model_energy, data_gradient, model_gradient)


def gradient_of(statistics):
    return jax.tree.map(jnp.subtract, statistics.data_gradient, statistics.model_gradient)


def free_energy(params, v, mu=0.0, lam=0.0):
    """-log Σ_h exp(-E) by counting all h, with E = -(v-μ)·b - (h-λ)·c - (v-μ)·W(h-λ)."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    h = ((np.arange(2 ** len(c))[:, None] >> np.arange(len(c))) & 1).astype(np.float32) - lam
    v = v - mu
    minus_energies = (v @ b)[:, None] + (h @ c)[None, :] + v @ W @ h.T
    return -jax.scipy.special.logsumexp(minus_energies, axis=1)


@hypothesis.given(seed=st.integers(0, 1000))
def test_a_centred_step_is_a_plain_step_of_the_reparametrised_machine(seed):
    """E = -(v-μ)·b - (h-λ)·c - (v-μ)·W(h-λ): a plain step in its parameters, mapped back, is the centred step."""
    params, _ = machine(JOINS[2], seed)
    v_data, v_model = (draw_states(1, 6, seed + 1, 0.8)[0], draw_states(1, 6, seed + 2, 0.3)[0])
    expected, actual = both_steps(params, v_data, v_model)
    assert_trees_close(actual, expected, atol=5e-6)


@jax.jit
def both_steps(params, v_data, v_model):
    statistics = statistics_of(params, v_data, v_model, free_energy)
    mu, lam = (-layer["loc"] for layer in statistics.data_gradient["layers"])

    def shifted(params, sign):
        """To the parameters of the reparametrised machine (+1), and back (-1)."""
        (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
        return {
            "layers": [{"loc": b + sign * (W @ lam)}, {"loc": c + sign * (W.T @ mu)}],
            "weights": params["weights"],
        }

    def reparametrised_energy(params, v):
        return free_energy(params, v, mu[None], lam[None])

    reparametrised = shifted(params, 1.0)
    plain = gradient_of(statistics_of(reparametrised, v_data, v_model, reparametrised_energy))
    expected = shifted(jax.tree.map(lambda p, g: p - 0.3 * g, reparametrised, plain), -1.0)

    optimizer = chain(center(), sgd(0.3))
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradient_of(statistics), state, params, statistics=statistics)
    return expected, apply_updates(params, updates)


def flip_visible(params):
    """The same machine for visible units 1 - v."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    return {"layers": [{"loc": -b}, {"loc": c + jnp.sum(W, 0)}], "weights": [{"matrix": -W}]}


def flip_hidden(params):
    """The same machine for hidden units 1 - h."""
    (b, c), W = (layer["loc"] for layer in params["layers"]), params["weights"][0]["matrix"]
    return {"layers": [{"loc": b + jnp.sum(W, 1)}, {"loc": -c}], "weights": [{"matrix": -W}]}


@jax.jit
def train_on(optimizer, params, data, model):
    """The parameters after a step on each of the pairs of complete states."""

    def train(carry, pair):
        state, params = carry
        statistics = statistics_of(params, *pair)
        return step(optimizer, gradient_of(statistics), state, params, statistics=statistics)[1:], None

    return jax.lax.scan(train, (optimizer.init(params), params), (data, model))[0][1]


@pytest.mark.parametrize("enhanced", [False, True], ids=["centred", "enhanced"])
@pytest.mark.parametrize(("flip", "layer"), [(flip_visible, 0), (flip_hidden, 1)], ids=["visible", "hidden"])
def test_a_flip_of_the_data_mirrors_a_centred_training(flip, layer, enhanced):
    """Trained on 1 - v from the flipped parameters, a centred machine stays the flipped one: that is why digits and

    inverted digits train alike. The plain gradient does not have this symmetry.
    """
    params, _ = machine(JOINS[2])
    data, model = (
        [np.stack(x) for x in zip(*(draw_states(2, 6, seed + t, mean) for t in range(10)), strict=True)]
        for seed, mean in ((0, 0.8), (10, 0.4))
    )
    flipped_data, flipped_model = ([1 - x if i == layer else x for i, x in enumerate(v)] for v in (data, model))

    def distance(optimizer):
        trained = flip(train_on(optimizer, params, data, model))
        mirrored = train_on(optimizer, flip(params), flipped_data, flipped_model)
        differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), trained, mirrored)
        return max(map(float, jax.tree.leaves(differences)))

    assert distance(chain(center(0.9, enhanced), sgd(0.1))) < 1e-5
    assert distance(sgd(0.1)) > 0.1


@pytest.mark.parametrize("kind", JOINS)
def test_without_offsets_it_is_the_plain_gradient(kind):
    """Layers that are silent in the data have offsets of zero."""
    params, names = machine(JOINS[kind])
    layers = len(params["layers"])
    silent, model = (draw_states(layers, 6, seed=0, mean=mean) for mean in (0.0, 0.5))
    statistics = statistics_of(params, silent, model, energy_of(JOINS[kind]))
    optimizer = center(joins=names)
    updates, _ = optimizer.update(gradient_of(statistics), optimizer.init(params), params, statistics=statistics)
    chex.assert_trees_all_equal(updates, gradient_of(statistics))


def test_explicit_joins_on_a_tree_of_ones_own():
    params, _ = machine(JOINS[2])
    statistics = statistics_of(params, draw_states(2, 6, seed=0), draw_states(2, 6, seed=1))

    def renamed(tree):
        (b, c), W = (layer["loc"] for layer in tree["layers"]), tree["weights"][0]["matrix"]
        return {"W": W, "a": {"bias": b}, "temperature": jnp.ones(()), "z": c}

    def updates_of(optimizer, rename=lambda tree: tree):
        mine = statistics._replace(
            data_gradient=rename(statistics.data_gradient), model_gradient=rename(statistics.model_gradient)
        )
        state = optimizer.init(rename(params))
        return optimizer.update(rename(gradient_of(statistics)), state, rename(params), statistics=mine)[0]

    expected = renamed(updates_of(center()))
    for join in (("W", "a/bias", "z"), Join(weight="W", left="a/bias", right="z")):
        chex.assert_trees_all_equal(updates_of(center(joins=[join]), renamed), expected)


def test_offsets_of_bfloat16_parameters_are_float32():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer = center()
    state = optimizer.init(params)
    statistics = PhaseStatistics(None, None, params, params)
    updates, after = optimizer.update(params, state, params, statistics=statistics)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {offset.dtype for offset in state.offsets.values()} == {np.dtype("float32")}


def test_a_new_decay_or_batch_does_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(optimizer, gradient):
        statistics = PhaseStatistics(None, None, gradient, ZEROS)
        return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS, statistics=statistics)[0]

    for decay in (0.9, 0.99):
        traced_once(chain(center(decay), sgd(decay)), scaled(PARAMS, decay))


def test_a_skipped_gradient_leaves_the_offsets_alone():
    optimizer = skip_nonfinite(chain(center(), sgd(0.1)))
    state = optimizer.init(PARAMS)
    bad = poisoned(PARAMS, np.nan)
    _, after = optimizer.update(bad, state, PARAMS, statistics=PhaseStatistics(None, None, bad, bad))
    chex.assert_trees_all_equal(after.inner, state.inner)


# --- mistakes ----------------------------------------------------------------------------------------


def nothing(path):
    return False


@each(
    {
        "add_decayed_weights": add_decayed_weights(0.1, nothing),
        "add_l1_decay": add_l1_decay(0.1, nothing),
        "project": project(non_negative, nothing),
        "freeze": freeze(sgd(0.1), nothing),
    }
)
def test_a_predicate_that_selects_nothing_is_an_error(optimizer):
    name = type(optimizer).__name__
    with pytest.raises(ValueError, match=f"{name}: the predicate selects none.*layers/0/loc.*weights/0/matrix"):
        optimizer.init(PARAMS)


@each(
    {
        "add_decayed_weights": add_decayed_weights(0.1),
        "add_l1_decay": add_l1_decay(0.1),
        "project": project(non_negative),
        "average_parameters": average_parameters(),
    }
)
def test_missing_or_misshapen_parameters_are_an_error(optimizer):
    name = type(optimizer).__name__
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=f"{name}: needs the parameters"):
        optimizer.update(PARAMS, state)
    with pytest.raises(ValueError, match=r"\['weights'\]\[0\]\['matrix'\]: expected shape \(4, 4\).*got \(4, 3\)"):
        optimizer.update(PARAMS, state, rbm_tree(4, 4) | {"layers": PARAMS["layers"]})


def two_layers(first, second, matrix):
    return {
        "layers": [{"loc": jnp.zeros(first)}, {"loc": jnp.zeros(second)}],
        "weights": [{"matrix": jnp.zeros(matrix)}],
    }


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: clip_by_global_norm(0.0), ValueError, "max_norm must be"),
        (lambda: clip_by_global_norm(-1.0), ValueError, "max_norm must be"),
        (lambda: add_decayed_weights(-0.1), ValueError, "weight_decay must be in"),
        (lambda: add_l1_decay("0.1"), TypeError, "l1_decay must be a number"),
        (lambda: average_parameters(1.0), ValueError, "decay must be in"),
        (lambda: skip_nonfinite(0.1), TypeError, "expected an optimizer or transformation"),
        (lambda: freeze(None, is_weight), TypeError, "expected an optimizer or transformation"),
        (
            lambda: project(lambda p: p["layers"]).update(PARAMS, (), PARAMS),
            ValueError,
            r"projection\(params\).*(missing|unexpected)",
        ),
        (
            lambda: project(lambda p: jax.tree.map(jnp.sum, p)).update(PARAMS, (), PARAMS),
            ValueError,
            r"projection\(params\)\['layers'\]\[0\]\['loc'\]: expected shape \(4,\) as in params, got \(\)",
        ),
        (lambda: center(1.0), ValueError, "decay must be in"),
        (lambda: center().init({"a": jnp.ones(2)}), ValueError, r"center: no weights among the leaves \['a'\]"),
        (lambda: center(joins=[]).init(PARAMS), ValueError, "center: no weights among the leaves"),
        (
            lambda: center(joins=[("weights/0/matrix", "layers/0/loc", "h")]).init(PARAMS),
            ValueError,
            "center: no leaf h among .*layers/0/loc",
        ),
        (
            lambda: center().init(two_layers(2, 3, (3, 2))),
            ValueError,
            r"center: weights/0/matrix of shape \(3, 2\) does not join .*layers/1/loc, of shapes \(2, 3\)",
        ),
        (lambda: center().init(two_layers((), 3, (3,))), ValueError, r"of shape \(3,\) does not join"),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_center_needs_the_statistics_of_two_phases():
    optimizer = center()
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"update\(..., statistics=...\) of a two-phase estimator, got NoneType"):
        optimizer.update(PARAMS, state, PARAMS)
    squares = loss_gradient(lambda params, batch: sum(jnp.sum(p**2) for p in jax.tree.leaves(params)))
    gradient, _, statistics = squares.estimate(PARAMS, None, (), KEY)
    with pytest.raises(ValueError, match="of a two-phase estimator, got LossStatistics"):
        optimizer.update(gradient, state, PARAMS, statistics=statistics)
