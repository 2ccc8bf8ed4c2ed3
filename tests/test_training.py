"""The step and the epochs: against plain Python loops, the class shim and scikit-learn; mapped by `jax.vmap`."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

import paysage_jax
from paysage_jax import (
    Outcome,
    TrainState,
    adam,
    add_decayed_weights,
    chain,
    fit,
    loss_gradient,
    per_epoch,
    persistent_contrastive_divergence,
    power_law_decay,
    rbm,
    sgd,
    track_convergence,
    train_step,
)
from paysage_jax.extend import Estimator, Transformation, static
from tests.helpers.problems import GOLDEN, MANIFEST, classic_optimizer, golden, row
from tests.helpers.runs import (
    BATCH,
    DATA,
    IMAGES,
    KEY,
    KINDS,
    PARAMS,
    ROWS,
    assert_trees_close,
    batches_of,
    each_kind,
    regression,
    squares,
    train,
)

# --- the step ----------------------------------------------------------------------------------------


def start(estimator, optimizer, params, batch):
    params = jax.tree.map(jnp.array, params)  # a state is donated: it must not be that of another test
    return TrainState(params, optimizer.init(params), estimator.init(params, batch, KEY))


def test_a_step_is_the_estimate_the_update_and_its_sum():
    optimizer, batch = sgd(0.1), jax.tree.map(lambda x: x[:BATCH], DATA)
    state, statistics = train_step(regression, optimizer)(start(regression, optimizer, PARAMS, batch), batch, KEY)
    gradient = jax.grad(squares)(PARAMS, batch)
    assert_trees_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, gradient), atol=1e-6)
    np.testing.assert_allclose(statistics.loss, squares(PARAMS, batch), rtol=1e-6)
    assert int(state.optimizer_state.step) == 1


def test_a_step_is_traced_once_and_donates_its_state():
    loss = chex.assert_max_traces(lambda params, batch: squares(params, batch), n=1)
    estimator, batch = loss_gradient(loss), jax.tree.map(lambda x: x[:BATCH], DATA)
    for rate in (0.1, 0.2):
        optimizer = chain(sgd(per_epoch(power_law_decay(rate))), track_convergence(rate))
        before = start(estimator, optimizer, PARAMS, batch)
        for epoch in range(2):
            state, _ = train_step(estimator, optimizer)(before, batch, KEY, epoch=epoch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
            np.testing.assert_allclose(state.optimizer_state[0].learning_rate, rate / (1 + 0.1 * epoch), rtol=1e-6)
            before = state


def test_a_step_of_optax():
    optimizer, batch = optax.sgd(0.1), jax.tree.map(lambda x: x[:BATCH], DATA)
    ours, _ = train_step(regression, sgd(0.1))(start(regression, sgd(0.1), PARAMS, batch), batch, KEY)
    theirs, _ = train_step(regression, optimizer)(start(regression, optimizer, PARAMS, batch), batch, KEY, epoch=0)
    chex.assert_trees_all_close(theirs.params, ours.params, rtol=1e-6)


def test_train_step_returns_the_memory_it_was_given():
    data = jax.random.bernoulli(jax.random.key(0), shape=(20, 64)).astype(float)
    params = rbm.RBM().init(data, 16, jax.random.key(1))
    optimizer = adam(0.01)
    estimator = persistent_contrastive_divergence(rbm.RBM())
    state = TrainState(params, optimizer.init(params), estimator.init(params, data, jax.random.key(2)))

    def addresses(state):
        return {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size > 1}

    before = addresses(state)
    state, _ = train_step(estimator, optimizer)(state, data, jax.random.key(3))
    assert addresses(state) == before


# --- the run is a plain loop -------------------------------------------------------------------------


@each_kind
def test_fit_is_a_loop_over_the_batches(kind):
    """Gradient descent on squares, written out in float64."""
    data, options = kind(DATA)
    result = fit(PARAMS, sgd(0.1), regression, data, epochs=3, key=KEY, shuffle=False, **options)
    w, b = np.zeros(3), 1.0
    for _ in range(3):
        for batch in batches_of(jax.tree.map(np.float64, DATA)):
            residuals = batch["x"] @ w + b - batch["y"]
            w, b = w - 0.2 * batch["x"].T @ residuals / len(residuals), b - 0.2 * residuals.mean()
    assert_trees_close(result.params, {"w": w, "b": np.array([b])}, atol=1e-6)
    assert int(result.epochs_done) == 3
    assert result.outcome == Outcome.EPOCHS_EXHAUSTED
    assert int(result.optimizer_state.step) == 15


@each_kind
def test_an_optimizer_of_optax_in_a_loop_of_optax(kind):
    data, options = kind(DATA)
    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
        optimizer = optax.adam(0.1)
        result = fit(PARAMS, optimizer, regression, data, epochs=2, key=KEY, shuffle=False, **options)

        @jax.jit
        def update(params, state, batch):
            updates, state = optimizer.update(jax.grad(squares)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(2):
            for batch in batches_of(DATA):
                params, state = update(params, state, batch)
    assert_trees_close(result.params, params, atol=1e-6)
    assert_trees_close(result.optimizer_state, state, atol=1e-6)


def test_data_may_be_an_array_a_tuple_or_a_dict():
    def fit_to(data, loss):
        estimator = loss_gradient(loss)
        return fit(jnp.zeros(3), sgd(0.1), estimator, data, epochs=1, batch_size=BATCH, key=KEY, shuffle=False).params

    def of_array(w, x):
        return jnp.mean((x @ w - 1) ** 2)

    array = fit_to(DATA["x"], of_array)
    assert jnp.any(array != 0)
    chex.assert_trees_all_close(fit_to((DATA["x"], DATA["y"]), lambda w, batch: of_array(w, batch[0])), array)
    chex.assert_trees_all_close(fit_to(DATA, lambda w, batch: of_array(w, batch["x"])), array)


def test_logistic_regression_is_that_of_scikit_learn():
    """Full batches until the steps are tiny; the intercept is not penalised."""
    x, y = DATA["x"], (DATA["y"] > 0).astype(np.float32)
    decay = 0.1

    def loss(params, batch):
        x, y = batch
        logits = x @ params["w"] + params["b"]
        return jnp.mean(jax.nn.softplus(logits) - y * logits)

    optimizer = chain(add_decayed_weights(decay, lambda path: path == "w"), sgd(1.0), track_convergence(1e-6))
    result = fit(PARAMS, optimizer, loss_gradient(loss), (x, y), epochs=2000, batch_size=ROWS, key=KEY)
    assert result.outcome == Outcome.CONVERGED
    solution = LogisticRegression(C=1 / (decay * ROWS), tol=1e-10).fit(x, y)
    assert_trees_close(result.params, {"w": solution.coef_[0], "b": solution.intercept_}, atol=2e-5)


# --- order, keys, epochs -----------------------------------------------------------------------------


class Recorder(Estimator):
    """Gradients of zero; the estimator's state records all batches and a draw from every key."""

    steps: int = static(default=0)

    def init(self, params, batch, key):
        return jnp.int32(0), jnp.full((self.steps, BATCH), -1), jnp.zeros(self.steps)

    def estimate(self, params, batch, estimator_state, key):
        step, rows, draws = estimator_state
        rows = rows.at[step, : len(batch)].set(batch)
        draws = draws.at[step].set(jax.random.uniform(key))
        return jax.tree.map(jnp.zeros_like, params), (step + 1, rows, draws), None


