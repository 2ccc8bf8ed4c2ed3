"""Checkpoints: repeated calls, runs killed or interrupted anywhere, checkpoints that do not fit, and their contents."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from paysage_jax import Checkpoints, Outcome, adam, chain, classic, fit, loss_gradient, read_checkpoint, sgd
from paysage_jax._train import checkpoints as room
from paysage_jax.extend import Transformation
from tests.helpers import kills
from tests.helpers.runs import (
    BATCH,
    DATA,
    IMAGES,
    KEY,
    KINDS,
    PARAMS,
    a_draw,
    assert_identical,
    batches_of,
    compilations,
    each_kind,
    python,
    regress,
    regression,
    stopping,
    train,
)

in_memory = KINDS["in memory"]
EARLIER = Path(__file__).parent / "checkpoint_0_2"


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


# --- the same call again -----------------------------------------------------------------------------


@pytest.mark.slow_unless("in memory")
@each_kind
def test_repeating_the_call_resumes_and_ends_bit_for_bit_like_an_uninterrupted_run(kind, tmp_path):
    """A run with random numbers in every part."""
    data, options = kind(IMAGES)
    uncut = train(data, options)
    run = partial(train, data, options, checkpoints=Checkpoints(tmp_path / "run", keep=2))
    run(epochs=1)
    assert_identical(run(epochs=3), train(data, options, epochs=3))
    assert_identical(run(), uncut)
    assert steps(tmp_path / "run") == [3, 4]
    with compilations() as programs:
        assert_identical(run(), uncut)  # it has ended: nothing is computed
    assert not [name for name in programs if "run_epochs" in name or "update" in name]


def test_checkpoints_are_written_every_so_many_epochs_and_at_the_end(tmp_path):
    expected = regress(in_memory)
    assert_identical(regress(in_memory, checkpoints=Checkpoints(tmp_path / "run", every=3, keep=10)), expected)
    assert steps(tmp_path / "run") == [3, 6, 8]
    assert read_checkpoint(tmp_path / "run", 6)["epochs_done"] == 6


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (dict(tolerance=np.inf), (1, Outcome.CONVERGED)),
        (dict(early_stopping=stopping(2, 1e9)), (3, Outcome.NOT_IMPROVING)),
        (dict(nan_at=17), (3, Outcome.NON_FINITE)),
        (dict(nan_at=2), (0, Outcome.NON_FINITE)),
        (dict(callback=lambda result: result.epochs_done == 2), (2, Outcome.STOPPED)),
    ],
    ids=["converged", "not improving", "non-finite", "non-finite at once", "stopped"],
)
def test_however_a_run_ends_its_last_state_is_on_disk(options, end, tmp_path):
    expected = regress(in_memory, **options)
    ended = regress(in_memory, checkpoints=Checkpoints(tmp_path, every=5), **options)
    assert (int(ended.epochs_done), int(ended.outcome)) == end
    assert_identical(ended, expected)
    if ended.outcome != Outcome.STOPPED:
        assert_identical(regress(in_memory, checkpoints=tmp_path, **options), expected)
    if ended.outcome != Outcome.CONVERGED:
        options = {"early_stopping": stopping()}  # without the cause of its end, the run continues
        assert_identical(regress(in_memory, checkpoints=tmp_path, **options).params, regress(in_memory).params)


class Broken(Exception):
    """By a test."""


def raising(error):
    def callback(result):
        if result.epochs_done == 3:
            raise error

    return callback


@pytest.mark.slow_unless("error1-iterable")
@each_kind
@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt()])
def test_what_was_done_when_something_raises_is_on_disk(kind, error, tmp_path):
    with pytest.raises(type(error)):
        regress(kind, checkpoints=Checkpoints(tmp_path, every=5), callback=raising(error))
    assert steps(tmp_path) == [3]
    assert read_checkpoint(tmp_path)["outcome"] == Outcome.INTERRUPTED
    assert_identical(regress(kind, checkpoints=Checkpoints(tmp_path, every=5)), regress(kind))


def test_a_disk_that_fails_loses_nothing_in_memory(tmp_path, monkeypatch):
    """Simulated, because a real failure makes orbax wait for five minutes."""

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(room.CheckpointManager, "save", fail)
    with pytest.raises(Broken) as caught:
        regress(in_memory, checkpoints=Checkpoints(tmp_path, every=5), callback=raising(Broken()))
    assert int(caught.value.result.epochs_done) == 3
    assert "the result so far could not be written as a checkpoint: no space left" in caught.value.__notes__[1]
    with pytest.raises(OSError, match="no space left") as caught:
        regress(in_memory, checkpoints=tmp_path)
    assert int(caught.value.result.epochs_done) == 1
    monkeypatch.undo()
    monkeypatch.setattr(room.CheckpointManager, "wait", fail)
    with pytest.raises(OSError, match="no space left") as caught:
        regress(in_memory, checkpoints=tmp_path)
    assert_identical(caught.value.result._replace(outcome=jnp.int32(0)), regress(in_memory))


def test_a_checkpoint_goes_before_a_result_to_resume(tmp_path):
    regress(in_memory, epochs=3, checkpoints=tmp_path)
    assert_identical(regress(in_memory, checkpoints=tmp_path, resume=regress(in_memory, epochs=1)), regress(in_memory))


# These take twenty seconds: every life of a killed run begins with the imports and the compilation. More of them, and
# longer runs: `python -m tests.helpers.kills`.
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("in memory", 2), ("loader", 1)])
def test_a_run_killed_at_random_moments_ends_bit_for_bit_like_an_uninterrupted_run(kind, number, tmp_path):
    expected = kills.leaves(kills.train(kind, epochs=8))
    kills.kill(kind, number, np.random.default_rng(0), tmp_path, expected, epochs=8)


# --- what is in a state ------------------------------------------------------------------------------


class Everything(Transformation):
    """Gradient descent whose state has all kinds of leaves under all kinds of keys."""

    def init(self, params):
        return {
            "a/b": jax.random.key(3),
            ".": (jax.random.key(4, impl="rbg"), jax.random.split(jax.random.key(5), 2)),
            "['x']": jnp.zeros((0, 3), jnp.int8),
            "": jnp.array([True, False]),
            "small": [jnp.ones(2, jnp.bfloat16), jnp.ones(1, jnp.float8_e4m3fn), jnp.uint8(255), jnp.complex64(1j)],
            "numbers": {1: jnp.int32(-3), 20: jnp.float16(0.1), -1: jnp.uint32(2**32 - 1)},
            "nothing": [None, (), {}],
        }

    def apply(self, updates, state, params, **extra):
        state = state | {"a/b": jax.random.fold_in(state["a/b"], 1), "": ~state[""]}
        return jax.tree.map(lambda g: -0.1 * g, updates), state


@pytest.mark.slow_unless("in memory")
@each_kind
def test_all_kinds_of_leaves_and_keys_survive(kind, tmp_path):
    data, options = kind(DATA)
    run = partial(fit, PARAMS, Everything(), regression, data, key=KEY, **options)
    uncut = run(epochs=3)
    run(epochs=2, checkpoints=tmp_path)
    again = run(epochs=3, checkpoints=tmp_path)
    assert jax.random.key_impl(again.optimizer_state["."][0]) == "rbg"
    assert_identical(again, uncut)
    state = read_checkpoint(tmp_path)["optimizer_state"]
    assert state["['x']"].shape == (0, 3)
    assert state["small"]["0"].dtype == jnp.bfloat16
    assert state["numbers"]["-1"] == 2**32 - 1
    np.testing.assert_array_equal(state["a/b"], jax.random.key_data(uncut.optimizer_state["a/b"]))


def test_a_checkpoint_without_its_code_is_nested_dictionaries_of_numpy(tmp_path):
    result = regress(in_memory, epochs=2, checkpoints=tmp_path)
    plain = read_checkpoint(tmp_path)
    assert list(plain) == ["params", "optimizer_state", "estimator_state", "epochs_done", "outcome", "best", "history"]
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(plain))
    np.testing.assert_array_equal(plain["params"]["w"], result.params["w"])
    np.testing.assert_array_equal(plain["optimizer_state"]["0"]["mean"]["b"], result.optimizer_state[0].mean["b"])
    np.testing.assert_array_equal(plain["history"]["loss"], result.history["loss"])
    np.testing.assert_array_equal(plain["best"]["params"]["w"], result.best.params["w"])


# --- a checkpoint of an earlier release --------------------------------------------------------------


def as_then(checkpoints):
    """The program that wrote `checkpoint_0_2`, which must not change: `python tests/test_checkpoints.py FOLDER`.

    It needs two devices. With XLA_FLAGS=--xla_force_host_platform_device_count=2 any machine has two.
    """
    return fit(
        PARAMS,
        chain(adam(0.125), Everything()),
        regression,
        DATA,
        epochs=3,
        batch_size=BATCH,
        key=jax.random.key(7),
        metrics={"draw": a_draw, "tree": lambda state, key: {"w": state.params["w"], "flag": state.params["w"] > 0}},
        early_stopping=stopping(),
        checkpoints=Checkpoints(checkpoints, keep=1),
    )


def test_a_checkpoint_of_this_release_is_read_by_every_later_one(tmp_path):
    """It was written in another process, on the second of two devices."""
    shutil.copytree(EARLIER, tmp_path / "run")
    plain = read_checkpoint(tmp_path / "run")
    described = json.loads((EARLIER.parent / "checkpoint_0_2.json").read_text())
    got = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(plain)}
    assert got.keys() == described.keys()
    for name, (dtype, values) in described.items():
        assert str(got[name].dtype) == dtype, name
        assert got[name].tobytes().hex() == values, name
    result = as_then(tmp_path / "run")
    assert int(result.epochs_done) == 3
    assert result.params["w"].tobytes() == plain["params"]["w"].tobytes()
    assert_identical(as_then(tmp_path / "run"), result)
    assert steps(tmp_path / "run") == [3]


def write_earlier(folder):
    with jax.default_device(jax.devices()[1]):
        as_then(folder)
    leaves = jax.tree_util.tree_leaves_with_path(read_checkpoint(folder))
    described = {jax.tree_util.keystr(path): (str(x.dtype), x.tobytes().hex()) for path, x in leaves}
    folder.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n")


# --- what does not fit -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    fit(PARAMS, adam(0.1), constant, DATA, checkpoints=folder, **RUN)
    return folder


constant = loss_gradient(lambda params, batch: sum(jnp.sum(p).astype(float) for p in jax.tree.leaves(params)))
RUN = dict(epochs=2, batch_size=BATCH, key=KEY)
MORE = PARAMS | {"c": jnp.ones(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(params=MORE), r"has no leaf .params\['c'\], which this run has"),
        (dict(params={"w": PARAMS["w"]}), r"has a leaf .params\['b'\], which this run does not have"),
        (dict(params=PARAMS | {"w": jnp.zeros(4)}), r".params\['w'\] has shape \[3\], but in this run \[4\]"),
        (dict(params=PARAMS | {"w": jnp.zeros(3, jnp.float16)}), r".params\['w'\] has dtype float32, .* float16"),
        (dict(optimizer=sgd(0.1)), r"has a leaf .optimizer_state.mean\['b'\], which this run does not have"),
        (dict(optimizer=classic.adam(0.1)), r"the states \['FitResult', 'AdamState'\].* 'ClassicAdamState'\]"),
        (dict(key=jax.random.key(1)), r"was written with key=key<fry> \[0 0\], not key<fry> \[0 1\]"),
        (dict(key=jax.random.key(0, impl="rbg")), r"was written with key=key<fry> .*, not key<rbg>"),
        (dict(batch_size=4), "was written with batch_size=5, not 4"),
        (dict(shuffle=False), "was written with shuffle=True, not False"),
        (dict(metrics_every=2), "was written with metrics_every=1, not 2"),
        (dict(data=jax.tree.map(lambda x: x[:20], DATA)), "was written with rows=23, not 20"),
        (dict(data=batches_of(DATA), batch_size=None), "was written with batch_size=5, not None"),
    ],
)
def test_what_does_not_fit_is_named(change, message, written):
    arguments = dict(params=PARAMS, optimizer=adam(0.1), estimator=constant, data=DATA, checkpoints=written)
    with pytest.raises(ValueError, match=message) as caught:
        fit(**(arguments | RUN | change))
    assert f"the checkpoint {written}/2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_precision_is_named(written):
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match="has dtype float32, but in this run float64"),
    ):
        fit(PARAMS, adam(0.1), constant, DATA, checkpoints=written, **RUN)


def test_other_numbers_of_the_optimizer_and_more_epochs_fit(written, tmp_path):
    """Also where they are NumPy's."""
    shutil.copytree(written, tmp_path / "run")
    run = RUN | {"epochs": np.int64(3), "batch_size": np.int32(BATCH)}
    result = fit(PARAMS, adam(0.5), constant, DATA, checkpoints=Checkpoints(str(tmp_path / "run"), keep=1), **run)
    np.testing.assert_allclose(result.params["w"], -0.1 * 10 - 0.5 * 5, rtol=1e-5)


