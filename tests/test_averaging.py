"""Averages of the parameters: against float64 sums and closed forms, by their laws, and in the metrics of a run."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paysage_jax as pj
from paysage_jax import adam, average_parameters, averaged_parameters, chain, exponential_average, sgd, skip_nonfinite
from tests.helpers.problems import assert_runs_close, each, gradients, rbm_tree, run
from tests.helpers.runs import assert_identical

PARAMS = rbm_tree()
each_average = pytest.mark.parametrize(
    "average", [average_parameters(0.3), exponential_average(0.9)], ids=["share", "EMA"]
)


def weights_by_formula(average, steps):
    """The weights of the parameters after 1, ..., `steps` updates, from their closed forms in float64."""
    s = np.arange(1, steps + 1, dtype=np.float64)
    if isinstance(average, exponential_average):
        weights = np.float64(average.decay) ** (steps - s)
    else:  # the product of s + k over s of the earlier updates, k = 1 / share - 1
        k = 1 / np.float64(average.share) - 1
        weights = np.cumprod(np.concatenate([[1.0], (s[1:] - 1 + k) / (s[1:] - 1)]))
    return weights / weights.sum()


@pytest.mark.parametrize(
    "average",
    [exponential_average(d) for d in (0.0, 0.5, 0.999)] + [average_parameters(s) for s in (0.05, 0.2, 1.0)],
    ids=lambda average: f"{type(average).__name__} {vars(average)}",
)
@each({"chain": lambda a: chain(adam(0.01), a), "skip": lambda a: skip_nonfinite(chain(chain(adam(0.01), a)))})
def test_it_is_the_weighted_mean_of_the_parameters(optimizer, average):
    steps = 40
    updates, state, _ = run(optimizer(average), PARAMS, gradients(PARAMS, steps))
    weights = weights_by_formula(average, steps)

    def mean(p, u):
        parameters = np.asarray(p, np.float64) + np.cumsum(np.asarray(u, np.float64), axis=0)
        return np.tensordot(weights, parameters, axes=1)

    assert_runs_close(averaged_parameters(state), jax.tree.map(mean, PARAMS, updates), 1e-5)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_window_is_that_share_of_the_run(share):
    """The weighted mean of the age, over the updates so far, is (share - 1 / steps) / (1 + share), whatever the run."""
    for steps in (20, 2000):
        weights = weights_by_formula(average_parameters(share), steps)
        age = (steps - np.arange(1, steps + 1)) @ weights / steps
        np.testing.assert_allclose(age, (1 - 1 / steps) * share / (1 + share), rtol=1e-9)


@each_average
def test_it_does_not_change_the_updates(average):
    g = gradients(PARAMS, 5)
    averaged, _, _ = run(chain(adam(0.01), average), PARAMS, g)
    plain, _, _ = run(adam(0.01), PARAMS, g)
    chex.assert_trees_all_equal(averaged, plain)


@each_average
def test_parameters_that_rest_are_their_own_average(average):
    """Bit for bit."""
    _, state, _ = run(chain(sgd(0.1), average), PARAMS, jax.tree.map(jnp.zeros_like, gradients(PARAMS, 9)))
    chex.assert_trees_all_equal(averaged_parameters(state), PARAMS)


@each_average
def test_it_begins_at_the_parameters_and_is_exact_after_one_update(average):
    chex.assert_trees_all_equal(averaged_parameters(average.init(PARAMS)), PARAMS)
    updates = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = average.update(updates, average.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(averaged_parameters(state), pj.apply_updates(PARAMS, updates), rtol=1e-6)


def test_it_is_a_copy_of_the_parameters():
    params = {"w": np.ones(3, np.float32)}
    state = average_parameters().init(params)
    params["w"][:] = 7.0
    np.testing.assert_array_equal(averaged_parameters(state)["w"], np.ones(3))


def test_that_of_bfloat16_is_kept_in_float32():
    """The mean of 1 and 1 + 2⁻⁷ is between two bfloat16 numbers."""
    params = jnp.ones(2, jnp.bfloat16)
    optimizer = exponential_average(0.5)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.zeros(2, jnp.bfloat16), state, params)
    _, state = optimizer.update(jnp.full(2, 2.0**-7, jnp.bfloat16), state, params)
    average = averaged_parameters(state)
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 1 + 2.0**-7 * 2 / 3, rtol=1e-6)


def test_that_of_complex_parameters():
    params = jnp.array([1 + 2j, -1j], jnp.complex64)
    optimizer = exponential_average(0.5)
    _, state = optimizer.update(0 * params, optimizer.init(params), params)
    _, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(averaged_parameters(state), params * 5 / 3, rtol=1e-6)


@pytest.mark.parametrize("members", [0, 2])
def test_none_or_two_are_an_error(members):
    state = chain(sgd(0.1), *[average_parameters()] * members).init(PARAMS)
    with pytest.raises(ValueError, match=f"expected one average of the parameters in the state, found {members}"):
        averaged_parameters(state)


# --- what a run watches ------------------------------------------------------------------------------

MODEL = pj.rbm.RBM()
DATA = jnp.asarray(np.random.default_rng(0).random((60, 6)) < np.linspace(0.1, 0.9, 6), float)
START = MODEL.init(DATA, 3, jax.random.key(0))


def exact(state, key):
    return MODEL.log_likelihood(state.params, DATA)


def exact_of(params):
    return exact(pj.TrainState(params, (), ()), None)


@cache
def tracker(**options):
    annealing = MODEL.annealing(START, DATA, 500, jax.random.key(5))
    estimate = pj.annealed_importance_sampling(MODEL, annealing, jax.random.key(6), steps=20)
    return pj.track_log_partition(MODEL, estimate, jax.random.key(7), **options)


METRICS = {"exact": exact, "tracked": pj.tracked_log_likelihood(MODEL, DATA)}
STOPPING = pj.early_stopping("exact", patience=100, maximize=True)
ESTIMATOR = pj.persistent_contrastive_divergence(MODEL)


def trained(*after, epochs=8, **options):
    optimizer = chain(pj.center(), sgd(1.0), *after)
    options = {"batch_size": 10, "key": jax.random.key(1)} | options
    return pj.fit(START, optimizer, ESTIMATOR, DATA, epochs=epochs, **options)


def watched(*after, **options):
    return trained(*after, **{"metrics": METRICS, "early_stopping": STOPPING} | options)


@cache
def averaged():
    return watched(average_parameters(), tracker())


def test_metrics_and_the_best_are_of_the_average():
    result = averaged()
    at_end = result.history["exact"][-1]
    np.testing.assert_allclose(exact_of(averaged_parameters(result)), at_end, rtol=1e-6)
    assert abs(exact_of(result.params) - at_end) > 1e-3
    assert result.best.value == result.history["exact"].max()
    np.testing.assert_allclose(exact_of(result.best.params), result.best.value, rtol=1e-6)


def assert_tracks_the_average(result):
    """log Z of the average is within four standard errors of the exact one; log Z of the parameters is far from it."""
    tracked = pj.tracked_log_partition(result.optimizer_state)
    log_z = MODEL.log_partition(averaged_parameters(result))
    assert abs(tracked.log_z - log_z) < 4 * tracked.error
    assert abs(MODEL.log_partition(result.params) - log_z) > 8 * tracked.error
    assert np.abs(result.history["exact"] - result.history["tracked"]).max() < 4 * tracked.error


def test_the_tracker_follows_the_average():
    assert_tracks_the_average(averaged())


@pytest.mark.slow
@pytest.mark.parametrize(
    "members",
    [
        pytest.param(lambda a, t: (chain(optax.identity(), a), chain(t)), id="in chains"),
        pytest.param(lambda a, t: (skip_nonfinite(chain(a, t)),), id="in a wrapper"),
    ],
)
def test_the_tracker_follows_the_average_however_chains_are_nested(members):
    assert_tracks_the_average(watched(*members(average_parameters(), tracker())))


@pytest.mark.slow
def test_the_tracked_likelihood_is_of_the_parameters_that_log_z_is_of():
    """Even if the last updates have not been tracked yet: 48 updates, tracked every 20."""
    result = watched(average_parameters(), tracker(every=20))
    state = result.optimizer_state[-1]
    error = pj.tracked_log_partition(result.optimizer_state).error
    assert abs(result.history["tracked"][-1] - exact_of(state.params)) < 4 * error


def test_without_an_average_the_parameters_are_watched_and_move_the_same_way():
    result = trained(metrics={"exact": exact})
    np.testing.assert_allclose(result.history["exact"][-1], exact_of(result.params), rtol=1e-6)
    chex.assert_trees_all_equal(averaged().params, result.params)


def test_a_tracker_before_the_average_is_refused():
    with pytest.raises(ValueError, match="average_parameters comes after track_log_partition"):
        chain(sgd(0.1), tracker(), average_parameters())


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (chain(sgd(0.1), average_parameters(), exponential_average()), "expected one average .* in the state, found 2"),
        (pj.freeze(chain(sgd(0.1), average_parameters()), lambda p: "matrix" in p), "outside freeze and partition"),
    ],
)
def test_an_average_that_cannot_be_watched_is_refused(optimizer, message):
    options = {"epochs": 1, "batch_size": 10, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        pj.fit(START, optimizer, ESTIMATOR, DATA, metrics={"exact": exact}, **options)


def test_a_resumed_run_ends_like_an_uninterrupted_one():
    first = watched(average_parameters(), tracker(), epochs=3)
    assert_identical(watched(average_parameters(), tracker(), resume=first), averaged())


@pytest.mark.slow
def test_a_run_from_a_checkpoint_ends_like_an_uninterrupted_one(tmp_path):
    watched(average_parameters(), tracker(), epochs=5, checkpoints=tmp_path)
    assert_identical(watched(average_parameters(), tracker(), checkpoints=tmp_path), averaged())
    saved = pj.read_checkpoint(tmp_path)["optimizer_state"]["2"]["average"]
    np.testing.assert_array_equal(
        saved["weights"]["0"]["matrix"], averaged_parameters(averaged())["weights"][0]["matrix"]
    )
