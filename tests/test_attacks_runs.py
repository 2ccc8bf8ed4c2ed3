"""Runs that fail: callbacks that write, loaders that raise, skipped gradients, resumed early stopping, mistakes."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Model,
    Outcome,
    TrainState,
    accumulate,
    adam,
    contrastive_divergence,
    early_stopping,
    fit,
    parallel_tempering,
    per_epoch,
    persistent_contrastive_divergence,
    rbm,
    read_checkpoint,
    sgd,
    skip_nonfinite,
    train_step,
)
from paysage_jax.extend import Estimator
from tests.helpers.runs import (
    DATA,
    IMAGES,
    KEY,
    MACHINE,
    PARAMS,
    ROWS,
    assert_identical,
    batches_of,
    each_kind,
    how,
    regression,
    squares,
)

MODEL = rbm.RBM()

whole = partial(fit, PARAMS, sgd(0.1), regression, DATA, batch_size=ROWS, key=KEY)  # one step an epoch
by_batch = partial(fit, PARAMS, sgd(0.1), regression, key=KEY)
cd = contrastive_divergence(MODEL)
pcd = persistent_contrastive_divergence(MODEL)
tempered = parallel_tempering(MODEL, betas=(0.0, 1.0))

# --- callbacks ---------------------------------------------------------------------------------------


def pops(result):
    result.history.pop("epoch")


def writes_text(result):
    result.history["note"] = "text"


def replaces_parameters(result):
    result.params["w"] = np.full(3, 7.0, np.float32)
    del result.params["b"]


@pytest.mark.slow_unless("pops")
@pytest.mark.parametrize("callback", [pops, writes_text, replaces_parameters])
def test_a_callback_may_write_to_what_it_is_given_and_changes_nothing(callback, tmp_path):
    result = whole(epochs=2, callback=callback, checkpoints=tmp_path)
    assert_identical(result, whole(epochs=2))
    chex.assert_trees_all_equal(read_checkpoint(tmp_path)["history"], result.history)
    assert_identical(whole(epochs=4, checkpoints=tmp_path), whole(epochs=4))


# --- what raises -------------------------------------------------------------------------------------


def test_where_not_even_the_first_batch_can_be_read_the_exception_carries_what_was_to_be_resumed():
    def fails(epoch):
        raise OSError("the disk is gone")

    half = by_batch(batches_of(DATA), epochs=2)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        by_batch(fails, epochs=4, resume=half)
    again = by_batch(batches_of(DATA), epochs=4, resume=raised.value.result)
    assert_identical(again, by_batch(batches_of(DATA), epochs=4))


@pytest.mark.parametrize("estimator", [regression, cd])
def test_a_batch_without_rows_is_named(estimator):
    """Its mean loss is NaN, which also made the loss of the epoch NaN."""
    params, data = (PARAMS, DATA) if estimator is regression else (MACHINE, IMAGES)
    batches = batches_of(data)
    empty = jax.tree.map(lambda x: x[:0], data)
    with pytest.raises(ValueError, match="fit: batch 1 of epoch 1: expected rows, got 0") as raised:
        fit(params, sgd(0.1), estimator, lambda epoch: [batches[0], empty] if epoch else batches, epochs=3, key=KEY)
    assert how(raised.value.result) == (1, Outcome.INTERRUPTED)


# --- skipped gradients -------------------------------------------------------------------------------


class Scripted(Estimator):
    """Gradients of ones, but NaN at the step number `nan_at`."""

    nan_at: jax.Array

    def init(self, params, batch, key):
        return jnp.int32(0)

    def estimate(self, params, batch, estimator_state, key):
        bad = jnp.any(estimator_state == self.nan_at)
        return jax.tree.map(lambda p: jnp.where(bad, jnp.nan, jnp.ones_like(p)), params), estimator_state + 1, {}


@pytest.mark.slow_unless("accumulate-iterable", "warm up-in memory")
@each_kind
@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        (skip_nonfinite(accumulate(sgd(0.1), 8)), 19 // 8),  # none in the first epoch of five batches
        (skip_nonfinite(sgd(per_epoch(lambda epoch: jnp.where(epoch < 1, 0.0, 0.1)))), 15),  # the rate begins at 0
    ],
    ids=["accumulate", "warm up"],
)
def test_an_epoch_without_movement_that_skips_one_gradient_of_five_does_not_end_the_run(kind, optimizer, steps):
    data, size = kind(DATA)
    result = fit(PARAMS, optimizer, Scripted(jnp.array([1])), data, epochs=4, key=KEY, **size)
    assert how(result) == (4, Outcome.EPOCHS_EXHAUSTED)
    np.testing.assert_allclose(result.params["w"], -0.1 * steps, rtol=1e-5)
    assert result.optimizer_state.skipped == 1
    lost = fit(PARAMS, optimizer, Scripted(jnp.arange(5)), data, epochs=4, key=KEY, **size)
    assert how(lost) == (0, Outcome.NON_FINITE)


# --- early stopping that resumes ---------------------------------------------------------------------


def likeness(state, key):
    return -squares(state.params, DATA)


def stop_on(metric, **options):
    return {"metrics": {metric: likeness}, "early_stopping": early_stopping(metric, patience=3, **options)}


@pytest.mark.slow_unless("result")
@pytest.mark.parametrize("way", ["result", "checkpoints"])
def test_early_stopping_on_another_metric_forgets_the_best_of_the_first(way, tmp_path):
    """The loss is positive and the likeness negative: no likeness is above the best loss."""
    more = {"checkpoints": tmp_path} if way == "checkpoints" else {}
    first = whole(epochs=3, early_stopping=early_stopping("loss", patience=3), **more)
    assert first.best.epoch == 3
    more = more or {"resume": first}
    result = whole(epochs=9, **stop_on("likeness", maximize=True), **more)
    assert how(result) == (9, Outcome.EPOCHS_EXHAUSTED)
    assert (result.best.epoch, result.best.value) == (9, result.history["likeness"][-1])
    chex.assert_trees_all_equal(result.best.params, result.params)


def test_a_run_that_optimized_its_metric_in_the_wrong_direction_resumes_in_the_right_one():
    wrong = whole(epochs=9, **stop_on("likeness"))
    assert how(wrong) == (4, Outcome.NOT_IMPROVING)
    assert wrong.best.epoch == 1
    right = whole(epochs=9, **stop_on("likeness", maximize=True), resume=wrong)
    assert how(right) == (9, Outcome.EPOCHS_EXHAUSTED)
    assert right.best.epoch == 9
    ended = whole(epochs=9, **stop_on("likeness"), resume=wrong)
    assert how(ended) == (4, Outcome.NOT_IMPROVING)
    ended = whole(epochs=4, **stop_on("likeness", maximize=True), resume=wrong)
    assert (ended.best.epoch, ended.best.value) == (4, wrong.history["likeness"][-1])
    chex.assert_trees_all_equal(ended.best.params, wrong.params)


def test_the_best_parameters_are_those_of_their_measurement_also_if_the_run_was_cut_between_two():
    def fails(epoch):
        if epoch == 5:
            raise OSError("the disk is gone")
        return batches_of(DATA)

    run = partial(by_batch, metrics_every=2, metrics={"likeness": likeness})
    with pytest.raises(OSError, match="the disk is gone") as raised:
        run(fails, epochs=6, early_stopping=early_stopping("likeness"))
    stopping = early_stopping("likeness", maximize=True)
    result = run(batches_of(DATA), epochs=5, early_stopping=stopping, resume=raised.value.result)
    np.testing.assert_allclose(likeness(result.best, KEY), result.best.value, rtol=1e-5)


# --- tempering ---------------------------------------------------------------------------------------


def test_tempering_leaves_integers_as_they_are():
    """An integer parameter, as a number of units, is the same at all temperatures."""
    params = {"machine": MACHINE, "hidden": jnp.array([2])}

    def energy(params, v):
        return params["hidden"][0] / 2 * MODEL.energy(params["machine"], v)

    def gibbs(params, v, key):
        return MODEL.transition(params["machine"], v, key)

    def ladders_and_rates(estimator, params):
        ladders = estimator.init(params, IMAGES, KEY)
        _, ladders, statistics = jax.jit(estimator.estimate)(params, IMAGES, ladders, KEY)
        return ladders, statistics.swap_rates

    whole_numbers = ladders_and_rates(parallel_tempering(Model(energy, gibbs), betas=(0.0, 1.0)), params)
    chex.assert_trees_all_equal(whole_numbers, ladders_and_rates(tempered, MACHINE))


# --- mistakes ----------------------------------------------------------------------------------------


class Pair(Estimator):
    """An estimator that returns no statistics."""

    def init(self, params, batch, key):
        return ()

    def estimate(self, params, batch, estimator_state, key):
        return params, estimator_state


def mean_energy(params, v):
    return MODEL.energy(params, v).mean()


on_images = partial(fit, MACHINE, sgd(0.1), data=IMAGES, batch_size=10, key=KEY)
sweep = jax.vmap(lambda rate: fit(PARAMS, sgd(rate), regression, DATA, epochs=1, batch_size=ROWS, key=KEY))


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (
            lambda: whole(epochs=np.array([1, 2])),
            TypeError,
            r"epochs must be one positive integer, got array\(\[1, 2",
        ),
        (
            lambda: whole(epochs=10**10),
            ValueError,
            "epochs must be a positive integer of at most 2147483647, got 10",
        ),
        (lambda: whole(epochs=1, key=jax.random.split(KEY)), TypeError, "fit: key must be one key.*single key"),
        (lambda: whole(epochs=1, key=np.zeros(2)), TypeError, "fit: key must be one key.*uint32"),
        (lambda: on_images(estimator=Pair(), epochs=1), TypeError, r"Pair.estimate: expected \(gradient, .* 2 values"),
        (
            lambda: on_images(estimator=parallel_tempering(Model(mean_energy, MODEL.transition)), epochs=1),
            ValueError,
            r"energy\(params, v\): expected shape \(10,\)",
        ),
        (
            lambda: on_images(estimator=pcd, epochs=2, resume=on_images(estimator=cd, epochs=1)),
            ValueError,
            "estimator_state: expected leaves with one common leading batch axis, got no leaves",
        ),
        (
            lambda: train_step(tempered, sgd(0.1))(TrainState(MACHINE, sgd(0.1).init(MACHINE), ()), IMAGES, KEY),
            ValueError,
            "estimator_state: expected leaves",
        ),
        (
            lambda: whole(epochs=2, resume=sweep(jnp.array([0.1, 0.2]))),
            ValueError,
            "fit: resume must be one run, got 2 runs of a sweep; select one",
        ),
        (
            lambda: train_step(regression, adam(0.1))((PARAMS, adam(0.1).init(PARAMS), ()), DATA, KEY),
            TypeError,
            r"step\(state, batch, key\): state must be a TrainState, got tuple",
        ),
    ],
)
def test_mistakes_are_named(run, error, message):
    with pytest.raises(error, match=message):
        run()


def test_the_home_directory_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    whole(epochs=1, checkpoints="~/run")
    assert read_checkpoint("~/run")["epochs_done"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
