"""The average of parameters, skipped gradients, frozen leaves: against optax and float64 loops, and by their laws."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paysage_jax import (
    adam,
    apply_updates,
    average_parameters,
    averaged_parameters,
    chain,
    converged,
    freeze,
    sgd,
    skip_nonfinite,
    track_convergence,
)
from tests.helpers.problems import (
    OPTIMIZERS,
    assert_runs_close,
    each,
    first_update,
    gradients,
    is_weight,
    poisoned,
    rbm_tree,
    row,
    run,
    scaled,
)

PARAMS = rbm_tree()
ZEROS = jax.tree.map(np.zeros_like, PARAMS)


@jax.jit
def update(optimizer, updates, state, params):
    return optimizer.update(updates, state, params)


def states_after(optimizer, steps, params=PARAMS):
    """(state, params) after some ordinary steps."""
    state, g = optimizer.init(params), jax.tree.map(np.asarray, gradients(params, steps))
    for t in range(steps):
        updates, state = update(optimizer, row(g, t), state, params)
        params = apply_updates(params, updates)
    return state, params


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


def test_average_of_complex_parameters():
    params = jnp.array([1 + 2j, -1j], jnp.complex64)
    optimizer = average_parameters(0.5)
    _, state = optimizer.update(0 * params, optimizer.init(params), params)
    _, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(averaged_parameters(state), params * 5 / 3, rtol=1e-6)


def test_average_before_any_update_is_zero():
    chex.assert_trees_all_equal(averaged_parameters(average_parameters().init(PARAMS)), ZEROS)


@pytest.mark.parametrize("members", [0, 2])
def test_average_that_is_not_there_or_twice_is_an_error(members):
    state = chain(sgd(0.1), *[average_parameters()] * members).init(PARAMS)
    with pytest.raises(ValueError, match=f"expected one average_parameters in the state, found {members}"):
        averaged_parameters(state)


# --- skip_nonfinite ----------------------------------------------------------------------------------

WITH_OPTAX = OPTIMIZERS | {"optax": optax.sgd(0.01, momentum=0.9)}


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


def test_skip_nonfinite_takes_an_optimizer_whose_state_changes_its_dtype():
    """optax's moments start in the dtype of the parameters and go on in that of the gradients."""
    params, optimizer = jnp.ones(2, jnp.bfloat16), skip_nonfinite(optax.adam(0.1))
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for g in (jnp.array([jnp.nan, 1.0]), jnp.ones(2)):
            updates, state = optimizer.update(g, state, params)
    assert state.skipped == 1
    chex.assert_trees_all_close(updates.astype(float), jnp.full(2, -0.1), rtol=1e-2)


# --- freeze ------------------------------------------------------------------------------------------


@each(WITH_OPTAX)
def test_frozen_leaves_get_zeros_and_the_others_what_they_would_alone(optimizer):
    frozen, optimizer = freeze(optimizer, is_weight), chain(optimizer)
    (state, params), (state_alone, params_alone) = (
        states_after(frozen, 2, PARAMS),
        states_after(optimizer, 2, PARAMS["layers"]),
    )
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
