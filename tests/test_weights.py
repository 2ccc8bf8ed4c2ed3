"""Weights of rows have the same meaning for every batch size, from memory and from a loader."""

import dataclasses

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Model,
    TrainState,
    Weighted,
    accumulate,
    contrastive_divergence,
    fit,
    loss_gradient,
    parallel_tempering,
    persistent_contrastive_divergence,
    sgd,
    train_step,
)
from paysage_jax.extend import phase_gradient
from tests.helpers.problems import assert_trees_close

KEY = jax.random.key(0)
UNITS = 3
PARAMS = {"b": jnp.array([0.5, -1.0, 0.3])}
ROWS = np.random.default_rng(0).integers(0, 2, (12, UNITS)).astype(np.float32)
CHAINS = ROWS[:5]


def energy(params, v):
    return -v @ params["b"]


def turn(params, v, key):
    """A deterministic kernel."""
    return jnp.roll(v, 1, axis=1)


def draw(params, v, key):
    """Independent units, drawn exactly."""
    p = jnp.broadcast_to(jax.nn.sigmoid(params["b"]), v.shape)
    return jax.random.bernoulli(key, p).astype(v.dtype)


turned, drawn = Model(energy, turn), Model(energy, draw)
cd = contrastive_divergence(turned)
pcd = persistent_contrastive_divergence(turned, chains=CHAINS)
pt = parallel_tempering(turned, chains=CHAINS[:1], betas=(0.5, 1.0))
each = pytest.mark.parametrize("estimator", [cd, pcd, pt], ids=["cd", "pcd", "pt"])


@jax.jit
def estimate(estimator, v, weights):
    state = estimator.init(PARAMS, v, KEY)
    gradient, _, statistics = estimator.estimate(PARAMS, Weighted(v, weights), state, KEY)
    return gradient["b"], statistics


def weighted_gradient(estimator, v, weights):
    """Σ wᵢ ∂E(vᵢ) / Σ wᵢ minus the mean over the samples, in float64."""
    data = np.average(-v.astype(np.float64), axis=0, weights=weights)
    if estimator is cd:
        return data - np.roll(data, 1)
    if estimator is pcd:
        return data + np.roll(CHAINS, 1, axis=1).astype(np.float64).mean(axis=0)
    raise AssertionError("the exchanges of tempering are drawn")


# --- the gradient ------------------------------------------------------------------------------------

weights_of_rows = st.lists(st.integers(0, 9), min_size=12, max_size=12).filter(any)
cuts = st.sampled_from([(12,), (6, 6), (1, 6, 2, 3), (3,) * 4, (1,) * 12, (6, 3, 2, 1)])


@pytest.mark.parametrize("estimator", [cd, pcd], ids=["cd", "pcd"])
@hypothesis.settings(max_examples=20)
@hypothesis.given(weights=weights_of_rows, sizes=cuts)
def test_the_gradients_of_batches_have_that_of_the_weighted_mean_as_their_mean(estimator, weights, sizes):
    """Batches of any size, each of which counts as its rows: the law of an unbiased estimate."""
    weights = np.array(weights, np.float64)
    relative = (weights / weights.mean()).astype(np.float32)
    ends = np.cumsum(sizes)
    gradients = [
        estimate(estimator, ROWS[end - n : end], relative[end - n : end])[0] for n, end in zip(sizes, ends, strict=True)
    ]
    mean = np.average(np.array(gradients, np.float64), axis=0, weights=sizes)
    np.testing.assert_allclose(mean, weighted_gradient(estimator, ROWS, weights), atol=2e-6)


@each
def test_a_batch_of_zero_weight_makes_no_step(estimator):
    gradient, statistics = estimate(estimator, ROWS, np.zeros(12, np.float32))
    np.testing.assert_array_equal(gradient, np.zeros(UNITS))
    assert float(statistics.data_energy) == float(statistics.model_energy) == 0


@each
def test_a_constant_added_to_all_energies_does_not_change_the_gradient(estimator):
    def shifted(params, v):
        return energy(params, v) + 3 * jnp.sum(params["b"] ** 2)

    weights = np.linspace(0, 4, 12, dtype=np.float32)  # with mean 2
    gradient, _ = estimate(estimator, ROWS, weights)
    also, _ = estimate(dataclasses.replace(estimator, model=Model(shifted, turn)), ROWS, weights)
    np.testing.assert_allclose(also, gradient, atol=1e-5)


