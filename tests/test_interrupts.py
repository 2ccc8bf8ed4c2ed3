"""Ctrl-C during a run: in an epoch of minutes, where Python ignores it, and while a checkpoint is written."""

import pickle
import signal
import sys

import jax
import pytest

from paysage_jax import Outcome
from paysage_jax._train.checkpoints import CheckpointManager
from paysage_jax._train.driver import Host
from tests.helpers.runs import KINDS, assert_identical, each_kind, how, python, regress, regress_slowly

in_memory = KINDS["in memory"]
MANY = 10**6  # epochs


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def the_handler_of_python():
    """A shell starts programs in the background with SIGINT ignored, this suite among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    report = sys.unraisablehook
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is report
    signal.signal(signal.SIGINT, before)


INTERRUPTED = """
import os, pickle, signal, sys, threading, time
from tests.helpers.runs import regress_slowly

signal.signal(signal.SIGINT, signal.default_int_handler)
pressed = []

def press():
    pressed.append(time.process_time())
    signal.raise_signal(signal.SIGINT)

try:
    regress_slowly(2**31 - 1, callback=lambda result: threading.Timer(1, press).start())
except KeyboardInterrupt as error:
    print(time.process_time() - pressed[0])
    with open(sys.argv[1], "wb") as file:
        pickle.dump(error.result, file)
    sys.stdout.flush()
    os._exit(0)  # the epoch is still computed, and has minutes to go
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="on a GPU the call of a loop returns at its end")
@pytest.mark.slow
def test_ctrl_c_is_heard_at_once_in_an_epoch_of_minutes(tmp_path):
    """Immediately: before the epoch has computed for a second, however long that takes on a machine under load."""
    assert float(python(INTERRUPTED, tmp_path / "result")) < 1
    result = pickle.loads((tmp_path / "result").read_bytes())
    assert how(result) == (1, Outcome.INTERRUPTED)
    assert_identical(regress_slowly(0, resume=result), regress_slowly(0))


class PressesWhenDeleted:
    def __del__(self):
        press_ctrl_c()


@each_kind
def test_ctrl_c_is_heard_where_python_ignores_it(kind):
    """No exception can be raised in a destructor."""
    calls = []

    def callback(result):
        calls.append(result)
        if len(calls) == 3:
            PressesWhenDeleted()
        return len(calls) == 100_000  # not heard

    with pytest.raises(KeyboardInterrupt) as caught:
        regress(kind, epochs=MANY, callback=callback)
    result = caught.value.result
    assert result.epochs_done >= 3
    assert_identical(result._replace(outcome=calls[-1].outcome), calls[-1])


def test_what_else_cannot_be_raised_is_reported_as_before(monkeypatch):
    class Fails:
        def __del__(self):
            raise ZeroDivisionError

    reported = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
        regress(in_memory, epochs=2, callback=lambda result: Fails() and None)
    assert set(reported) == {ZeroDivisionError}


def pressing(times, written):
    """`CheckpointManager.save`, with Ctrl-C pressed in the middle of the second one; the epochs that were written."""
    save = CheckpointManager.save

    def save_and_press(self, epoch, result):
        if epoch == 2 and not written.count(2):
            for _ in range(times):
                press_ctrl_c()
        save(self, epoch, result)
        written.append(epoch)

    return save_and_press


def test_ctrl_c_during_a_save_is_heard_when_the_checkpoint_is_written(tmp_path, monkeypatch):
    written = []
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", pressing(1, written))
        with pytest.raises(KeyboardInterrupt) as caught:
            regress(in_memory, checkpoints=tmp_path)
    assert written[:2] == [1, 2]
    assert how(caught.value.result) == (2, Outcome.INTERRUPTED)
    assert_identical(regress(in_memory, checkpoints=tmp_path), regress(in_memory))


def test_a_second_ctrl_c_during_a_save_is_heard_at_once(tmp_path, monkeypatch):
    """And two more while `fit` tries again to write the epochs done; the exception still carries them."""
    written = []
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", pressing(2, written))
        with pytest.raises(KeyboardInterrupt) as caught:
            regress(in_memory, checkpoints=tmp_path)
    assert written == [1]
    assert any("could not be written" in note for note in caught.value.__notes__)
    assert how(caught.value.result) == (2, Outcome.INTERRUPTED)


def test_a_handler_of_the_user_is_left_alone(tmp_path, monkeypatch):
    heard, written = [], []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(len(written)))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", pressing(1, written))
        result = regress(in_memory, checkpoints=tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert heard == [1]
    assert how(result) == (8, Outcome.EPOCHS_EXHAUSTED)


def test_a_second_ctrl_c_while_the_first_is_seen_to_carries_the_result(monkeypatch):
    """In the instant between attaching the result and writing a checkpoint of it."""

    def press(result):
        if result.epochs_done == 2:
            raise KeyboardInterrupt("the first")

    def press_again(self, error):
        raise KeyboardInterrupt("the second")

    with monkeypatch.context() as patch:
        patch.setattr(Host, "_save_for", press_again)
        with pytest.raises(KeyboardInterrupt, match="the second") as caught:
            regress(in_memory, callback=press)
    assert how(caught.value.result) == (2, Outcome.INTERRUPTED)