def test_a_directory_that_is_not_a_checkpoint_is_named(tmp_path, written, monkeypatch):
    run = partial(fit, PARAMS, adam(0.1), constant, DATA, **RUN)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is not a directory"):
        run(checkpoints=tmp_path / "file")
    with orbax.checkpoint.CheckpointManager(tmp_path / "other") as manager:
        manager.save(3, args=orbax.checkpoint.args.StandardSave({"a": np.ones(3)}))
    for read in (read_checkpoint, lambda folder: run(checkpoints=folder)):
        with pytest.raises(ValueError, match=r"other/3 is not a checkpoint of paysage_jax"):
            read(tmp_path / "other")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=f"read_checkpoint: no directory {folder}"):
            read_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match=r"read_checkpoint: no checkpoint 7 in .*; has \[1, 2\]"):
        read_checkpoint(written, 7)
    monkeypatch.setattr(room, "VERSION", 0)
    with pytest.raises(ValueError, match=r"2: written by a newer paysage_jax \(format 1\)"):
        read_checkpoint(written)


# --- what is imported --------------------------------------------------------------------------------

LEAN = """
import sys
import jax.numpy as jnp, jax
import paysage_jax as pj
estimator = pj.loss_gradient(lambda w, x: jnp.sum(w * x))
pj.fit(jnp.ones(2), pj.sgd(0.1), estimator, jnp.ones((4, 2)), epochs=2, batch_size=2, key=jax.random.key(0))
print([name for name in ("orbax", "tqdm", "optax", "numpyro") if name in sys.modules])
"""


def test_a_plain_run_imports_neither_orbax_nor_tqdm():
    assert python(LEAN) == "[]\n"


def test_without_orbax_the_error_tells_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match="checkpoints need orbax: pip install orbax-checkpoint"):
        regress(in_memory, checkpoints=tmp_path)


if __name__ == "__main__":
    write_earlier(Path(sys.argv[1]))