def test_weights_of_a_phase_gradient_count_by_their_ratios():
    gradient = jax.jit(phase_gradient(energy))
    weights = np.linspace(0, 4, 12, dtype=np.float32)
    expected = -np.average(ROWS, axis=0, weights=weights) + CHAINS.mean(axis=0)
    for scale in (1, 100):
        np.testing.assert_allclose(gradient(PARAMS, ROWS, CHAINS, scale * weights)["b"], expected, atol=1e-6)


# --- a run -------------------------------------------------------------------------------------------

ONES = np.repeat([[1.0], [0.0]], [100, 900], axis=0).astype(np.float32)
NINE = np.repeat([9.0, 1.0], [100, 900]).astype(np.float32)  # the weighted mean of ONES is 0.5
START = {"b": jnp.zeros(1)}


def batches(data, size, seed=0):
    """A loader that shuffles."""

    def of_epoch(epoch):
        order = np.random.default_rng((seed, epoch)).permutation(len(data.v))
        for i in range(0, len(order), size):
            yield Weighted(data.v[order[i : i + size]], data.weights[order[i : i + size]])

    return of_epoch


def found(estimator, data, size, epochs, rate, loader=False):
    source, options = (batches(data, size), {}) if loader else (data, {"batch_size": size})
    result = fit(START, sgd(rate), estimator, source, epochs=epochs, key=KEY, **options)
    return float(jax.nn.sigmoid(result.params["b"][0]))


learners = {
    "cd": contrastive_divergence(drawn),
    "pcd": persistent_contrastive_divergence(drawn, num_chains=100),
}


@pytest.mark.slow_unless("cd-1-False", "pcd-5-False", "cd-10-True")
@pytest.mark.parametrize(
    ("kind", "size", "loader"),
    [("cd", 1, False), ("pcd", 1, False), ("pcd", 5, False), ("cd", 10, True), ("pcd", 50, True), ("cd", 200, False)],
)
def test_a_run_finds_the_weighted_mean(kind, size, loader):
    """With small batches too, where a mean of ratios is 0.1 at size 1."""
    rate = 2e-3 * size**0.5
    epochs = max(4, round(16 * size / (rate * 1000)))  # 16 units of time
    assert found(learners[kind], Weighted(ONES, NINE), size, epochs, rate, loader) == pytest.approx(0.5, abs=0.03)


def test_twelve_thousand_sequences_worth_four_hundred():
    """60 families of 194 ones and 340 single zeros: one of the first counts as 1/194 of a row."""
    v = np.repeat([[1.0], [0.0]], [60 * 194, 340], axis=0).astype(np.float32)
    weights = np.repeat([1 / 194, 1.0], [60 * 194, 340])
    p = found(learners["pcd"], Weighted(v, weights), 100, 6, 0.03)
    assert p == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize("loader", [False, True], ids=["in memory", "loader"])
def test_the_history_has_weighted_means(loader):
    """Whatever the sum of the weights is."""
    data = Weighted(ROWS, np.arange(12.0, dtype=np.float32))
    parts = [Weighted(data.v[i : i + 5], data.weights[i : i + 5]) for i in (0, 5, 10)]
    source, options = (parts, {}) if loader else (data, {"batch_size": 5})
    result = fit(PARAMS, sgd(0.0), cd, source, epochs=1, key=KEY, **options)
    for name, v in {"data_energy": ROWS, "model_energy": np.roll(ROWS, 1, axis=1)}.items():
        energies = -v.astype(np.float64) @ np.asarray(PARAMS["b"], np.float64)
        np.testing.assert_allclose(result.history[name][0], np.average(energies, weights=data.weights), rtol=1e-5)


@pytest.mark.parametrize("zeros_first", [False, True])
def test_batches_of_zero_weight_leave_a_run_as_it_is(zeros_first):
    data = [Weighted(ROWS, np.ones(12, np.float32)), Weighted(ROWS[::-1].copy(), np.full(12, 2.0, np.float32))]
    nothing = [Weighted(1 - ROWS, np.zeros(12, np.float32))]
    expected = fit(PARAMS, sgd(0.1), cd, data, epochs=2, key=KEY)
    result = fit(PARAMS, sgd(0.1), cd, nothing + data if zeros_first else data + nothing, epochs=2, key=KEY)
    chex.assert_trees_all_equal(result.params, expected.params)
    np.testing.assert_allclose(result.history["data_energy"], expected.history["data_energy"], rtol=1e-6)
    assert int(result.outcome) == 0