def record(key, epochs=3, **options):
    """(the rows of every epoch in the order seen, the draws of every step)."""
    recorder = Recorder(5 * epochs)
    data = np.arange(ROWS, dtype=np.int32)
    result = fit(jnp.zeros(1), sgd(1.0), recorder, data, epochs=epochs, batch_size=BATCH, key=key, **options)
    step, rows, draws = result.estimator_state
    assert int(step) == 5 * epochs
    rows = np.asarray(rows).reshape(epochs, -1)
    assert np.all(rows[:, ROWS:] == -1)  # the ragged batch comes last
    return rows[:, :ROWS], np.asarray(draws)


def test_shuffling_sees_every_row_once_an_epoch_in_a_new_order():
    orders, _ = record(KEY)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(ROWS), (3, 1)))
    assert len({tuple(order) for order in [*orders, range(ROWS)]}) == 4
    other_orders, _ = record(jax.random.key(1))
    assert not np.any(np.all(other_orders == orders, axis=1))
    np.testing.assert_array_equal(record(KEY)[0], orders)


def test_without_shuffling_the_order_is_that_of_the_data():
    np.testing.assert_array_equal(record(KEY, shuffle=False)[0], np.tile(np.arange(ROWS), (3, 1)))


def test_every_step_has_a_separate_key():
    draws = np.concatenate([record(key)[1] for key in (KEY, jax.random.key(1))])
    assert len(set(draws.tolist())) == len(draws) == 30


