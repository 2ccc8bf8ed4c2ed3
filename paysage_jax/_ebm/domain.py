"""Data sets: checks of their values, and weighted means over their rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import all_leaves, keystr, tree_flatten_with_path

from .._core.batches import Weighted, as_arrays, as_floats, check_finite, first_wrong, is_remote, place, relative
from .._core.trees import moment_dtype, scale_of
from .._core.types import Batch, Leaf, Tree
from .phases import rows


def check_real(name: str, tree: Tree) -> None:
    """Raise TypeError for complex numbers, and ValueError for nonfinite numbers if the values are known."""
    for path, x in tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(x.dtype, np.complexfloating):
            raise TypeError(f"{name}{keystr(path)}: expected real numbers, got dtype {x.dtype}")
    check_finite(name, tree)


def check_unit_interval(name: str, tree: Tree) -> None:
    """Raise ValueError for a number outside [0, 1] if the values are known; it names leaf, row and column."""

    def fine(x: Leaf) -> Leaf:
        return x.dtype == bool or (x.min() >= 0) & (x.max() <= 1)  # False for NaN

    def each(x: Leaf) -> Leaf:
        return (x >= 0) & (x <= 1)

    check_each(name, tree, each, "numbers in [0, 1]", _advice, fine)


def check_binary(name: str, tree: Tree) -> None:
    """Raise ValueError for a number other than 0 and 1 if the values are known; it names leaf, row and column."""
    check_each(name, tree, lambda x: (x == 0) | (x == 1), "zeros and ones", _advice)


def check_each(
    name: str,
    tree: Tree,
    each: Callable[[Leaf], Leaf],
    expected: str,
    advice: Callable[[np.ndarray], str],
    fine: Callable[[Leaf], Leaf] | None = None,
) -> None:
    """Raise ValueError for a number for which `each` is False, if the values are known; it names leaf, row and column.

    fine: whether all are True, if that is faster than each(x).all(). advice: what to do, a function of all numbers.
    """

    def all_of(x: Leaf) -> Leaf:
        return each(x).all()

    fine = fine or all_of
    for path, x in tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(x.dtype, np.complexfloating):
            raise TypeError(f"{name}{keystr(path)}: expected {expected}, got dtype {x.dtype}")
        if isinstance(x, Tracer) or x.size == 0 or not getattr(x, "is_fully_addressable", True):
            continue
        if is_remote(x):
            with jax.ensure_compile_time_eval():  # a constant in a traced program also has known values
                if fine(x):
                    continue
        x = np.asarray(x)
        if found := first_wrong(x, fine, each):
            index, value = found
            raise ValueError(f"{name}{keystr(path)}: expected {expected}, got {value} in {place(index)}; {advice(x)}")


def fill_in(x: np.ndarray) -> str:
    """What to do about nonfinite numbers; an empty string if all numbers are finite."""
    return "" if np.isfinite(x.astype(np.float32)).all() else "fill in missing values, or drop these rows"


def _advice(x: np.ndarray) -> str:
    if missing := fill_in(x):
        return missing
    if ((x == -1) | (x == 1)).all():
        return "convert spins to zeros and ones with (v + 1) / 2"
    if x.min() < 0:
        return "use Gaussian units for real numbers"
    if x.max() > 1:
        return f"scale the values to [0, 1] or compare them with a threshold, for example v > {x.max() / 2:g}"
    return "compare grey values with a threshold, for example v > 0.5, or draw zeros and ones with these means"


def measured(name: str, data: Batch, check: Callable[[str, Tree], None] = check_finite) -> Weighted:
    """Rows as arrays, and their weights, or None without weights.

    Raises:
        TypeError, ValueError: if the data are not arrays or have no rows, if the weights do not fit or are all 0, and
            for values that `check` rejects.
    """
    v, weights = data if isinstance(data, Weighted) else (data, None)
    v = as_arrays(name, v, np.asarray)  # checked before JAX narrows the dtype
    size = rows(name, v)
    check(name, v)
    if weights is not None:
        of_rows = as_arrays(f"{name}.weights", weights, np.asarray)
        weights = jnp.asarray(relative(f"{name}.weights", of_rows, size))
    return Weighted(as_arrays(name, v), weights)


def check_matrix(name: str, v: Batch) -> None:
    """Raise ValueError unless v is one array (rows, visible)."""
    shapes = [x.shape for x in jax.tree.leaves(v)]
    if not all_leaves([v]) or v.ndim != 2:
        hint = "; flatten each row: data.reshape(len(data), -1)" if len(shapes) == 1 and len(shapes[0]) > 2 else ""
        raise ValueError(f"{name}: expected one array (rows, visible), got shapes {shapes}{hint}")


def check_real_matrix(name: str, v: Batch) -> None:
    """Raise TypeError or ValueError unless v is one array (rows, visible) of finite real numbers."""
    check_matrix(name, v)
    check_real(name, v)


def mean_over_rows(x: jax.Array, weights: Leaf) -> jax.Array:
    """Σ wᵢ xᵢ / Σ wᵢ over the rows xᵢ, in at least float32; without weights, the mean."""
    x = x.astype(moment_dtype(x.dtype))
    if weights is None:
        return jnp.mean(x, axis=0)
    w = jnp.asarray(weights, x.dtype)
    w = w / scale_of(w)  # so that sums do not overflow
    return jnp.tensordot(w, x, axes=1, precision="highest") / jnp.sum(w)


def mean_and_deviation(name: str, data: Weighted) -> tuple[jax.Array, jax.Array]:
    """The mean and standard deviation of each column of (rows, n), in at least float32.

    Both are accurate even if values are far from 0, tiny or huge. Raises ValueError for a column that is constant up to
    rounding, or whose variance overflows or underflows.
    """
    x = as_floats(data.v, float)
    x = x.astype(moment_dtype(x.dtype))
    counted = True if data.weights is None else (data.weights > 0)[:, None]
    low, high = jnp.min(x, axis=0, where=counted, initial=jnp.inf), jnp.max(x, axis=0, where=counted, initial=-jnp.inf)
    span = jnp.where(high > low, high - low, 1)
    u = (x - low[None]) / span[None]  # in [0, 1], exactly 0 in a constant column
    mean = mean_over_rows(u, data.weights)
    mean = mean + mean_over_rows(u - mean[None], data.weights)
    deviation = span * jnp.sqrt(mean_over_rows((u - mean[None]) ** 2, data.weights))
    mean = low + span * mean
    if not isinstance(deviation, Tracer):
        _check_varies(name, *map(np.asarray, (mean, deviation, jnp.maximum(jnp.abs(low), jnp.abs(high)))))
    return mean, deviation


def _check_varies(name: str, mean: np.ndarray, deviation: np.ndarray, largest: np.ndarray) -> None:
    limits = np.finfo(deviation.dtype)
    variance = np.square(deviation.astype(np.float64))
    for wrong, what in (
        (deviation <= 4 * limits.eps * largest, "is constant up to rounding; drop this column"),
        (~((limits.tiny <= variance) & (variance <= limits.max)), f"has no variance in {deviation.dtype}; rescale it"),
    ):
        if wrong.any():
            column = int(np.argmax(wrong))
            numbers = f"mean {mean[column]:g}, standard deviation {deviation[column]:g}"
            raise ValueError(f"{name}: data[:, {column}] {what} ({numbers})")
