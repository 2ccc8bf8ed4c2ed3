"""How runs end, under which transformations they run, and steps that stay finite at extreme values."""

from functools import partial
from types import SimpleNamespace

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given

from paysage_jax import (
    Model,
    Outcome,
    adam,
    apply_updates,
    chain,
    early_stopping,
    fit,
    loss_gradient,
    persistent_contrastive_divergence,
    project,
    rmsprop,
    sgd,
    skip_nonfinite,
    unit_column_norm,
)
from paysage_jax._train.fit import is_traced
from paysage_jax.extend import Estimator
from tests.helpers.runs import DATA, KEY, PARAMS, ROWS, batches_of, compilations, regression

each_source = pytest.mark.parametrize("source", ["in memory", "loader"])


def how(result):
    """(epochs done, outcome)."""
    return int(result.epochs_done), Outcome(int(result.outcome))


# --- runs that nothing can come of any more ----------------------------------------------------------


def quartic(params, v):
    return params["a"] * jnp.sum(v**4, axis=1) / 4


def langevin(params, v, key):
    """A step of .01 is too large for a state beyond 14, which diverges to infinity."""
    return v - 0.01 * params["a"] * v**3 + jnp.sqrt(0.02) * jax.random.normal(key, v.shape)


def sampled(rows, optimizer, source, epochs=4):
    v = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    v[: len(rows), 0] = rows
    data, options = (v, {"batch_size": 10}) if source == "in memory" else ([v[i : i + 10] for i in (0, 10, 20, 30)], {})
    estimator = persistent_contrastive_divergence(Model(quartic, langevin), steps=5)
    return fit({"a": jnp.ones(())}, optimizer, estimator, data, epochs=epochs, key=KEY, shuffle=False, **options)


@each_source
def test_chains_that_are_lost_end_a_run_that_skips(source):
    """A state in the data diverges; then every gradient is NaN and every update is skipped, forever."""
    optimizer = skip_nonfinite(sgd(1e-3))
    result = sampled([100.0], optimizer, source)
    assert how(result) == (0, Outcome.NON_FINITE)
    chex.assert_tree_all_finite((result.params, result.estimator_state))
    assert how(sampled([], optimizer, source)) == (4, Outcome.EPOCHS_EXHAUSTED)


def test_lost_chains_end_a_run_that_moves_only_by_weight_decay():
    """optax.zero_nans makes the gradient zero, and weight decay moves the parameters nonetheless."""
    optimizer = chain(optax.zero_nans(), adam(0.1, weight_decay=0.1))
    assert how(sampled([100.0], optimizer, "in memory")) == (0, Outcome.NON_FINITE)


class Scripted(Estimator):
    """Gradients of ones, but NaN at the step number `nan_at`; its state is the number of the step, and an array."""

    nan_at: jax.Array
    kept: float = 0.0

    def init(self, params, batch, key):
        return jnp.int32(0), jnp.full(3, self.kept)

    def estimate(self, params, batch, estimator_state, key):
        step, kept = estimator_state
        bad = jnp.any(step == self.nan_at)
        return jax.tree.map(lambda p: jnp.where(bad, jnp.nan, jnp.ones_like(p)), params), (step + 1, kept), {}


def scripted(nan_at, optimizer, epochs=4, source="in memory", **options):
    estimator = Scripted(jnp.array(nan_at), **options)
    data, size = (DATA, {"batch_size": 5}) if source == "in memory" else (batches_of(DATA), {})
    return fit(PARAMS, optimizer, estimator, data, epochs=epochs, key=KEY, **size)


@each_source
@pytest.mark.parametrize(
    ("nan_at", "expected"),
    [
        ([5, 6, 7, 8, 9], (1, Outcome.NON_FINITE)),  # the whole second epoch, though no statistic says so
        ([5, 6, 7, 8], (4, Outcome.EPOCHS_EXHAUSTED)),
        ([4, 5, 6, 7, 8], (4, Outcome.EPOCHS_EXHAUSTED)),
    ],
    ids=["an epoch", "all but one", "as many in two"],
)
def test_an_epoch_of_skipped_updates_alone_ends_a_run(nan_at, expected, source):
    assert how(scripted(nan_at, skip_nonfinite(sgd(0.1)), source=source)) == expected


def test_a_run_that_ended_so_can_be_resumed():
    ended = scripted([5, 6, 7, 8, 9], skip_nonfinite(sgd(0.1)))
    estimator = Scripted(jnp.array([-1]))
    result = fit(PARAMS, skip_nonfinite(sgd(0.1)), estimator, DATA, epochs=4, batch_size=5, key=KEY, resume=ended)
    assert how(result) == (4, Outcome.EPOCHS_EXHAUSTED)
    np.testing.assert_allclose(result.params["w"], -0.1 * 20, rtol=1e-6)


