"""Sources of training data, and how a run advances on them: arrays in memory, or batches that are read every epoch."""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from .._core.batches import (
    Entry,
    Weighted,
    as_arrays,
    batch_size_of,
    check_dense,
    check_finite,
    check_weights,
    has_values,
    in_memory,
    is_finite,
    is_remote,
    relative,
    states_as_floats,
)
from .._core.pytree import accepted
from .._core.types import Batch, Leaf, Tree
from .checkpoints import Settings
from .epochs import Program, begin_epoch_of_loader, donating_step, finish_epoch_of_loader, run_epochs
from .placement import Placement, check_not_partitioned
from .step import FitResult

NESTED = "for a list of rows, pass numpy.array(data) and batch_size"


def check_leaves(**trees: Tree) -> None:
    """Raise TypeError for a leaf that is neither a number nor an array; it names the leaf."""
    for name, tree in trees.items():
        for path, leaf in tree_flatten_with_path(tree)[0]:
            if not isinstance(leaf, int | float | np.generic | np.ndarray | jax.Array):
                kind = type(leaf).__name__
                raise TypeError(f"{name}{keystr(path)}: expected a number or an array, got {kind}; declare it static()")


_AS_IT_IS = Entry()


# --- data in memory ----------------------------------------------------------------------------------


_Later = tuple[str, Batch, jax.Array]  # where, the batch, whether it is finite
_STEPS_LATER = 8  # by then a batch on a device has been computed, and its check does not have to wait


def open_source(data: object, batch_size: object, placement: Placement, entry: Entry = _AS_IT_IS) -> Memory | Loader:
    """Return data in memory, or a loader.

    Raises:
        TypeError, ValueError: for other data, or for a batch size that does not fit.
    """
    check_dense("data", data)
    if in_memory(data):
        return Memory(data, batch_size, placement, entry)
    loader = Loader(data, placement, entry)
    if batch_size is not None:
        hint = f"; {NESTED}" if isinstance(data, list) else ""
        raise ValueError(f"batch_size must be None for an iterable, whose items are the batches{hint}")
    return loader


class Memory:
    """Arrays in memory. One compiled program splits them into batches for all epochs.

    Args:
        data: a pytree of arrays (rows, ...).
        batch_size: the number of rows in a batch; the last batch of an epoch may be smaller.
        placement: the placement of rows on devices.
        entry: the conversions and checks that the estimator asks for.
    """

    def __init__(self, data: object, batch_size: object, placement: Placement, entry: Entry) -> None:
        data = as_arrays("data", data, np.asarray)
        self.rows = batch_size_of("data", data)
        if not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= self.rows:
            raise ValueError(f"batch_size must be from 1 to the {self.rows} rows of data, got {batch_size!r}")
        if batch_size % placement.shards:
            raise ValueError(f"batch_size must be a multiple of the {placement.shards} shards, got {batch_size}")
        if isinstance(data, Weighted) and data.weights is not None:
            data = data._replace(weights=relative("data.weights", data.weights, self.rows))
        entry.check_rows("data", data)
        self.data = as_arrays("data", states_as_floats(data, entry.dtype), placement.copy)
        self.batch_size = int(batch_size)

    def settings(self, placement: Placement) -> Settings:
        """The settings that distinguish runs on the same data."""
        return {"batch_size": self.batch_size, "rows": self.rows, "shards": placement.shards}

    def put(self, placement: Placement) -> None:
        """Put the data on their devices."""
        self.data = placement.put_data(self.data)
        if placement.sharding is None:
            check_not_partitioned("data", self.data)

    def first_batch(self, placement: Placement, begun: Leaf, last: int) -> Batch:
        """A batch with the shapes of every epoch."""
        return placement.first_rows(self.data, self.batch_size)

    def advance(self, program: Program, result: FitResult, stop: ArrayLike) -> FitResult:
        """Run epochs up to number `stop`. The history contains only these epochs."""
        return run_epochs(program, self.data, result, stop)


# --- batch by batch ----------------------------------------------------------------------------------


