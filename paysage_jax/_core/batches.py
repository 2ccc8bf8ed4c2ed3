"""Batches: arrays with a common leading axis, their weights, and checks of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, SupportsInt

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path
from jax.typing import DTypeLike

from .trees import all_finite, scale_of
from .types import Batch, Leaf, Tree

_BLOCK = 2**18  # numbers that are checked at a time, few enough to stay in the cache


class Weighted(NamedTuple):
    """Weighted data, for example the sequences of a protein family. `fit` and loaders accept it in place of rows.

    The gradient of a batch of n rows is a mean over its rows, and so are its energies:

        gradient = 1/n Σᵢ wᵢ (∂E(vᵢ) - mean ∂E(samples))

    If the weights have mean 1 over the data, this is an unbiased estimate of the gradient of the weighted mean for any
    batch size; a batch of zero weight has the gradient 0. `fit` divides the weights of data in memory by their mean. It
    does not rescale the weights from a loader, and neither does an estimator that you call directly: divide these
    weights by their mean over the data, which otherwise scales the gradient.

    v: the rows. weights: nonnegative numbers of shape (rows,).
    """

    v: Batch
    weights: Leaf


class Entry(NamedTuple):
    """The conversions and checks of data that an estimator asks for.

    dtype: the floating dtype for integers and bools; None leaves them unchanged. missing: whether NaN marks a missing
    value, which the estimator fills in. check: check(name, rows) raises an error for values that are not states of the
    model; None accepts all values.
    """

    dtype: DTypeLike | None = None
    missing: bool = False
    check: Callable[[str, Batch], None] | None = None

    def check_rows(self, name: str, batch: Batch) -> None:
        """Check the rows of a batch, weighted or not, whose values are known."""
        if self.check is not None:
            name, v = (f"{name}.v", batch.v) if isinstance(batch, Weighted) else (name, batch)
            self.check(name, v)


def batch_size_of(name: str, batch: Batch) -> int:
    """The size of the leading axis. Raises ValueError if a leaf has none or if leaves disagree."""
    leaves = tree_flatten_with_path(batch)[0]
    sizes = {jnp.shape(leaf)[:1] for _, leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        shapes = ", ".join(f"{name}{keystr(path)} {jnp.shape(leaf)}" for path, leaf in leaves)
        raise ValueError(f"{name}: expected leaves with one common leading batch axis, got {shapes or 'no leaves'}")
    return sizes.pop()[0]


def in_memory(data: object) -> bool:
    """Whether `data` are arrays to split into batches: an array, or a dict or tuple of arrays."""
    return isinstance(data, dict | tuple) or hasattr(data, "__array__")


def as_arrays(name: str, tree: Tree, convert: Callable[[np.ndarray], Leaf] = jnp.array) -> Tree:
    """Convert the leaves to JAX arrays; JAX arrays are not copied.

    `convert` is applied to NumPy arrays; `np.asarray` leaves them unchanged.

    Raises:
        TypeError: if a leaf is not a dense array of numbers, or is masked; it names the leaf, for example name['w'].
        ValueError: if an integer does not fit in the dtype that JAX gives it.
    """
    return tree_map_with_path(lambda path, x: _as_array(f"{name}{keystr(path)}", x, convert), tree, is_leaf=_is_sparse)


def _is_sparse(x: Leaf) -> bool:
    """Whether x is a sparse matrix, for example of SciPy or JAX."""
    return not hasattr(x, "__array__") and (hasattr(x, "toarray") or hasattr(x, "todense"))


def check_dense(where: str, x: Leaf) -> None:
    if _is_sparse(x):
        dense = "toarray" if hasattr(x, "toarray") else "todense"
        raise TypeError(
            f"{where}: expected a dense array, got the sparse matrix {type(x).__name__}; use data.{dense}(), or, if "
            "that does not fit in memory, a loader that makes each batch dense"
        )


def _as_array(where: str, x: Leaf, convert: Callable[[np.ndarray], Leaf]) -> Tree:
    if isinstance(x, jax.Array):
        return x
    check_dense(where, x)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{where}: expected a plain array, got a masked array; fill it, or drop the masked rows")
    if not hasattr(x, "__array__"):
        raise TypeError(f"{where}: expected an array, got {type(x).__name__}")
    array = np.asarray(x)  # from torch or pandas, for example
    if array.dtype.kind == "m" or not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"{where}: expected numbers, got dtype {array.dtype}")
    if not array.dtype.isnative or array.dtype.char in _JAX_HAS:  # FITS, netCDF and IDX are big-endian
        array = array.astype(_JAX_HAS.get(array.dtype.char) or array.dtype.newbyteorder("="))
    if convert is not np.asarray and array.dtype.char in _WIDE:
        _check_range(where, array)
    return convert(array)


_JAX_HAS = {"g": np.float64, "G": np.complex128}  # instead of long doubles
_WIDE = {np.dtype(kind).char for kind in ("int64", "uint64", np.longlong, np.ulonglong)}


def _check_range(where: str, x: np.ndarray) -> None:
    """Raise ValueError for an integer that JAX would wrap around."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if dtype != x.dtype and (wrong := x.astype(dtype) != x).any():
        index = np.unravel_index(np.argmax(wrong), x.shape)
        advice = "pass floats, or set jax_enable_x64"
        raise ValueError(f"{where}: {x[index]} in {place(index)} does not fit in {dtype}; {advice}")


