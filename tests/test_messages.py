"""Messages: wrong input is rejected where it enters, with a message that names the argument and tells what to do."""

import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Model,
    adam,
    average_parameters,
    chain,
    contrastive_divergence,
    early_stopping,
    fit,
    freeze,
    loss_gradient,
    power_law_decay,
    read_checkpoint,
    sgd,
    skip_nonfinite,
    train_step,
    warmup,
)
from paysage_jax.extend import Estimator
from tests.helpers.runs import DATA, KEY, PARAMS, ROWS, assert_identical, assert_trees_close, regression, stopping

RUN = dict(batch_size=ROWS, key=KEY)


def run(params=PARAMS, optimizer=sgd(0.1), estimator=regression, epochs=1, **options):  # noqa: B008
    return fit(params, optimizer, estimator, DATA, epochs=epochs, **(RUN | options))


def refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- arguments ---------------------------------------------------------------------------------------


def squares(params, batch):
    return jnp.zeros(())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "got None$"),
        (5, "got 5$"),
        (squares, r"got <function squares .*; use loss_gradient\(loss\) for a loss"),
        (loss_gradient, "got <class .*loss_gradient'>: call it$"),
    ],
    ids=["None", "number", "loss", "class"],
)
def test_an_argument_that_is_not_an_estimator_is_named(wrong, message):
    refuses(
        lambda: run(estimator=wrong),
        TypeError,
        f"^fit: estimator must be an estimator, with init and estimate, {message}",
    )
    refuses(lambda: train_step(wrong, sgd(0.1)), TypeError, f"^train_step: estimator must be .*{message}")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "params must be a pytree of arrays, got None"),
        ({"w": "x"}, r"params\['w'\]: expected an array of numbers, got 'x'"),
        ({"w": np.array([None])}, r"params\['w'\]: expected an array of numbers, got array\(\[None\]"),
        (np.array("x"), r"params: expected an array of numbers, got array\('x'"),
        (
            {"rng": jax.random.key(0)},
            r"params\['rng'\]: expected an array of numbers, got a PRNG key \(key<fry>\); exclude it.*nnx.Param",
        ),
    ],
    ids=["None", "text", "objects", "text array", "key"],
)
def test_parameters_that_are_not_numbers_are_named(params, message):
    refuses(lambda: run(params=params), TypeError, f"^fit: {message}")


@pytest.mark.parametrize("value", [None, "x", 1j, [None], np.array("x")], ids=repr)
@pytest.mark.parametrize(
    ("make", "name"),
    [(sgd, "sgd: learning_rate"), (lambda schedule: sgd(warmup(schedule, 3)), "warmup: schedule")],
    ids=["sgd", "warmup"],
)
def test_a_schedule_that_returns_no_number_is_named(make, name, value):
    message = f"^{name}: the schedule must return a real number, got {re.escape(repr(value))}"
    refuses(lambda: make(lambda step: value).init(PARAMS), TypeError, message)


def test_a_schedule_that_returns_several_numbers_is_named():
    message = r"^sgd: learning_rate: expected a scalar, got shape \(2,\)"
    refuses(lambda: sgd(lambda step: jnp.ones(2)).init(PARAMS), ValueError, message)


@pytest.mark.parametrize(
    "value",
    [np.array("x"), np.array(None), np.datetime64("2020"), np.str_("x"), jax.random.key(0)],
    ids=["text", "object", "date", "str", "key"],
)
def test_a_field_names_arrays_that_are_not_numbers(value):
    refuses(lambda: sgd(value), TypeError, r"^sgd: learning_rate must be a number in \[0, inf\), got")
    refuses(lambda: power_law_decay(0.1, steps_per_epoch=value), TypeError, "steps_per_epoch must be a")


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda params, batch: None, "None"),
        (lambda params, batch: "x", "'x'"),
        (lambda params, batch: (batch["y"] - params["b"]) ** 2, r"shape \(23,\) and dtype float32"),
        (lambda params, batch: jnp.sum(params["b"]).astype(int), r"shape \(\) and dtype int32"),
    ],
    ids=["None", "text", "vector", "integer"],
)
def test_a_loss_that_is_not_a_real_scalar_is_named(loss, got):
    message = rf"^loss\(params, batch\): expected a real scalar, got {got}"
    refuses(lambda: run(estimator=loss_gradient(loss)), TypeError, message)