@each_kind
def test_a_schedule_by_epoch_sees_the_epoch(kind):
    """A constant gradient of 1 and five steps an epoch: p falls by 5 (1 + 1/2 + 1/3 + 1/4)."""
    data, options = kind(DATA)
    optimizer = sgd(per_epoch(power_law_decay(1.0, decay_rate=1.0)))
    estimator = loss_gradient(lambda params, batch: jnp.sum(params))
    result = fit(jnp.zeros(1), optimizer, estimator, data, epochs=4, key=KEY, **options)
    np.testing.assert_allclose(result.params, [-5 * (1 + 1 / 2 + 1 / 3 + 1 / 4)], rtol=1e-6)
    np.testing.assert_allclose(result.optimizer_state.learning_rate, 1 / 4, rtol=1e-6)


# --- how a run ends ----------------------------------------------------------------------------------


class Recorded(Estimator):
    """Recorded gradients: one per step, whatever the data."""

    gradients: Any

    def init(self, params, batch, key):
        return jnp.int32(0)

    def estimate(self, params, batch, estimator_state, key):
        return row(self.gradients, estimator_state), estimator_state + 1, None


class Model:
    """The same gradients with the interface of paysage's models."""

    def __init__(self, params, gradients):
        self.params, self.gradients, self.step = params, gradients, 0

    def gradient(self, v_data, v_model):
        self.step += 1
        return row(self.gradients, self.step - 1)

    def parameter_update(self, delta):
        self.params = jax.tree.map(np.subtract, self.params, delta)


VANISHING = [case for case in MANIFEST["cases"] if case["id"].endswith("_default_vanish")]


@pytest.mark.slow_unless("ADAM")
@pytest.mark.parametrize("case", VANISHING, ids=[case["optimizer"] for case in VANISHING])
def test_fit_stops_at_the_epoch_at_which_a_loop_with_the_class_does(case):
    """Six epochs of ten steps; the tolerances are between the recorded magnitudes at the ends of two epochs."""
    start = row(golden("optimizers", case["id"], "param"), 0)
    gradients = golden("optimizers", case["id"], "grad")
    magnitudes = GOLDEN["optimizers"][f"{case['id']}/magnitude"][9::10]
    data = np.zeros((10, 1), np.float32)
    stops = set()
    for tolerance in [*np.sqrt(magnitudes[:-1] * magnitudes[1:]), case["tolerance"], 0.0]:
        model = Model(start, gradients)
        optimizer = getattr(paysage_jax, case["optimizer"])(model, tolerance=float(tolerance))
        epochs_done, converged = 0, False
        while epochs_done < 6 and not converged:
            for _ in range(10):
                optimizer.update(model, None, None, epochs_done)
            epochs_done += 1
            converged = optimizer.check_convergence()

        tracked = chain(classic_optimizer(case), track_convergence(float(tolerance)))
        result = fit(start, tracked, Recorded(gradients), data, epochs=6, batch_size=1, key=KEY, shuffle=False)
        assert int(result.epochs_done) == epochs_done
        assert result.outcome == (Outcome.CONVERGED if converged else Outcome.EPOCHS_EXHAUSTED)
        assert int(result.estimator_state) == model.step == 10 * epochs_done
        assert_trees_close(result.params, model.params, atol=1e-5)
        stops.add((epochs_done, converged))
    assert len(stops) >= 4


@each_kind
def test_a_run_that_diverges_ends_as_non_finite(kind):
    data, options = kind(DATA)
    optimizer = chain(sgd(1e30), track_convergence(np.inf))
    result = fit(PARAMS, optimizer, regression, data, epochs=9, key=KEY, **options)
    assert result.outcome == Outcome.NON_FINITE
    assert int(result.epochs_done) == 0
    chex.assert_trees_all_equal(result.params, PARAMS)