def copy_to_device(tree: Tree) -> Tree:
    """A copy, because JAX may alias a NumPy buffer that its owner still writes to. It compiles nothing."""
    typed = jax.tree.map(lambda x: x if hasattr(x, "dtype") else np.asarray(x), tree)  # no weak types
    return jax.device_put(typed, may_alias=False)


def as_floats(tree: Tree, dtype: DTypeLike | None) -> Tree:
    """Convert integers and bools to `dtype` (None: no conversion); other leaves stay unchanged."""

    def convert(x: Leaf) -> Tree:
        if _is_inexact(x) or not hasattr(x, "astype"):
            return x
        whole = any(jnp.issubdtype(x.dtype, kind) for kind in (np.integer, np.bool_))
        return x.astype(dtype) if whole else x

    return tree if dtype is None else jax.tree.map(convert, tree)


def states_as_floats(batch: Batch, dtype: DTypeLike | None) -> Batch:
    """`as_floats`, but weights get the default float dtype, because they may not fit in half precision."""
    if not isinstance(batch, Weighted) or dtype is None:
        return as_floats(batch, dtype)
    return Weighted(as_floats(batch.v, dtype), as_floats(batch.weights, float))


def check_finite(name: str, tree: Tree, missing: bool = False) -> None:
    """Raise ValueError for a nonfinite number if the values are known; it names leaf, row and column.

    missing: whether NaN is allowed.
    """

    def finite(x: np.ndarray) -> np.ndarray:
        return np.isfinite(x) | np.isnan(x) if missing else np.isfinite(x)

    for path, x in tree_flatten_with_path(tree)[0]:
        if not has_values(x) or (is_remote(x) and _is_finite_there(x, missing)):
            continue
        x = np.asarray(x)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        with np.errstate(over="ignore"):
            used = x.astype(dtype, copy=False)
        with np.errstate(all="ignore"):
            found = first_wrong(used, lambda x: np.isfinite(x.sum()) or finite(x).all(), finite)
        if found:
            index, value = found
            fill = "" if missing else "; fill in missing values, or drop these rows"
            if np.isfinite(x[index]):
                value, fill = x[index], f", which is infinite in {dtype}; rescale the data"
            raise ValueError(f"{name}{keystr(path)}: expected finite numbers, got {value} in {place(index)}{fill}")