def test_a_metric_that_returns_nothing_is_named():
    message = r"^fit: metrics\['m'\] must return arrays of numbers, got None"
    refuses(lambda: run(metrics={"m": lambda state, key: None}), TypeError, message)


# --- integer leaves: the advice of the message works --------------------------------------------------

MIXED = PARAMS | {"sizes": jnp.array([2, 3]), "on": jnp.array(True)}


def test_an_integer_leaf_is_refused_and_frozen_it_stays_as_it_is():
    """The message advises `freeze`; then the other leaves move as they would without the integer leaf."""
    message = r"params\['(on|sizes)'\]: expected a floating or complex dtype, got .* \(`freeze` keeps it out\)"
    refuses(lambda: run(MIXED), TypeError, message)
    inner = chain(adam(0.1), average_parameters(0.9))
    result = run(MIXED, skip_nonfinite(freeze(inner, lambda path: path in ("sizes", "on"))), epochs=2)
    assert_identical({k: result.params[k] for k in ("sizes", "on")}, {k: MIXED[k] for k in ("sizes", "on")})
    alone = run(PARAMS, inner, epochs=2)
    assert_trees_close({k: result.params[k] for k in PARAMS}, alone.params)


def test_two_phases_take_a_frozen_integer_leaf():
    model = Model(lambda p, v: -v["x"] @ p["w"] + 0 * v["y"] * p["b"], lambda p, v, key: v)
    optimizer = freeze(sgd(0.1), lambda path: path in ("sizes", "on"))
    assert_identical(run(MIXED, optimizer, contrastive_divergence(model)).params["sizes"], MIXED["sizes"])


# --- metrics and early stopping that come and go -----------------------------------------------------


def total(state, key):
    return jnp.sum(state.params["w"])


def seven(state, key):
    return jnp.int32(7)


NEW = {"metrics": {"total": total, "seven": seven}, "early_stopping": early_stopping("total", patience=100)}


def resumed_by(way, folder):
    """Calls that resume from one another: from their results, or from checkpoints."""
    last: list = [None]

    def go(**options):
        options |= {"checkpoints": folder} if way == "checkpoints" else {"resume": last[0]}
        last[0] = run(optimizer=adam(0.1), **options)
        return last[0]

    return go


@pytest.mark.slow_unless("resume")
@pytest.mark.parametrize("way", ["resume", "checkpoints"])
def test_metrics_and_early_stopping_may_be_added_and_removed_on_resume(way, tmp_path):
    """Earlier rows have no value: NaN, or the largest integer. The run itself equals an uninterrupted one."""
    go = resumed_by(way, tmp_path)
    go(epochs=2)
    added = go(epochs=4, **NEW)
    np.testing.assert_array_equal(added.history["epoch"], [1, 2, 3, 4])
    np.testing.assert_array_equal(np.isnan(added.history["total"]), [True, True, False, False])
    np.testing.assert_array_equal(added.history["seven"], [2**31 - 1] * 2 + [7] * 2)
    assert added.best.epoch in (3, 4)
    np.testing.assert_allclose(added.best.value, np.nanmin(added.history["total"]))
    removed = go(epochs=5, metrics={"seven": seven})
    assert removed.history.keys() == {"epoch", "learning_rate", "loss", "seven"}
    np.testing.assert_array_equal(removed.history["seven"], [2**31 - 1] * 2 + [7] * 3)
    uncut = run(optimizer=adam(0.1), epochs=5)
    assert_identical(removed.state, uncut.state)
    np.testing.assert_array_equal(removed.history["loss"], uncut.history["loss"])