def test_a_bad_gradient_without_protection_ends_the_run():
    data = DATA | {"y": np.where(np.arange(ROWS) == 7, np.nan, DATA["y"]).astype(np.float32)}
    result = fit(PARAMS, adam(0.1), regression, data, epochs=3, batch_size=BATCH, key=KEY)
    assert (int(result.epochs_done), result.outcome) == (0, Outcome.NON_FINITE)


# --- everything at once: a Boltzmann machine, with chance in every part of the run -------------------


@pytest.mark.slow_unless("threefry2x32")
@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_iterable_and_in_memory_data_end_bit_for_bit_the_same(generator):
    key = jax.random.key(1, impl=generator)
    one, other = (train(*kind(IMAGES), shuffle=False, key=key) for kind in KINDS.values())
    chex.assert_trees_all_close(one.history, other.history, rtol=1e-6)  # sums of statistics may be contracted
    chex.assert_trees_all_equal(one._replace(history=()), other._replace(history=()))


def test_center_gets_the_statistics():
    """Its offsets for the visible layer are running means of the batches' means."""
    offset = None
    for batch in 4 * batches_of(IMAGES):
        offset = batch.mean(0) if offset is None else 0.9 * offset + 0.1 * batch.mean(0)
    centring = train(*KINDS["in memory"](IMAGES), shuffle=False).optimizer_state.inner[0]
    np.testing.assert_allclose(centring.offsets["layers/0/loc"], offset, rtol=1e-5)


@each_kind
def test_one_nan_gradient_is_skipped_and_counted_once(kind):
    result = train(*kind(IMAGES), nan_at=7)
    assert all(jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(result.params))
    assert result.outcome == Outcome.EPOCHS_EXHAUSTED
    assert int(result.optimizer_state.skipped) == 1
    assert int(result.optimizer_state.inner[0].step) == 15
    assert int(result.estimator_state[0]) == 16


@pytest.mark.slow
def test_a_sweep_over_learning_rates_and_keys_equals_single_runs():
    rates, keys = jnp.array([0.01, 0.1, 0.5]), jax.random.split(KEY, 2)
    run = KINDS["in memory"](IMAGES)
    over_keys = jax.vmap(lambda rate, key: train(*run, learning_rate=rate, key=key), (None, 0))
    sweep = jax.vmap(over_keys, (0, None))(rates, keys)
    for i, rate in enumerate(rates.tolist()):
        for j, key in enumerate(keys):
            one = jax.tree.map(lambda x, i=i, j=j: x[i, j], sweep)
            assert_trees_close(one, train(*run, learning_rate=rate, key=key), atol=1e-5)
    assert len(np.unique(np.asarray(sweep.history["draw"][0]))) == 8


@pytest.mark.slow
def test_members_of_a_sweep_stop_each_at_its_own_epoch():
    def run(rate):
        optimizer = chain(sgd(rate), track_convergence(1e-3))
        return fit(PARAMS, optimizer, regression, DATA, epochs=60, batch_size=ROWS, key=KEY, shuffle=False)

    rates = jnp.array([0.5, 0.2, 1e-9])
    sweep = jax.vmap(run)(rates)
    for i, rate in enumerate(rates):
        alone = run(rate)
        assert int(sweep.epochs_done[i]) == int(alone.epochs_done)
        assert sweep.outcome[i] == Outcome.CONVERGED
        assert_trees_close(row(sweep.params, i), alone.params)
    assert len(set(sweep.epochs_done.tolist())) == 3


# --- what belongs to the caller ----------------------------------------------------------------------


class Anchored(Transformation):
    """Gradient descent with a pull to the first parameters, which it keeps."""

    def init(self, params):
        return params

    def apply(self, updates, state, params, **extra):
        return jax.tree.map(lambda g, p, start: -0.1 * (g + p - start), updates, params, state), state


@each_kind
def test_a_state_may_hold_the_parameters_themselves(kind):
    data, options = kind(DATA)
    result = fit(PARAMS, Anchored(), regression, data, epochs=2, key=KEY, **options)
    chex.assert_trees_all_equal(result.optimizer_state, PARAMS)


@pytest.mark.parametrize("kind", [int, np.int32, np.array, jnp.int32], ids=lambda kind: kind.__name__)
def test_an_outcome_may_be_looked_up_as_a_result_has_it(kind):
    assert Outcome(kind(2)) is Outcome.NON_FINITE
    with pytest.raises(ValueError, match="not a valid Outcome"):
        Outcome(kind(99))
