"""Convergence in the state: against the flags recorded in 2017, and in nested states."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paysage_jax import (
    adam,
    chain,
    converged,
    gradient_magnitude,
    sgd,
    skip_nonfinite,
    track_convergence,
)
from tests.helpers.problems import (
    GOLDEN,
    MANIFEST,
    classic_optimizer,
    each_golden,
    golden,
    magnitude64,
    rbm_tree,
    row,
    step,
)


@jax.jit
def golden_flags(tolerances, deltas):
    """converged(state) after every one of the recorded steps, for each of the tolerances."""

    def flags(tolerance):
        tracker = track_convergence(tolerance)

        def scanned(state, delta):
            _, state = tracker.update(delta, state)
            return state, converged(state)

        return jax.lax.scan(scanned, tracker.init(row(deltas, 0)), deltas)[1]

    return jax.vmap(flags)(tolerances)


@each_golden("cases")
def test_flags_are_the_golden_ones(case):
    """The steps of test_classic, which the optimizers repeat."""
    group, name = case["group"], case["id"]
    tolerances = np.array([case["tolerance"], case["default_tolerance"]], np.float32)
    flags, flags_at_default = golden_flags(tolerances, golden(group, name, "delta"))
    np.testing.assert_array_equal(flags, GOLDEN[group][f"{name}/converged"])
    np.testing.assert_array_equal(flags_at_default, GOLDEN[group][f"{name}/converged_default_tol"])


@jax.jit
def chained_flags(optimizer, tolerances, params, gradients, epochs):
    """The same after every step of an optimizer that is in a chain with the tracker."""

    def flags(tolerance):
        tracked = chain(optimizer, track_convergence(tolerance))

        def scanned(carry, xs):
            gradient, epoch = xs
            _, *carry = step(tracked, gradient, *carry, epoch=epoch)
            return carry, converged(carry[0])

        return jax.lax.scan(scanned, [tracked.init(params), params], (gradients, epochs))[1]

    return jax.vmap(flags)(tolerances)


FIRST = {case["optimizer"]: case["id"] for case in reversed(MANIFEST["cases"])}
CHAINED = [
    pytest.param(case, id=case["id"], marks=[pytest.mark.slow] * (case["id"] not in FIRST.values()))
    for case in MANIFEST["cases"]
]


@pytest.mark.parametrize("case", CHAINED)
def test_flags_in_a_chain_with_the_optimizer_are_the_golden_ones(case):
    group, name = case["group"], case["id"]
    flags, flags_at_default = chained_flags(
        classic_optimizer(case),
        np.array([case["tolerance"], case["default_tolerance"]]),
        row(golden(group, name, "param"), 0),
        golden(group, name, "grad"),
        GOLDEN[group][f"{name}/epoch"],
    )
    np.testing.assert_array_equal(flags, GOLDEN[group][f"{name}/converged"])
    np.testing.assert_array_equal(flags_at_default, GOLDEN[group][f"{name}/converged_default_tol"])


# --- one update after the other ----------------------------------------------------------------------


@jax.jit
def update(tracker, updates, state):
    return tracker.update(updates, state)


def track(updates, tracker):
    """The states after each of the scalar updates, which are broadcast to a vector of two."""
    state, states = tracker.init(jnp.zeros(2)), []
    for u in updates:
        passed, state = update(tracker, np.full(2, u, np.float32), state)
        np.testing.assert_array_equal(passed, np.full(2, u, np.float32))
        states.append(state)
    return states


def flags(updates, tracker):
    return [bool(converged(state)) for state in track(updates, tracker)]


def test_nothing_has_converged_before_an_update():
    assert not converged(track_convergence(np.inf).init(jnp.zeros(2)))


def test_the_state_holds_the_magnitude_of_the_last_update():
    tree = rbm_tree()
    tracker = track_convergence(1.0)
    updates, state = update(tracker, tree, tracker.init(tree))
    chex.assert_trees_all_equal(updates, tree)
    np.testing.assert_allclose(state.magnitude, magnitude64(tree), rtol=1e-6)


def test_converged_is_at_or_under_the_tolerance():
    assert flags([0.51, 0.5, 0.49, -0.5, 2.0, 0.0], track_convergence(0.5)) == [False, True, True, True, False, True]


def test_patience_counts_updates_in_a_row():
    small, large = 0.1, 1.0
    updates = [small, small, large, small, small, small, small, large, small]
    expected = [False, False, False, False, False, True, True, False, False]
    assert flags(updates, track_convergence(0.5, patience=3)) == expected


def test_a_step_left_out_does_not_count_where_the_gradient_is_known():
    """It neither ends a streak nor lengthens it; for a gradient of zeros, or without one, the run may have arrived."""
    tracker, zeros, ones = track_convergence(0.5, patience=2), jnp.zeros(2), jnp.ones(2)
    _, started = tracker.update(0.1 * ones, tracker.init(zeros), gradient=ones)
    for extra, streak in (({"gradient": ones}, 1), ({"gradient": zeros}, 2), ({}, 2)):
        assert tracker.update(zeros, started, **extra)[1].streak == streak
    skip = skip_nonfinite(sgd(0.1))
    for member, counts in ((track_convergence(0.5), True), (track_convergence(0.5).to_optax(), False)):
        optimizer, nan = optax.chain(skip.to_optax(), member), np.nan * ones
        _, state = optimizer.update(nan, optimizer.init(zeros), zeros, gradient=nan)
        assert converged(state) == counts


def test_the_streak_does_not_wrap():
    tracker = track_convergence(1.0, patience=2**31 - 1)
    state = tracker.init(jnp.zeros(2))._replace(streak=jnp.int32(2**31 - 2))
    for _ in range(3):
        _, state = update(tracker, jnp.zeros(2), state)
        assert converged(state)


def test_nan_is_never_converged_and_ends_a_streak():
    assert flags([np.nan] * 3, track_convergence(np.inf)) == [False] * 3
    assert flags([0, np.nan, 0, 0], track_convergence(1.0, patience=2)) == [False, False, False, True]


def test_a_magnitude_of_ones_own():
    def largest(updates):
        return jnp.max(jnp.abs(updates))

    (state,) = track([-0.3], track_convergence(0.3, magnitude=largest))
    assert state.magnitude == np.float32(0.3)
    assert converged(state)


def test_an_imaginary_update_does_not_count_as_convergence():
    optimizer = chain(optax.sgd(1.0), track_convergence(0.5))
    params = jnp.zeros(2, jnp.complex64)
    _, state = optimizer.update(jnp.array([3j, 4j], jnp.complex64), optimizer.init(params), params)
    np.testing.assert_allclose(state[1].magnitude, 5 / np.sqrt(2), rtol=1e-6)
    assert not converged(state)


def test_integers_and_empty_leaves_do_not_spoil_the_magnitude():
    tree = {"w": jnp.array([3.0, 4.0]), "n": jnp.ones(3, int)}
    np.testing.assert_allclose(gradient_magnitude(tree), 5 / np.sqrt(2), rtol=1e-6)
    for empty in (jnp.zeros((0, 3)), jnp.zeros((3, 0))):
        np.testing.assert_allclose(gradient_magnitude({"w": tree["w"], "e": empty}), 2.5, rtol=1e-6)


def test_tiny_updates_under_x64_are_not_zero():
    with jax.enable_x64(True):
        state = track_convergence(0.0).update(jnp.full(3, 1e-60), track_convergence(0.0).init(None))[1]
        np.testing.assert_allclose(state.magnitude, 1e-60, rtol=1e-12)
        assert not converged(state)


def test_state_dtypes_do_not_drift():
    tracker = track_convergence(1, patience=2)
    state = tracker.init(jnp.zeros(2, jnp.bfloat16))
    _, after = tracker.update(jnp.zeros(2, jnp.bfloat16), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_new_tolerances_do_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(tracker, state):
        return converged(tracker.update(jnp.ones(2), state)[1])

    state = track_convergence(1.0).init(jnp.ones(2))
    settings = ((0.5, 1), (2.0, 1), (2.0, 2))
    assert [bool(traced_once(track_convergence(t, patience=p), state)) for t, p in settings] == [False, True, False]


# --- anywhere in a state -----------------------------------------------------------------------------

NESTS = {
    "alone": track_convergence,
    "chain": lambda tolerance: chain(sgd(1.0), track_convergence(tolerance)),
    "chain in chain": lambda tolerance: chain(chain(sgd(1.0), track_convergence(tolerance))),
    "skip_nonfinite": lambda tolerance: skip_nonfinite(chain(sgd(1.0), track_convergence(tolerance))),
    "optax.chain": lambda tolerance: optax.chain(optax.sgd(1.0), track_convergence(tolerance)),
    "optax.masked": lambda tolerance: chain(sgd(1.0), optax.masked(track_convergence(tolerance).to_optax(), True)),
}


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS.keys())
def test_converged_is_found_anywhere(nest):
    params = jnp.zeros(2)
    for tolerance, expected in ((0.5, False), (2.0, True)):
        optimizer = nest(tolerance)
        _, state = optimizer.update(jnp.ones(2), optimizer.init(params), params)
        assert bool(converged(state)) == expected


def test_all_of_several_must_have_converged():
    for tolerances, expected in (((2.0, 2.0), True), ((0.5, 2.0), False), ((2.0, 0.5), False)):
        optimizer = chain(*map(track_convergence, tolerances))
        _, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
        assert bool(converged(state)) == expected


@pytest.mark.parametrize("optimizer", [sgd(0.1), chain(), chain(adam(0.1), skip_nonfinite(sgd(0.1)))])
def test_a_state_without_a_tracker_is_an_error(optimizer):
    with pytest.raises(ValueError, match="no track_convergence in the state"):
        converged(optimizer.init(jnp.zeros(2)))


def test_a_while_loop_stops_at_convergence():
    """p is halved at every step until a step is at most 2⁻⁵: the steps are 2⁻¹, 2⁻², ..., so five of them."""
    optimizer = chain(sgd(0.5), track_convergence(2.0**-5))

    @jax.jit
    def descend(params):
        def descended(carry):
            _, *carry = step(optimizer, carry[1], *carry)
            return carry

        return jax.lax.while_loop(lambda carry: ~converged(carry[0]), descended, [optimizer.init(params), params])

    _, params = descend(jnp.ones(2))
    np.testing.assert_array_equal(params, np.full(2, 2.0**-5, np.float32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: track_convergence(-1e-3), ValueError, "tolerance must be in"),
        (lambda: track_convergence(np.nan), ValueError, "tolerance must be in"),
        (lambda: track_convergence("1e-3"), TypeError, "tolerance must be a number"),
        (lambda: track_convergence(1e-3, patience=0), ValueError, "patience must be a positive integer"),
        (lambda: track_convergence(1e-3, patience=1.5), TypeError, "patience must be a positive integer"),
        (lambda: track_convergence(1e-3, 5), TypeError, "magnitude must be a function, got 5"),
        (
            lambda: track_convergence(1.0).update({"b": jnp.float32(1)}, track_convergence(1.0).init(None)),
            TypeError,
            r"tree\['b'\] has no first dimension; give track_convergence another measure: magnitude=",
        ),
        (
            lambda: track_convergence(1.0, magnitude=jnp.abs).update(jnp.ones(2), track_convergence(1.0).init(None)),
            ValueError,
            r"magnitude\(updates\): expected a scalar, got shape \(2,\)",
        ),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
