"""Skipped gradients, frozen leaves: against optax and float64 loops, and by their laws."""

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
    chain,
    converged,
    freeze,
    sgd,
    skip_nonfinite,
    track_convergence,
)
from tests.helpers.problems import (
    OPTIMIZERS,
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
    """optax's moments start in the dtype of the parameters and continue in the dtype of the gradients."""
    params, optimizer = jnp.ones(2, jnp.bfloat16), skip_nonfinite(optax.adam(0.1))
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for g in (jnp.array([jnp.nan, 1.0]), jnp.ones(2)):
            updates, state = optimizer.update(g, state, params)
    assert state.skipped == 1
    chex.assert_trees_all_close(updates.astype(float), jnp.full(2, -0.1), rtol=1e-2)


# --- freeze ------------------------------------------------------------------------------------------


@each(WITH_OPTAX)
def test_frozen_leaves_get_zeros_and_other_leaves_the_updates_they_would_get_alone(optimizer):
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
