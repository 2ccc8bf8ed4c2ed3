"""What `fit` trains on: arrays in memory, or batches that are read anew every epoch."""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from ._pytree import accepted
from ._trees import all_finite

NESTED = "rows in a list become data in memory by numpy.array(data), with batch_size"

Batch = Any  # a pytree of arrays with one leading batch axis


class Weighted(NamedTuple):
    """Weighted data, for example the sequences of a protein family; `fit` and loaders take it in the place of rows.

    The gradient of a batch of n rows is a mean over its rows, and so are its energies:

        gradient = 1/n Σᵢ wᵢ (∂E(vᵢ) - mean ∂E(samples))

    Where the weights have mean 1 over the data, this is an unbiased estimate of the gradient of the weighted mean, for
    batches of any size; a batch of zero weight has the gradient 0. `fit` divides the weights of data in memory by their
    mean. It takes those of a loader as they are, relative to 1, and so does an estimator called by hand: there, divide
    them by their mean over the data, which otherwise scales the gradient.

    v: the rows. weights: (rows,) nonnegative numbers.
    """

    v: Batch
    weights: Any


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
        TypeError: for a leaf that is no array of numbers, or masked, or sparse, naming it: name['w'].
    """
    return tree_map_with_path(lambda path, x: _as_array(f"{name}{keystr(path)}", x, own), tree, is_leaf=_is_sparse)


def _is_sparse(x: Any) -> bool:
    """Whether it is a sparse matrix, of SciPy or JAX for example."""
    return not hasattr(x, "__array__") and (hasattr(x, "toarray") or hasattr(x, "todense"))


def _check_dense(where: str, x: Any) -> None:
    if _is_sparse(x):
        dense = "toarray" if hasattr(x, "toarray") else "todense"
        raise TypeError(
            f"{where}: {type(x).__name__} is a sparse matrix, expected a dense array: use data.{dense}(), or if that "
            "does not fit in memory a loader that makes each batch dense"
        )


def _as_array(where: str, x: Any, own: Callable[[Any], Any]) -> Any:
    if isinstance(x, jax.Array):
        return x
    _check_dense(where, x)
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


# --- how data enter ----------------------------------------------------------------------------------


_STEPS_LATER = 8  # by then a batch has been computed, and to ask for it costs no wait


class Entry(NamedTuple):
    """How an estimator wants its data.

    dtype: the floating dtype that integers and bools become; None: they stay as they are. missing: whether NaN stands
    for a missing value, which the estimator fills in. finite: whether other numbers that are not finite are refused.
    """

    dtype: Any = None
    missing: bool = False
    finite: bool = False


_AS_IT_IS = Entry()


def as_floats(tree: Any, dtype: Any) -> Any:
    """The tree with integers and bools converted to `dtype`; None: as it is. The rest stays as it is."""

    def convert(x: Any) -> Any:
        if _is_inexact(x) or not hasattr(x, "astype"):
            return x
        whole = any(jnp.issubdtype(x.dtype, kind) for kind in (np.integer, np.bool_))
        return x.astype(dtype) if whole else x

    return tree if dtype is None else jax.tree.map(convert, tree)


def check_finite(name: str, tree: Any, missing: bool = False) -> None:
    """Raise ValueError for a number that is not finite, naming leaf, row and column, where the values are known.

    `missing`: whether NaN is allowed.
    """
    for path, x in tree_flatten_with_path(tree)[0]:
        if not _has_values(x) or (is_remote(x) and _is_finite_there(x, missing)):
            continue
        if found := _first_not_finite(np.asarray(x), missing):
            index, value = found
            fill = "" if missing else ": fill in missing values, or leave these rows out"
            raise ValueError(f"{name}{keystr(path)}: expected finite numbers, got {value} in {place(index)}{fill}")


def place(index: tuple[int, ...]) -> str:
    """An index as errors name it: row 3, column 5."""
    row, *column = index
    return f"row {row}" + (f", column {column[0] if len(column) == 1 else tuple(column)}" if column else "")


def _is_inexact(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)  # the letter is found faster than the kind, which half precision needs
    return dtype is not None and (getattr(dtype, "kind", "no letter") in "fc" or jnp.issubdtype(dtype, np.inexact))


def _has_values(x: Any) -> bool:
    """Whether these are floating numbers, known to this process."""
    if isinstance(x, Tracer) or not _is_inexact(x) or x.ndim == 0:
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def is_remote(x: Any) -> bool:
    """Whether the host would have to wait for it, or to copy it."""
    return isinstance(x, jax.Array) and any(device.platform != "cpu" for device in x.devices())


def _first_not_finite(x: np.ndarray, missing: bool) -> tuple[tuple[int, ...], Any] | None:
    """The index of the first such number, and the number; None: all are finite."""
    with np.errstate(all="ignore"):
        if np.isfinite(x.sum()):  # one fast pass; a sum that overflows says nothing
            return None
    each = max(1, 2**20 // max(1, x[:1].size))  # rows at a time, so that the bools stay few
    for start in range(0, len(x), each):
        block = x[start : start + each]
        if not (finite := np.isfinite(block) | (np.isnan(block) if missing else False)).all():
            index = tuple(map(int, np.unravel_index(np.argmin(finite), finite.shape)))
            return (start + index[0], *index[1:]), block[index]
    return None


def _is_finite_there(x: jax.Array, missing: bool) -> bool:
    with jax.ensure_compile_time_eval():  # a constant of a program that is traced has values, too
        return bool(_is_finite([x], missing=missing))


@partial(jax.jit, static_argnames="missing")
def _is_finite(arrays: list[Any], missing: bool) -> jax.Array:
    return all_finite([jnp.where(jnp.isnan(x), 0, x) for x in arrays] if missing else arrays)


def check_weights(name: str, weights: Any, size: int) -> None:
    """Raise ValueError for weights not of shape (size,), and where their values are known for a negative one or NaN."""
    if jnp.shape(weights) != (size,):
        raise ValueError(f"{name}: expected shape ({size},) as in v_data, got {jnp.shape(weights)}")
    if isinstance(weights, Tracer) or not getattr(weights, "is_fully_addressable", True):
        return
    wrong = ~(np.isfinite(known := np.asarray(weights)) & (known >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{name}: expected nonnegative numbers, got {known[row]} in row {row}")


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


def weight_of(batch: Batch) -> Any:
    """The sum of the weights of a batch; its number of rows if it has none."""
    weights = batch.weights if isinstance(batch, Weighted) else None
    return batch_size_of("batch", batch) if weights is None else jnp.sum(jnp.asarray(weights, float))


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
        if (size := batch_size_of("batch", batch)) == 0:
            raise ValueError(f"{where} has no rows: leave empty batches out")
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