def test_a_metric_may_be_added_under_vmap():
    first = jax.vmap(lambda rate: run(optimizer=sgd(rate)))(jnp.array([0.1, 0.2]))
    go_on = jax.vmap(lambda rate, before: run(optimizer=sgd(rate), epochs=2, resume=before, metrics={"total": total}))
    second = go_on(jnp.array([0.1, 0.2]), first)
    np.testing.assert_array_equal(np.isnan(second.history["total"]), [[True, False]] * 2)


def test_a_metric_that_changed_is_named_still():
    first = run(metrics={"m": total})
    refuses(lambda: run(epochs=2, resume=first, metrics={"m": seven}), ValueError, "^fit: metric m of resume has")


# --- folders of checkpoints --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints of epochs 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three")
    run(epochs=3, checkpoints=folder, early_stopping=stopping())
    return folder


def damaged(three, folder, steps, file):
    shutil.copytree(three, folder)
    for step in steps:
        (folder / str(step) / file).write_text("{")
    return folder


@pytest.mark.parametrize("file", ["about/metadata", "leaves/_METADATA"])
def test_a_damaged_checkpoint_names_the_older_ones_and_what_to_do(file, three, tmp_path):
    go_on = partial(run, epochs=4, early_stopping=stopping())
    folder = damaged(three, tmp_path / "run", [3], file)
    message = rf"^fit: the checkpoint {folder}/3 is damaged: .* that can be read: \[2, 1\]. "
    refuses(lambda: go_on(checkpoints=folder), ValueError, message + f"To resume from epoch 2, delete {folder}/3.$")
    advice = r"read_checkpoint\(directory, epoch=2\) reads the newest"
    message = rf"^read_checkpoint: the checkpoint {folder}/3 is damaged: .*; {advice}"
    refuses(lambda: read_checkpoint(folder), ValueError, message)
    assert read_checkpoint(folder, epoch=2)["epochs_done"] == 2
    shutil.rmtree(folder / "3")
    assert_identical(go_on(checkpoints=folder), go_on())


def test_all_damaged_checkpoints_before_a_good_one_are_named(three, tmp_path):
    folder = damaged(three, tmp_path / "two", [2, 3], "about/metadata")
    message = rf"read: \[1\]. To resume from epoch 1, delete {folder}/2 and {folder}/3.$"
    refuses(lambda: run(epochs=4, checkpoints=folder), ValueError, message)
    folder = damaged(three, tmp_path / "all", [1, 2, 3], "about/metadata")
    refuses(lambda: run(epochs=4, checkpoints=folder), ValueError, "read: none. To start again, delete .*1 and .*2")


@pytest.mark.parametrize("url", ["gs://bucket/run", Path("gs://bucket/run"), "s3://bucket/run", b"hdfs://a/b"], ids=str)
def test_a_url_is_refused_at_the_call(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuses(lambda: run(checkpoints=url), ValueError, "^Checkpoints: directory must be a local directory, got the URL")
    refuses(
        lambda: read_checkpoint(url), ValueError, "^read_checkpoint: directory must be a local directory, got the URL"
    )
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_a_path_is_named():
    refuses(lambda: run(checkpoints=5), TypeError, "^Checkpoints: directory must be the path of a directory, got 5$")
    refuses(
        lambda: read_checkpoint(None),
        TypeError,
        "^read_checkpoint: directory must be the path of a directory, got N",
    )


def test_an_estimator_needs_no_base():
    """Any object with init and estimate is an estimator."""
    assert not isinstance(Pair(), Estimator)
    result = run(estimator=Pair())
    np.testing.assert_allclose(result.params["w"], -0.1, rtol=1e-6)


@jax.tree_util.register_static
class Pair:
    """Gradients of ones."""

    def init(self, params, batch, key):
        return ()

    def estimate(self, params, batch, estimator_state, key):
        return jax.tree.map(jnp.ones_like, params), (), {}