@pytest.mark.parametrize("optimizer", [sgd(0.0), skip_nonfinite(sgd(0.0)), optax.MultiSteps(optax.sgd(0.1), 1000)])
def test_a_run_without_movement_on_finite_numbers_continues(optimizer):
    with jax.numpy_dtype_promotion("standard"):
        result = scripted([-1], optimizer, epochs=2)
    assert how(result) == (2, Outcome.EPOCHS_EXHAUSTED)


def test_a_state_that_uses_nan_for_empty_places_is_not_lost_while_the_run_moves():
    assert how(scripted([-1], sgd(0.1), epochs=2, kept=np.nan)) == (2, Outcome.EPOCHS_EXHAUSTED)


# --- under transformations ---------------------------------------------------------------------------

X = np.array([1.0, 3.0, 1.0, 3.0], np.float32)
RIDGES = np.array([0.0, 1.0, 3.0], np.float32)
MINIMA = 2 / (1 + RIDGES)  # of mean (x - w)² + ridge w²


def ridge_run(ridge, **options):
    """No array argument of `fit` is traced, but the loss closes over a traced value."""
    estimator = loss_gradient(lambda w, x: jnp.mean((x - w) ** 2) + ridge * w**2)
    return fit(jnp.zeros(()), sgd(0.1), estimator, X, epochs=40, batch_size=4, key=KEY, **options)


TRANSFORMATIONS = {
    "vmap": jax.vmap,
    "jit": lambda f: lambda xs: jnp.stack(list(map(jax.jit(f), xs))),
    "scan": lambda f: lambda xs: jax.lax.scan(lambda carry, x: (carry, f(x)), None, xs)[1],
    "map": lambda f: partial(jax.lax.map, f),
}


@pytest.mark.parametrize("transform", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS.keys())
def test_a_loss_may_close_over_a_traced_number(transform):
    np.testing.assert_allclose(transform(lambda ridge: ridge_run(ridge).params)(RIDGES), MINIMA, atol=1e-3)


def test_a_run_is_differentiated_by_what_its_loss_closes_over():
    """In forward mode, because the number of iterations is unknown. d/dridge 2 / (1 + ridge) = -2 / (1 + ridge)²."""
    slope = jax.jvp(lambda ridge: ridge_run(ridge).params, (1.0,), (1.0,))[1]
    np.testing.assert_allclose(slope, -0.5, atol=1e-3)


def test_schedules_metrics_and_labels_may_close_over_a_traced_number():
    mean = loss_gradient(lambda w, x: jnp.mean((x - w) ** 2))

    def run(rate, resume=None):
        options = {"epochs": 3, "batch_size": 4, "key": KEY, "early_stopping": early_stopping("m", maximize=True)}
        metrics = {"m": lambda state, key: rate * state.params}
        return fit(jnp.zeros(()), sgd(lambda step: rate), mean, X, metrics=metrics, resume=resume, **options)

    sweep = jax.vmap(run)(np.array([0.1, 0.2], np.float32))
    expected = np.array([2 * (1 - (1 - 2 * rate) ** 3) for rate in (0.1, 0.2)])
    np.testing.assert_allclose(sweep.params, expected, rtol=1e-5)
    np.testing.assert_allclose(sweep.history["m"][:, -1], [0.1, 0.2] * expected, rtol=1e-5)


def test_host_arguments_are_rejected_wherever_the_traced_value_hides():
    with pytest.raises(ValueError, match="fit: callback: not available under"):
        jax.vmap(lambda ridge: ridge_run(ridge, callback=print).params)(RIDGES)


def test_being_traced_is_asked_of_jax():
    seen = []

    def ask(x):
        seen.append(is_traced())
        return x

    jax.jit(ask)(1.0)
    jax.vmap(ask)(jnp.ones(2))
    jax.grad(ask)(1.0)
    jax.lax.scan(lambda carry, x: (carry, ask(x)), None, jnp.ones(2))
    assert seen == [True] * len(seen)
    seen.clear()
    ask(1.0)
    jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(ask, x, x))(jnp.ones(())))
    assert seen == [False, False]


# --- functions are compared by identity --------------------------------------------------------------

SETTINGS = SimpleNamespace(rate=0.0)


def rate_of_now():
    return SETTINGS.rate


