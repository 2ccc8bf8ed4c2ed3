"""Training one model in several processes, started by `jax.distributed.initialize`.

Every process runs the same program. The processes first compare everything that could make one of them wait forever or
train another model. A difference raises an error on all processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_flatten_with_path

from .._core.batches import batch_size_of
from .._core.types import Batch, Tree

_FAILED, _ENDED = -1, -2


def _gathered(*values: int) -> np.ndarray:
    """The integers of all processes, an array (processes, values)."""
    return np.asarray(multihost_utils.process_allgather(np.array(values, np.int32))).reshape(-1, len(values))


def _checksum(tree: Tree) -> int:
    """The checksum of a text, or of the paths, shapes, dtypes and values of a tree.

    The values of arrays that span several processes are not included.
    """
    if isinstance(tree, str):
        return zlib.crc32(tree.encode()) & 0x7FFFFFFF
    check = 0
    for path, x in tree_flatten_with_path(tree)[0]:
        shape, dtype = jnp.shape(x), jnp.result_type(x)
        check = zlib.crc32(f"{keystr(path)} {shape} {dtype}".encode(), check)
        if not isinstance(x, jax.ShapeDtypeStruct | Tracer) and getattr(x, "is_fully_addressable", True):
            numbers = jax.random.key_data(x) if jnp.issubdtype(dtype, jax.dtypes.prng_key) else x
            check = zlib.crc32(np.ascontiguousarray(numbers).tobytes(), check)
    return check & 0x7FFFFFFF


@contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """An exception in any process is raised in all of them."""
    if jax.process_count() == 1:
        yield
        return
    raised = None
    try:
        yield
    except Exception as error:
        raised = error
    failed = _gathered(raised is not None)[:, 0]
    if raised is not None:
        raise raised
    if failed.any():
        raise RuntimeError(f"fit: process {failed.argmax()} raised an exception while checking its arguments")


def agree(**arguments: Tree) -> None:
    """Raise ValueError on every process if an argument differs between processes; it names the argument."""
    if jax.process_count() == 1:
        return
    checks = _gathered(*map(_checksum, arguments.values()))
    if differ := [name for name, of_all in zip(arguments, checks.T, strict=True) if np.ptp(of_all)]:
        raise ValueError(f"fit: {', '.join(differ)} must be the same in all {len(checks)} processes, but differ")


def broadcast_from_0(value: float) -> float:
    """The value of process 0."""
    return value if jax.process_count() == 1 else float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def call_on_0(question: Callable[[], bool]) -> bool:
    """Call the function on process 0 only, and return its answer on all. If it raises, every process raises."""
    if jax.process_count() == 1:
        return question()
    answer, raised = 0, None
    if jax.process_index() == 0:
        try:
            answer = int(question())
        except BaseException as error:
            answer, raised = _FAILED, error
    answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if raised is not None:
        raise raised
    if answer == _FAILED:
        raise RuntimeError("fit: the callback raised in process 0")
    return bool(answer)


def lockstep(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of this process, as long as every process has a batch.

    Raises:
        ValueError: on every process, if the number or the shapes of their batches differ.
        RuntimeError: if the data of another process raise an exception.
    """
    if jax.process_count() == 1:
        yield from batches
        return
    for number in range(2**31):
        batch, rows, kind, raised = None, _ENDED, 0, None
        try:
            batch = next(batches, None)
            if batch is not None:
                rows = batch_size_of("batch", batch)
                kind = _checksum(jax.eval_shape(lambda x: x, batch))
        except BaseException as error:
            rows, raised = _FAILED, error
        rows_of_all, kinds = _gathered(rows, kind).T
        if raised is not None:
            raise raised
        if np.any(rows_of_all == _FAILED):
            raise RuntimeError(f"fit: data raised in process {np.argmin(rows_of_all)}")
        if np.all(rows_of_all == _ENDED):
            return
        if np.ptp(kinds):
            each = ", ".join("none" if rows == _ENDED else str(rows) for rows in rows_of_all)
            raise ValueError(
                f"fit: data: every process must have equally many batches, of the same shapes; rows of batch {number} "
                f"in processes 0 to {len(kinds) - 1}: {each}; shapes in this process: {jax.tree.map(jnp.shape, batch)}"
            )
        assert batch is not None
        yield batch