def place(index: Sequence[SupportsInt]) -> str:
    """An index in the form used by error messages: row 3, column 5."""
    row, *column = map(int, index)
    return f"row {row}" + (f", column {column[0] if len(column) == 1 else tuple(column)}" if column else "")


def _is_inexact(x: Leaf) -> bool:
    # Comparing the letter is fast; half precision needs `issubdtype`. The dtype of a key has no kind.
    dtype = getattr(x, "dtype", None)
    return dtype is not None and (getattr(dtype, "kind", "V") in "fc" or jnp.issubdtype(dtype, np.inexact))


def has_values(x: Leaf) -> bool:
    """Whether x is an array of floating numbers whose values this process knows."""
    return not isinstance(x, Tracer) and _is_inexact(x) and x.ndim > 0 and _is_known(x)


def is_remote(x: Leaf) -> bool:
    """Whether the host would have to copy x from another device."""
    return isinstance(x, jax.Array) and any(device.platform != "cpu" for device in x.devices())


def first_wrong(
    x: np.ndarray, fine: Callable[[np.ndarray], object], each: Callable[[np.ndarray], np.ndarray]
) -> tuple[tuple[int, ...], Leaf] | None:
    """The index and value of the first wrong number; None if all are fine.

    Args:
        x: an array.
        fine: a fast function that tells whether all numbers of a block of rows are fine.
        each: a function that tells which numbers of the block are fine.
    """
    rows = max(1, _BLOCK // max(1, x[:1].size))
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        if not fine(block):
            row, *column = map(int, np.unravel_index(np.argmin(each(block)), block.shape))
            return (start + row, *column), block[row, *column]
    return None


def _is_finite_there(x: jax.Array, missing: bool) -> bool:
    with jax.ensure_compile_time_eval():  # a constant in a traced program also has known values
        return bool(is_finite([x], missing=missing))


@partial(jax.jit, static_argnames="missing")
def is_finite(arrays: list[Leaf], missing: bool) -> jax.Array:
    return all_finite([jnp.where(jnp.isnan(x), 0, x) for x in arrays] if missing else arrays)


def check_weights(name: str, weights: Leaf, size: int) -> None:
    """Raise TypeError or ValueError unless the weights are nonnegative finite numbers of shape (size,)."""
    if np.shape(weights) != (size,):
        raise ValueError(f"{name}: expected shape ({size},), one for each row, got {np.shape(weights)}")
    dtype = weights.dtype if isinstance(weights, jax.Array) else np.asarray(weights).dtype
    if dtype.kind not in "biuf" and not jnp.issubdtype(dtype, np.floating):
        raise TypeError(f"{name}: expected nonnegative numbers, got dtype {dtype}")
    if _is_known(weights) and (wrong := ~(np.isfinite(known := np.asarray(weights)) & (known >= 0))).any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{name}: expected nonnegative numbers, got {known[row]} in row {row}")


def _is_known(x: Leaf) -> bool:
    """Whether this process knows the values of x."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)


def relative(name: str, weights: Leaf, size: int) -> Tree:
    """The weights divided by their mean, computed so that the mean cannot overflow or underflow.

    Raises TypeError or ValueError as `check_weights`, and ValueError if all weights are known to be 0.
    """
    check_weights(name, weights, size)
    if not _is_known(weights):
        weights = jnp.asarray(weights, float)
        weights = weights / scale_of(weights)
        return weights / jnp.mean(weights)
    known = np.asarray(weights, np.float64)
    if not known.any():
        raise ValueError(f"{name}: expected some positive weight, all are 0")
    known = known / known.max()
    known = (known / known.mean()).astype(jnp.result_type(float))
    return jnp.array(known) if isinstance(weights, jax.Array) else known


def weight_of(batch: Batch) -> Tree:
    """The sum of the weights of a batch; without weights, its number of rows."""
    weights = batch.weights if isinstance(batch, Weighted) else None
    return batch_size_of("batch", batch) if weights is None else jnp.sum(jnp.asarray(weights, float))
