"""What `fit` trains on: arrays in memory, or batches that are read anew every epoch."""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from .._core.batches import (
    Batch,
    Entry,
    Weighted,
    _check_dense,
    _has_values,
    _is_finite,
    as_arrays,
    as_floats,
    batch_size_of,
    check_finite,
    check_weights,
    in_memory,
    is_remote,
)
from .._core.pytree import accepted

NESTED = "rows in a list become data in memory by numpy.array(data), with batch_size"


def check_leaves(**trees: Any) -> None:
    """Raise TypeError, naming it, for a leaf that is neither number nor array."""
    for name, tree in trees.items():
        for path, leaf in tree_flatten_with_path(tree)[0]:
            if not isinstance(leaf, int | float | np.generic | np.ndarray | jax.Array):
                kind = type(leaf).__name__
                raise TypeError(f"fit: {name}{keystr(path)}: {kind} is neither number nor array; declare it static()")


_AS_IT_IS = Entry()


# --- how data enter ----------------------------------------------------------------------------------


_STEPS_LATER = 8  # by then a batch has been computed, and to ask for it costs no wait


def _relative(data: Batch) -> Batch:
    """Data in memory whose weights, if they have any, have the mean 1."""
    if not isinstance(data, Weighted) or data.weights is None:
        return data
    check_weights("fit: data.weights", data.weights, batch_size_of("data.v", data.v))
    if isinstance(data.weights, Tracer) or not getattr(data.weights, "is_fully_addressable", True):
        weights = jnp.asarray(data.weights, float)
        return data._replace(weights=weights / jnp.mean(weights))
    weights = np.asarray(data.weights, np.float64)
    if not weights.any():
        raise ValueError("fit: data.weights: expected some positive weight, all are 0")
    relative = (weights / np.mean(weights)).astype(jnp.result_type(float))
    return data._replace(weights=jnp.array(relative) if isinstance(data.weights, jax.Array) else relative)


def arrays_or_loader(
    data: Any, batch_size: Any, own: Callable[[Any], Any] = jnp.array, entry: Entry = _AS_IT_IS
) -> tuple[Any, Loader | None, int | None]:
    """Data in memory, None, and the number of rows; or None, what reads the batches, and None.

    `own` makes a copy of a NumPy array, on a device or not.

    Raises:
        TypeError, ValueError: for other data, or a batch size that does not go with them.
    """
    _check_dense("fit: data", data)
    if in_memory(data):
        data = as_arrays("fit: data", data, _as_it_is)
        rows = batch_size_of("data", data)
        if not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= rows:
            raise ValueError(f"fit: batch_size must be from 1 to the {rows} rows of data, got {batch_size!r}")
        data = _relative(data)
        if entry.finite:
            check_finite("fit: data", data, entry.missing)
        return as_arrays("fit: data", as_floats(data, entry.dtype), own), None, rows
    loader = Loader(data, own, entry)
    if batch_size is not None:
        hint = f"; {NESTED}" if isinstance(data, list) else ""
        raise ValueError(f"fit: batch_size does not go with an iterable, whose items are the batches{hint}")
    return None, loader, None


def _as_it_is(x: Any) -> Any:
    return x


# --- batch by batch ----------------------------------------------------------------------------------


class Loader:
    """Batches to be read anew every epoch.

    Args:
        data: an iterable of batches, or a function that returns one: `data(epoch)`, or `data()`.
        own: what makes a copy of a NumPy array, on a device or not.
        entry: how the estimator wants the batches.

    Raises:
        TypeError, ValueError: for what cannot be read again and again, yields no batch, or numbers that are not finite.
    """

    def __init__(self, data: Any, own: Callable[[Any], Any] = jnp.array, entry: Entry = _AS_IT_IS) -> None:
        if isinstance(data, Iterator):
            raise ValueError("fit: data is an iterator, to be read once; give a list, a loader or a generator function")
        if isinstance(data, type) or not (callable(data) or hasattr(data, "__iter__")):
            kind = type(data).__name__
            raise TypeError(f"fit: data must be arrays with a leading axis or an iterable of batches, got {kind}")
        self._data, self._own, self._entry = data, own, entry
        self._opened: dict[int, Iterator[Batch]] = {}

    def first(self, epoch: int) -> Batch:
        """The first batch of an epoch; it is not drawn again when the epoch is read."""
        batches = self.epoch(epoch)
        batch = next(batches)
        self._opened = {epoch: itertools.chain([batch], batches)}
        return batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, as arrays."""
        if epoch in self._opened:
            return self._opened.pop(epoch)
        return self._read(epoch)

    def _read(self, epoch: int) -> Iterator[Batch]:
        source: Any = self._data
        if not hasattr(source, "__iter__"):
            source = _call(source, epoch)
            if isinstance(source, dict) or hasattr(source, "__array__") or not hasattr(source, "__iter__"):
                raise TypeError(f"fit: data() must return an iterable of batches, got a {type(source).__name__}")
        number, waiting = 0, deque()
        for number, batch in enumerate(source, 1):
            batch, on_device = self._enter(f"fit: batch {number - 1} of epoch {epoch}", batch)
            # A batch that is on a device already may still have to be computed: its turn comes some steps later.
            waiting.extend(on_device)
            if len(waiting) > _STEPS_LATER:
                self._settle(*waiting.popleft())
            yield batch
        for checked in waiting:
            self._settle(*checked)
        if number == 0:
            raise ValueError(f"fit: data yielded no batch in epoch {epoch}")

    def _enter(self, where: str, batch: Any) -> tuple[Batch, list[Any]]:
        """The batch as arrays, checked if it is on the host; and what `check_finite` is to see of it later."""
        _check_dense("fit: batch", batch)
        # A list of arrays is what torch makes of a tuple; a list of numbers is rows.
        if not in_memory(batch) and not (isinstance(batch, list) and all(map(in_memory, batch))):
            hint = f"; {NESTED}" if isinstance(batch, list | int | float | np.number) else ""
            raise TypeError(f"fit: data: expected batches of arrays, got a {type(batch).__name__}{hint}")
        usual = isinstance(batch, jax.Array) or (type(batch) is np.ndarray and batch.dtype == np.float32)
        if not usual:  # such a batch needs no look at its leaves, which takes longer than some steps
            batch = as_arrays("fit: batch", batch, _as_it_is)
        size = batch_size_of("batch", batch)
        later, missing = [], self._entry.missing
        numbers = [x for x in jax.tree.leaves(batch) if _has_values(x)] if self._entry.finite else []
        if any(map(is_remote, numbers)):
            later = [(where, batch, _is_finite(numbers, missing=missing))]
        elif numbers:
            check_finite(where, batch, missing)
        if isinstance(batch, Weighted) and batch.weights is not None and not is_remote(batch.weights):
            check_weights(f"{where}.weights", batch.weights, size)
        batch = as_floats(batch, self._entry.dtype)
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else self._own(x), batch), later

    def _settle(self, where: str, batch: Batch, finite: jax.Array) -> None:
        if not finite:
            check_finite(where, batch, self._entry.missing)


def _call(function: Callable[..., Any], epoch: int) -> Any:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind in positional and p.default is p.empty for p in parameters):
        return function(epoch)
    return function(**accepted(function, {"epoch": epoch}))