def test_a_weight_of_two_is_a_row_twice_and_its_unit_is_free():
    counts = np.array([2, 1, 1, 0] * 3)
    runs = dict(epochs=3, key=KEY, batch_size=12)
    expected = fit(PARAMS, sgd(0.1), cd, np.repeat(ROWS, counts, axis=0), **runs)
    for weights in (counts, 7e3 * counts, (counts / 300).astype(np.float16)):
        result = fit(PARAMS, sgd(0.1), cd, Weighted(ROWS, weights), **runs)
        tolerance = 1e-3 if weights.dtype == np.float16 else 1e-5
        chex.assert_trees_all_close(result.params, expected.params, rtol=tolerance)
        np.testing.assert_allclose(result.history["data_energy"], expected.history["data_energy"], rtol=tolerance)


def test_weights_may_be_mapped():
    weights = np.abs(np.random.default_rng(1).normal(size=(2, 12))).astype(np.float32)

    def run(w):
        return fit(PARAMS, sgd(0.1), cd, Weighted(ROWS, w), epochs=2, batch_size=5, key=KEY).params

    assert_trees_close(jax.jit(jax.vmap(run))(weights), jax.tree.map(lambda *x: jnp.stack(x), *map(run, weights)))


# --- gradients of several batches --------------------------------------------------------------------


def test_accumulated_batches_count_by_their_rows():
    """Of nine rows the mean is 4, of one it is 9: a step of 4.5, and not of 6.5."""
    batch = [np.full((9, 1), 4, np.float32), np.full((1, 1), 9, np.float32)]
    mean = loss_gradient(lambda w, x: w * jnp.mean(x))
    result = fit(jnp.zeros(()), accumulate(sgd(1.0), 2), mean, batch, epochs=1, key=KEY)
    assert float(result.params) == pytest.approx(-4.5)


@pytest.mark.slow_unless("sizes0-cd", "sizes1-pt")
@each
@pytest.mark.parametrize("sizes", [(12,), (1, 6, 5)])
def test_a_step_on_the_parts_of_a_batch_is_one_on_the_batch(estimator, sizes):
    weights = np.linspace(0, 2, 12, dtype=np.float32)
    gradient, _ = estimate(estimator, ROWS, weights)
    optimizer = accumulate(sgd(1.0), len(sizes))
    chains = estimator.init(PARAMS, ROWS, KEY)
    state = TrainState(PARAMS, optimizer.init(PARAMS), chains)
    step = train_step(estimator, optimizer)
    for n, end in zip(sizes, np.cumsum(sizes), strict=True):
        state = state._replace(estimator_state=jax.tree.map(jnp.array, chains))
        state, _ = step(jax.tree.map(jnp.array, state), Weighted(ROWS[end - n : end], weights[end - n : end]), KEY)
    np.testing.assert_allclose(state.params["b"], PARAMS["b"] - gradient, atol=1e-6)


def test_a_step_inside_a_step_counts_the_rows_of_all():
    optimizer = accumulate(accumulate(sgd(1.0), 2), 2)
    state = optimizer.init(jnp.zeros(()))
    for g, rows in ((1.0, 3), (5.0, 1), (2.0, 5), (4.0, 7)):
        u, state = optimizer.update(jnp.array(g), state, rows=rows)
    assert float(u) == pytest.approx(-(1 * 3 + 5 + 2 * 5 + 4 * 7) / 16)


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(12), "fit: data.weights: expected some positive weight, all are 0"),
        (np.arange(12.0) - 1, r"fit: data.weights: expected nonnegative numbers, got -1.0 in row 0"),
        (np.r_[np.ones(11), np.inf], r"fit: data.weights: expected nonnegative numbers, got inf in row 11"),
        (np.ones((12, 1)), r"fit: data.weights: expected shape \(12,\)"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        fit(PARAMS, sgd(0.1), cd, Weighted(ROWS, weights), epochs=1, batch_size=6, key=KEY)


def test_a_later_batch_with_a_negative_weight_is_named():
    data = [Weighted(ROWS, np.ones(12)), Weighted(ROWS, -np.ones(12))]
    with pytest.raises(ValueError, match=r"fit: batch 1 of epoch 0.weights: expected nonnegative .* got -1.0 in row 0"):
        fit(PARAMS, sgd(0.1), cd, data, epochs=1, key=KEY)
