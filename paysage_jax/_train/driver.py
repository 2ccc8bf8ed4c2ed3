"""A run on the host: calls of the compiled program, each for a few epochs, and the work between them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checkpoints import CheckpointManager
from .epochs import Program
from .history import History, latest
from .interrupts import postponed
from .processes import broadcast_from_0, call_on_0
from .source import Loader, Memory
from .step import FitResult, Outcome

_SECONDS = 0.1  # the shortest duration of a call of the program to aim for


def drive(program: Program, source: Memory | Loader, host: Host) -> FitResult:
    """Advance the run a few epochs at a time until it ends."""
    pace, multiples = 1, [program.rows_at_once * program.metrics_every, *host.multiples(program.metrics_every)]
    with host.rescue():
        while host.goes_on:
            start = time.perf_counter()
            stop = next_stop(host.done, host.epochs, pace, multiples)
            advanced = source.advance(program, host.result._replace(history=()), np.int32(stop))
            _wait(advanced.epochs_done)
            host.take(advanced, program.metrics_every)
            pace *= faster(broadcast_from_0(time.perf_counter() - start))
            host.report()
        host.finish()
    return host.result


def next_stop(done: int, epochs: int, pace: int, multiples: Iterable[int]) -> int:
    """The epoch at which the compiled program returns: after `pace` epochs, but at most the next of these multiples."""
    return min(epochs, done + pace, *((done // every + 1) * every for every in multiples))


def faster(seconds: float) -> int:
    """The growth factor for the number of epochs in a call: short calls cost more than their epochs."""
    return 4 if seconds < _SECONDS / 4 else 2 if seconds < _SECONDS else 1


class Host:
    """The work of a run on the host: history, progress bar, callback, checkpoints.

    Args:
        result: the initial result.
        epochs: the number of the last epoch.
        callback: called as callback(result) after each measurement, in process 0; True stops the run. Or None.
        bar: a tqdm progress bar, or None.
        disk: the checkpoint manager, or None.
    """

    def __init__(
        self,
        result: FitResult,
        epochs: int,
        callback: Callable[[FitResult], object] | None,
        bar: Any,
        disk: CheckpointManager | None,
    ) -> None:
        self.result, self.epochs, self._callback, self._bar, self._disk = result, epochs, callback, bar, disk
        self._history = History(result.history)
        self._began, self._measurements = self.done, 0
        self._interrupted = jnp.asarray(np.int32(Outcome.INTERRUPTED))  # later it would wait for the epoch

    @property
    def done(self) -> int:
        """The number of epochs done."""
        return int(self.result.epochs_done)

    @property
    def goes_on(self) -> bool:
        """Whether the run continues."""
        return self.done < self.epochs and int(self.result.outcome) == Outcome.EPOCHS_EXHAUSTED

    def multiples(self, metrics_every: int) -> list[int]:
        """Numbers of epochs at whose multiples the program returns."""
        return [metrics_every] * bool(self._callback) + ([self._disk.every] if self._disk else [])

    def take(self, advanced: FitResult, metrics_every: int) -> None:
        """Store the result of a call of the program, whose history contains only its epochs."""
        self._measurements = int(advanced.epochs_done) // metrics_every - self.done // metrics_every
        self._history.extend(advanced.history, self._measurements)
        self.result = advanced._replace(history=self._history.arrays())

    def report(self) -> None:
        """Update the bar, run the callback and save a checkpoint, after a call of the program."""
        if self._bar is not None:
            self._bar.set_postfix(latest(self.result.history), refresh=False)
            self._bar.update(self.done - self._bar.n)
        if (callback := self._callback) and self._measurements:
            given = jax.tree.map(lambda x: x, self.result)  # new dicts and lists, which the callback may change
            stops = call_on_0(lambda: _is_true(callback(given)))
            if stops and not int(self.result.outcome):
                stopped = jnp.full_like(self.result.outcome, Outcome.STOPPED)
                self.result = self.result._replace(outcome=stopped)
        if self._disk and (self.done % self._disk.every == 0 or not self.goes_on):
            with postponed():
                self._disk.save(self.done, self.result)

    def finish(self) -> None:
        """Wait until all checkpoints have been written."""
        if self._disk:
            with postponed():
                self._disk.wait()

    @contextlib.contextmanager
    def rescue(self) -> Iterator[None]:
        """Attach the result so far to an exception, Ctrl-C included, and write a checkpoint of it."""
        try:
            try:
                yield
            except BaseException as error:
                self._attach_to(error)
                self._save_for(error)
                raise
        except BaseException as error:
            self._attach_to(error)  # a second Ctrl-C during the handling of the first
            raise

    def _attach_to(self, error: BaseException) -> None:
        if getattr(error, "result", None) is self.result:
            return
        error.result = self.result = self.result._replace(outcome=self._interrupted)  # type: ignore
        result = "The attribute `result` of this exception has the result so far, for fit(..., resume=result)"
        error.add_note(f"fit: epochs done: {self.done}. {result}")

    def _save_for(self, error: BaseException) -> None:
        # Several processes write a checkpoint together, and the other processes may have ended.
        if self._disk is None or self.done == self._began or jax.process_count() > 1:
            return
        try:
            with postponed():
                self._disk.save(self.done, self.result)
                self._disk.wait()
        except BaseException as failed:  # Ctrl-C again
            reason = str(failed) or "interrupted again"
            error.add_note(f"fit: the result so far could not be written as a checkpoint: {reason}")


def _wait(x: jax.Array) -> None:
    """Wait until x has been computed. Unlike `block_until_ready` in the main thread, Ctrl-C interrupts immediately."""

    def wait() -> None:
        with contextlib.suppress(Exception):  # the main thread will raise it
            x.block_until_ready()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while waiting.is_alive():  # a signal that arrives in another thread does not wake this one
        waiting.join(0.1)


def progress_bar(epochs: int, done: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("fit: progress=True needs tqdm: pip install tqdm") from None
    return tqdm(total=epochs, initial=done, unit="epoch", disable=None)


def _is_true(answer: object) -> bool:
    return isinstance(answer, bool | np.generic | jax.Array) and np.asarray(answer).dtype == bool and bool(answer)
