"""A run on the host: calls of the compiled program, each of a few epochs, and what is to be done between them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context

from ._checkpoints import Checkpoints
from ._data import Loader, weight_of
from ._interrupts import postponed
from ._metrics import History, latest
from ._placement import Placement
from ._processes import asked_of_first, of_first
from ._training import FitResult, Outcome, keys_of

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # jax 0.9
    from jax.core import get_opaque_trace_state  # type: ignore

_SECONDS = 0.1  # what a call of the program should take at least


def is_traced() -> bool:
    """Whether JAX is tracing the caller, under `jit`, `vmap`, `scan` or `grad`, whatever the traced values hide in."""
    with eval_context():
        untraced = get_opaque_trace_state()
    return get_opaque_trace_state() != untraced


def drive(
    run: Callable[[FitResult, Any], FitResult],
    result: FitResult,
    epochs: int,
    every: int,
    capacity: int,
    callback: Any,
    bar: Any,
    disk: Checkpoints | None,
    checkpoint_every: int,
) -> FitResult:
    """Calls of the compiled program, each of a few epochs, and what is to be done on the host between them."""
    history, piece = History(result.history), 1
    began = done = int(result.epochs_done)
    interrupted = jnp.array(Outcome.INTERRUPTED, jnp.int32)  # made now: then it would wait for the epoch
    try:
        while done < epochs and int(result.outcome) == Outcome.EPOCHS_EXHAUSTED:
            stop = min(epochs, done + piece, (done // every + capacity) * every)
            if callback:
                stop = min(stop, (done // every + 1) * every)
            if disk:
                stop = min(stop, (done // checkpoint_every + 1) * checkpoint_every)
            start = time.perf_counter()
            advanced = run(result._replace(history=()), np.int32(stop))
            _wait(advanced.epochs_done)
            measurements = int(advanced.epochs_done) // every - done // every
            history.extend(advanced.history, measurements)
            result, done = advanced._replace(history=history.arrays()), int(advanced.epochs_done)
            seconds = of_first(time.perf_counter() - start)
            piece *= 4 if seconds < _SECONDS / 4 else 2 if seconds < _SECONDS else 1
            if bar is not None:
                bar.set_postfix(latest(result.history), refresh=False)
                bar.update(done - bar.n)
            if callback and measurements:
                given = jax.tree.map(lambda x: x, result)  # dicts and lists of its own, which it may change
                stops = asked_of_first(lambda given=given: _is_true(callback(given)))
                if stops and not int(result.outcome):
                    result = result._replace(outcome=jnp.full_like(result.outcome, Outcome.STOPPED))
            if disk and (done % checkpoint_every == 0 or done == epochs or int(result.outcome)):
                with postponed():
                    disk.save(done, result)
        if disk:
            with postponed():
                disk.wait()
    except BaseException as error:  # Ctrl-C too: no finished epoch is thrown away
        error.result = result = result._replace(outcome=interrupted)  # type: ignore
        done = int(result.epochs_done)
        error.add_note(f"fit: epochs done: {done}. They are this exception's `result`, for fit(..., resume=result)")
        if disk and done > began and jax.process_count() == 1:  # all write one together, and the others may be gone
            try:
                with postponed():
                    disk.save(done, result)
                    disk.wait()
            except BaseException as failed:  # Ctrl-C again
                error.add_note(f"fit: no checkpoint of them could be written: {str(failed) or 'interrupted again'}")
        raise
    return result._replace(history=history.arrays())


def read_epoch(
    step: Callable[..., Any],
    end: Callable[..., FitResult],
    place: Placement,
    loader: Loader,
    key: jax.Array,
    zeros: Any,
    result: FitResult,
    _stop: Any,
) -> FitResult:
    """One epoch on an iterable."""
    epoch = int(result.epochs_done)
    step_key = keys_of(key, epoch)[1]
    carry = jax.tree.map(jnp.copy, (result.state, zeros))  # the steps donate it, and the result stays as it is
    size: Any = 0
    # Steps are dispatched asynchronously: the next batch is fetched and transferred meanwhile.
    for i, batch in enumerate(place.batches(loader.epoch(epoch))):
        size += weight_of(batch)
        carry = step(carry, batch, step_key, np.int32(i), result.epochs_done)
    return end(result, carry, size if isinstance(size, jax.Array) else np.int32(size))


def _wait(x: jax.Array) -> None:
    """Until it has been computed; unlike `block_until_ready` in the main thread, it hears Ctrl-C at once."""

    def wait() -> None:
        with contextlib.suppress(Exception):  # the main thread will meet it
            x.block_until_ready()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while waiting.is_alive():  # a signal that another thread gets does not wake this one
        waiting.join(0.1)


def progress_bar(epochs: int, done: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("fit: progress=True needs tqdm: pip install tqdm") from None
    return tqdm(total=epochs, initial=done, unit="epoch", disable=None)


def _is_true(answer: Any) -> bool:
    return isinstance(answer, bool | np.generic | jax.Array) and np.asarray(answer).dtype == bool and bool(answer)