@pytest.mark.parametrize("read", [lambda: SETTINGS.rate, rate_of_now], ids=["attribute", "helper"])
def test_a_new_lambda_sees_the_values_of_now(read):
    def run():
        optimizer = sgd(lambda step: read())
        options = {"epochs": 1, "batch_size": ROWS, "key": KEY, "metrics": {"rate": lambda state, key: read() + 0.0}}
        result = fit({"w": jnp.zeros(3)}, optimizer, ones, DATA, **options)
        return float(result.params["w"][0]), float(np.asarray(result.history["rate"][0]))

    for rate in (0.25, 0.5):
        SETTINGS.rate = rate
        assert run() == (-rate, rate)


ones = loss_gradient(lambda params, batch: jnp.sum(params["w"]))


def test_a_run_traces_its_functions_no_more_often_the_longer_it_is():
    """Also functions that are defined in the call."""

    def traces(epochs):
        count = [0]

        def metric(state, key):
            count[0] += 1
            return jnp.sum(state.params["w"])

        optimizer = sgd(lambda step: 0.1 / (1 + step.astype(float)))
        options = {"metrics": {"sum": metric}, "callback": lambda result: None}
        fit(PARAMS, optimizer, regression, DATA, epochs=epochs, batch_size=ROWS, key=KEY, **options)
        return count[0]

    assert traces(12) == traces(2)


def test_a_function_made_once_compiles_once():
    schedule = lambda step: 0.1 / (1 + step.astype(float))  # noqa: E731
    run = partial(fit, PARAMS, estimator=regression, data=DATA, epochs=1, batch_size=ROWS, key=KEY)
    run(optimizer=sgd(schedule))
    with compilations() as programs:
        run(optimizer=sgd(schedule))
    assert not programs


# --- steps at extreme values -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [adam, rmsprop])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_without_eps_an_element_whose_gradients_are_zero_does_not_move(make, dtype):
    optimizer, params = make(0.1, eps=0.0), jnp.ones(2, dtype)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jnp.array([0.0, 2.0], dtype), state, params)
        assert updates[0] == 0
        assert updates[1].real < -0.05
    updates, _ = optimizer.update(jnp.array([jnp.nan, 2.0], dtype), state, params)
    assert jnp.isnan(updates[0])  # NaN propagates


@pytest.mark.parametrize("make", [adam, rmsprop])
def test_without_eps_an_element_whose_gradients_are_zero_has_finite_derivatives(make):
    """After two steps of adam on gradients of one sign, each is minus the rate: d/drate = -2."""

    @jax.jit
    @jax.grad
    def derivative(rate, inputs):
        optimizer, params = make(rate, eps=0.0), jnp.array([1.0, 2.0])
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(inputs, state, params)
            params = apply_updates(params, updates)
        return jnp.sum(params)

    dead, alone = derivative(0.1, jnp.array([1.0, 0.0])), derivative(0.1, jnp.array([1.0, 1.0])) / 2
    np.testing.assert_allclose(dead, alone, rtol=1e-5)
    if make is adam:
        np.testing.assert_allclose(dead, -2, rtol=1e-5)


jitted_unit_column_norm = jax.jit(unit_column_norm)


@pytest.mark.parametrize("unit", [unit_column_norm, jitted_unit_column_norm], ids=["eager", "jit"])
@example(exponents=[38.0, 38.5, -37.0], seed=0)
@given(exponents=st.lists(st.floats(-37, 38.5), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_columns_of_any_size_get_norm_one_and_keep_their_direction(unit, exponents, seed):
    matrix = np.random.default_rng(seed).uniform(0.5, 1, (20, 3)) * np.array([10.0**e for e in exponents])
    matrix = matrix.astype(np.float32)
    expected = matrix.astype(np.float64) / np.linalg.norm(matrix.astype(np.float64), axis=0)
    np.testing.assert_allclose(unit(matrix), expected, rtol=1e-5)


def test_complex_columns_whose_norm_overflows_get_norm_one():
    columns = np.asarray(unit_column_norm(jnp.full((20, 2), 3e38 * (1 + 1j), jnp.complex64)))
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("far", [1e9, -1e9, 3e38, 1e-30, 0.5])
def test_a_projection_from_far_away_ends_in_its_set(far):
    """A sum in float32 cannot land on 0.1 from 1e9 at once: it takes two updates."""
    optimizer, params = chain(sgd(0.0), project(partial(jnp.clip, min=0.1, max=1.0))), jnp.array([far])
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        params = apply_updates(params, updates)
    assert np.float32(0.1) <= params[0] <= 1