class Loader:
    """Batches that are read in every epoch.

    Args:
        data: an iterable of batches, or a function that returns one: `data(epoch)`, or `data()`.
        placement: the placement of rows on devices.
        entry: the conversions and checks that the estimator asks for.

    Raises:
        TypeError, ValueError: for data that can be read only once, yield no batch, or contain nonfinite numbers.
    """

    data, batch_size, rows = None, 0, 0  # set only for data in memory

    def __init__(self, data: object, placement: Placement, entry: Entry = _AS_IT_IS) -> None:
        if isinstance(data, Iterator):
            raise ValueError("data is an iterator, which can be read only once; pass a list, a loader or a function")
        if isinstance(data, type) or not (callable(data) or hasattr(data, "__iter__")):
            kind = type(data).__name__
            raise TypeError(f"data must be arrays with a leading axis or an iterable of batches, got {kind}")
        self._data, self._copy, self._entry = data, placement.copy, entry
        self._opened: dict[int, Iterator[Batch]] = {}

    def settings(self, placement: Placement) -> Settings:
        """No settings of a loader distinguish runs."""
        return {"batch_size": None, "rows": None, "shards": None}

    def put(self, placement: Placement) -> None:
        """Do nothing, because batches are put on their devices one at a time."""

    def first_batch(self, placement: Placement, begun: Leaf, last: int) -> Batch:
        """The first batch of epoch `begun`, at most `last`. It is kept, and not read again with its epoch."""
        batch = next(placement.put_batches(map(self._peek, [min(int(begun), last)])))
        rows = batch_size_of("batch", batch)
        if rows % placement.devices:
            raise ValueError(
                f"fit: data: the rows of a batch must divide over the {placement.devices} devices, got {rows} rows"
            )
        if placement.sharding is None:
            check_not_partitioned("data", batch)
        return placement.first_rows(batch, rows)

    def advance(self, program: Program, result: FitResult, stop: ArrayLike) -> FitResult:
        """Run one epoch. The history is one row."""
        epoch = begin_epoch_of_loader(program, result)
        steps = program.replace_unchecked(metrics={}, early_stopping=None, zero_sums=(), empty_row=())
        # Steps are dispatched asynchronously, and the next batch is fetched and transferred in the meantime.
        for i, batch in enumerate(program.placement.put_batches(self._batches(int(result.epochs_done)))):
            epoch = donating_step(steps, epoch, batch, np.int32(i))
        return finish_epoch_of_loader(program, result, epoch)

    def _peek(self, epoch: int) -> Batch:
        batches = self._batches(epoch)
        first = next(batches)
        self._opened = {epoch: itertools.chain([first], batches)}
        return first

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, as arrays."""
        return self._opened.pop(epoch) if epoch in self._opened else self._read(epoch)

    def _read(self, epoch: int) -> Iterator[Batch]:
        source: Tree = self._data
        if not hasattr(source, "__iter__"):
            source = _call(source, epoch)
            if isinstance(source, dict | Weighted) or hasattr(source, "__array__") or not hasattr(source, "__iter__"):
                raise TypeError(f"fit: data() must return an iterable of batches, got a {type(source).__name__}")
        number, waiting = 0, deque()
        for number, batch in enumerate(source, 1):
            batch, on_device = self._enter(f"fit: batch {number - 1} of epoch {epoch}", batch)
            # A batch on a device may not have been computed yet, so it is checked some steps later.
            waiting.extend(on_device)
            if len(waiting) > _STEPS_LATER:
                self._settle(*waiting.popleft())
            yield batch
        for checked in waiting:
            self._settle(*checked)
        if number == 0:
            raise ValueError(f"fit: data yielded no batch in epoch {epoch}")

    def _enter(self, where: str, batch: Batch) -> tuple[Batch, list[_Later]]:
        """The batch as arrays, checked if it is on the host, and the checks to do later."""
        check_dense("fit: batch", batch)
        # A list of arrays is a batch, as from torch for a tuple; a list of numbers is a row.
        if not in_memory(batch) and not (isinstance(batch, list) and all(map(in_memory, batch))):
            hint = f"; {NESTED}" if isinstance(batch, list | int | float | np.number) else ""
            raise TypeError(f"fit: data: expected batches of arrays, got a {type(batch).__name__}{hint}")
        usual = isinstance(batch, jax.Array) or (type(batch) is np.ndarray and batch.dtype == np.float32)
        if not usual:  # the usual batch skips the conversion of leaves, which takes longer than some steps
            batch = as_arrays("fit: batch", batch, self._copy if self._entry == _AS_IT_IS else np.asarray)
        if (size := batch_size_of("batch", batch)) == 0:
            raise ValueError(f"{where}: expected rows, got 0")
        later, missing = [], self._entry.missing
        numbers = [x for x in jax.tree.leaves(batch) if has_values(x)] if self._entry.check else []
        if any(map(is_remote, numbers)):
            later = [(where, batch, is_finite(numbers, missing=missing))]
        else:
            self._entry.check_rows(where, batch)
        if isinstance(batch, Weighted) and batch.weights is not None and not is_remote(batch.weights):
            check_weights(f"{where}.weights", batch.weights, size)
        batch = states_as_floats(batch, self._entry.dtype)
        if self._entry.check and self._entry.dtype is None:  # integers stay integers
            return as_arrays("fit: batch", batch, self._copy), later
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else self._copy(x), batch), later

    def _settle(self, where: str, batch: Batch, finite: jax.Array) -> None:
        if not finite:
            check_finite(where, batch, self._entry.missing)


def _call(function: Callable[..., Iterable[Batch]], epoch: int) -> Iterable[Batch]:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind in positional and p.default is p.empty for p in parameters):
        return function(epoch)
    return function(**accepted(function, {"epoch": epoch}))
