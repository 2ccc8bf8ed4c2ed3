"""What `fit` trains on: arrays in memory, or batches that are read anew every epoch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from ._pytree import accepted

NESTED = "rows in a list become data in memory by numpy.array(data), with batch_size"

Batch = Any  # a pytree of arrays with one leading batch axis


def batch_size_of(name: str, batch: Batch) -> int:
    """The size of the leading axis. Raises ValueError where leaves have none or disagree."""
    leaves = tree_flatten_with_path(batch)[0]
    sizes = {jnp.shape(leaf)[:1] for _, leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        shapes = ", ".join(f"{name}{keystr(path)} {jnp.shape(leaf)}" for path, leaf in leaves)
        raise ValueError(f"{name}: expected leaves with one common leading batch axis, got {shapes or 'no leaves'}")
    return sizes.pop()[0]


def in_memory(data: Any) -> bool:
    """Whether `data` are arrays to be cut into batches: an array, or a dict or tuple of them."""
    return isinstance(data, dict | tuple) or hasattr(data, "__array__")


def as_arrays(name: str, tree: Any, own: Callable[[Any], Any] = jnp.array) -> Any:
    """The tree with JAX arrays as leaves; those that are already are not copied. `own` makes one of a NumPy array.

    Raises:
        TypeError: for a leaf that is no array of numbers, or masked, naming it: name['w'].
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _as_array(f"{name}{keystr(path)}", leaf, own), tree)


def _as_array(where: str, x: Any, own: Callable[[Any], Any]) -> Any:
    if isinstance(x, jax.Array):
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{where}: a masked array; fill it, or leave the masked rows out")
    if not hasattr(x, "__array__"):
        raise TypeError(f"{where}: expected an array, got {type(x).__name__}")
    array = np.asarray(x)  # of torch or pandas, say
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"{where}: expected numbers, got dtype {array.dtype}")
    return own(array)


def own(tree: Any) -> Any:
    """A copy, for JAX may alias a NumPy buffer that its owner goes on writing to."""
    return jax.tree.map(jnp.array, tree)


def check_leaves(**trees: Any) -> None:
    """Raise TypeError, naming it, for a leaf that is neither number nor array."""
    for name, tree in trees.items():
        for path, leaf in tree_flatten_with_path(tree)[0]:
            if not isinstance(leaf, int | float | np.generic | np.ndarray | jax.Array):
                kind = type(leaf).__name__
                raise TypeError(f"fit: {name}{keystr(path)}: {kind} is neither number nor array; declare it static()")


def arrays_or_loader(
    data: Any, batch_size: Any, own: Callable[[Any], Any] = jnp.array
) -> tuple[Any, Loader | None, int | None]:
    """Data in memory, None, and the number of rows; or None, what reads the batches, and None.

    `own` makes a copy of a NumPy array, on a device or not.

    Raises:
        TypeError, ValueError: for other data, or a batch size that does not go with them.
    """
    if in_memory(data):
        data = as_arrays("fit: data", data, own)
        rows = batch_size_of("data", data)
        if not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= rows:
            raise ValueError(f"fit: batch_size must be from 1 to the {rows} rows of data, got {batch_size!r}")
        return data, None, rows
    loader = Loader(data, own)
    if batch_size is not None:
        raise ValueError(f"fit: batch_size does not go with an iterable, whose items are the batches; {NESTED}")
    return None, loader, None


class Loader:
    """Batches to be read anew every epoch.

    Args:
        data: an iterable of batches, or a function that returns one: `data(epoch)`, or `data()`.
        own: what makes a copy of a NumPy array, on a device or not.

    Raises:
        TypeError, ValueError: for what cannot be read again and again, or yields no batch.
    """

    def __init__(self, data: Any, own: Callable[[Any], Any] = jnp.array) -> None:
        if isinstance(data, Iterator):
            raise ValueError("fit: data is an iterator, to be read once; give a list, a loader or a generator function")
        if isinstance(data, type) or not (callable(data) or hasattr(data, "__iter__")):
            kind = type(data).__name__
            raise TypeError(f"fit: data must be arrays with a leading axis or an iterable of batches, got {kind}")
        self._data, self._own = data, own
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
        empty = True
        for batch in source:
            # A list of arrays is what torch makes of a tuple; a list of numbers is rows.
            if not in_memory(batch) and not (isinstance(batch, list) and all(map(in_memory, batch))):
                raise TypeError(f"fit: data: expected batches of arrays, got a {type(batch).__name__}; {NESTED}")
            empty = False
            batch = as_arrays("fit: batch", batch, self._own)
            batch_size_of("batch", batch)
            yield batch
        if empty:
            raise ValueError(f"fit: data yielded no batch in epoch {epoch}")


def _call(function: Callable[..., Any], epoch: int) -> Any:
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind in positional and p.default is p.empty for p in parameters):
        return function(epoch)
    return function(**accepted(function, {"epoch": epoch}))
