"""What `fit` trains on: arrays in memory, or batches that are read anew every epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from ._pytree import accepted

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


def as_arrays(name: str, tree: Any) -> Any:
    """The tree with JAX arrays as leaves; those that are already are not copied.

    Raises:
        TypeError: for a leaf that is no array of numbers, or masked, naming it.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _as_array(f"{name}{keystr(path)}", leaf), tree)


def _as_array(where: str, x: Any) -> jax.Array:
    if isinstance(x, jax.Array):
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"fit: {where}: a masked array; fill it, or leave the masked rows out")
    if not hasattr(x, "__array__"):
        raise TypeError(f"fit: {where}: expected an array, got {type(x).__name__}")
    array = np.asarray(x)  # of torch or pandas, say
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"fit: {where}: expected numbers, got dtype {array.dtype}")
    # A copy: JAX may alias a NumPy buffer that its owner goes on writing to.
    return jnp.array(array)


class Loader:
    """Batches to be read anew every epoch.

    Args:
        data: an iterable of batches, or a function that returns one: `data(epoch)`, or `data()`.

    Raises:
        TypeError, ValueError: for what cannot be read again and again, or yields no batch.
    """

    def __init__(self, data: Any) -> None:
        if isinstance(data, Iterator):
            raise ValueError("fit: data is an iterator, to be read once; give a list, a loader or a generator function")
        if isinstance(data, type) or not (callable(data) or hasattr(data, "__iter__")):
            kind = type(data).__name__
            raise TypeError(f"fit: data must be arrays with a leading axis or an iterable of batches, got {kind}")
        self._data = data
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
        empty = True
        for batch in source:
            if isinstance(batch, list) or not in_memory(batch):
                raise TypeError(
                    f"fit: data: expected batches of arrays, got a {type(batch).__name__}; rows in a list become data "
                    "in memory by numpy.array(data), with batch_size"
                )
            empty = False
            yield as_arrays("batch", batch)
        if empty:
            raise ValueError(f"fit: data yielded no batch in epoch {epoch}")


def _call(function: Callable[..., Any], epoch: int) -> Any:
    takes_epoch = accepted(function, {"epoch": epoch})
    return function(**takes_epoch)
