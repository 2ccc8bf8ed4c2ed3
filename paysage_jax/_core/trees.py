"""Functions of trees: paths of leaves, checks whose errors name the leaf, dtypes, norms, finiteness."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jax.typing import DTypeLike

from .types import KeyPath, Leaf, Params, Tree

Where = Callable[[str], bool]  # a predicate on the path of a leaf


def leaf_paths(tree: Tree) -> list[str]:
    """The paths of the leaves in order, written "weights/0/matrix".

    Raises ValueError if two leaves have the same path, because a key contains a slash.
    """
    paths = [keystr(path, simple=True, separator="/") for path, _ in tree_flatten_with_path(tree)[0]]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"two leaves have the path {twice!r}: rename the key that contains a slash")
    return paths


def by_path(tree: Tree) -> dict[str, Leaf]:
    """A dict from paths to leaves."""
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def selected(owner: str, where: Where | None, tree: Tree) -> list[bool]:
    """For each leaf, whether `where` selects its path; None selects all. Raises ValueError if none is selected."""
    if where is None:
        return [True] * len(jax.tree.leaves(tree))
    paths = leaf_paths(tree)
    chosen = [bool(where(path)) for path in paths]
    if paths and not any(chosen):
        raise ValueError(f"{owner}: the predicate selects none of the leaves {paths}")
    return chosen


def without(dropped: list[bool], tree: Tree) -> Tree:
    """The tree with None in place of the dropped leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([None if drop else leaf for drop, leaf in zip(dropped, leaves, strict=True)])


# --- checks ------------------------------------------------------------------------------------------


def is_inexact(x: Leaf) -> bool:
    """Whether `x` is floating or complex; optimizers can update only such leaves."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def check_floating(name: str, tree: Tree) -> None:
    """Raise TypeError for the first leaf of `tree` whose dtype is neither floating nor complex."""
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if not is_inexact(leaf):
            hint = " (`freeze` keeps it out)" if name == "params" else ""
            got = jnp.result_type(leaf)
            raise TypeError(f"{name}{keystr(path)}: expected a floating or complex dtype, got {got}{hint}")


def check_addable(name: str, tree: Tree, reference_name: str, reference: Tree) -> None:
    """Raise TypeError for a complex leaf where `reference` is real, or a noninteger leaf where it is an integer."""

    def kind(x: Leaf) -> int:
        return is_inexact(x) + jnp.iscomplexobj(x)

    for (path, x), like in zip(tree_flatten_with_path(tree)[0], jax.tree.leaves(reference), strict=True):
        if kind(x) > kind(like):
            dtype, expected = jnp.result_type(x), jnp.result_type(like)
            raise TypeError(f"{name}{keystr(path)}: {dtype} cannot be added to {expected}, as {reference_name} is")


def _structure_and_shapes(tree: Tree) -> tuple[Tree, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def check_same_tree(name: str, tree: Tree, reference_name: str, reference: Tree) -> None:
    """Raise ValueError unless `tree` has the structure and shapes of `reference`."""
    if _structure_and_shapes(tree) == _structure_and_shapes(reference):
        return
    got, got_structure = tree_flatten_with_path(tree)
    expected, structure = tree_flatten_with_path(reference)
    got_shapes = {keystr(path): jnp.shape(leaf) for path, leaf in got}
    shapes = {keystr(path): jnp.shape(leaf) for path, leaf in expected}
    for path, shape in shapes.items():
        if path not in got_shapes:
            raise ValueError(f"{name}{path}: missing; {reference_name} has it, of shape {shape}")
    for path in got_shapes:
        if path not in shapes:
            raise ValueError(f"{name}{path}: unexpected; {reference_name} has no such leaf")
    if got_structure != structure:
        raise ValueError(f"{name}: expected the tree structure of {reference_name}, {structure}, got {got_structure}")
    for path, shape in shapes.items():
        if got_shapes[path] != shape:
            raise ValueError(f"{name}{path}: expected shape {shape} as in {reference_name}, got {got_shapes[path]}")


def as_scalar(name: str, value: object) -> jax.Array:
    """A copy of `value` as a scalar array of the default float dtype. Raises ValueError for another shape."""
    # A copy, because a state that shares its array with a hyperparameter cannot be donated.
    value = jnp.array(value, dtype=float)
    if value.shape != ():
        raise ValueError(f"{name}: expected a scalar, got shape {value.shape}; use jax.vmap for many values")
    return value


# --- dtypes ------------------------------------------------------------------------------------------


def moment_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of a parameter's moments and arithmetic: at least float32.

    Complex and integer dtypes stay unchanged.
    """
    is_narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if is_narrow else dtype


def real_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype of the real part: float32 for complex64."""
    return jnp.finfo(dtype).dtype


def floating_dtype(params: Params) -> np.dtype:
    """The widest floating dtype of the leaves and of the parts of complex leaves; the default one if there are none."""
    dtypes = [real_dtype(jnp.result_type(x)) for x in jax.tree.leaves(params) if is_inexact(x)]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)


def zeros_like_moments(params: Params, *, real: bool = False) -> Params:
    """Zeros with the shapes of the leaves, in their `moment_dtype` or in its real dtype."""

    def zeros(p: Leaf) -> jax.Array:
        dtype = moment_dtype(jnp.result_type(p))
        return jnp.zeros_like(p, dtype=real_dtype(dtype) if real else dtype)

    return jax.tree.map(zeros, params)


# --- squares, norms, roots, finiteness ---------------------------------------------------------------


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|², which is real even if x is complex."""
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2


def norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm, accurate even if squares overflow or underflow; NaN and inf propagate."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag])
    if x.size < 4096:  # a second pass costs less than a branch
        return _scaled_norm(x)
    square = jnp.sum(x**2)
    # Below this sum, squares that underflowed may exceed its rounding error.
    smallest = x.size * float(jnp.finfo(x.dtype).tiny / jnp.finfo(x.dtype).eps)
    return jax.lax.cond((square > smallest) & (square < np.inf), lambda: root(square), lambda: _scaled_norm(x))


def _scaled_norm(x: jax.Array) -> jax.Array:
    scale = scale_of(x)
    return scale * root(jnp.sum((x / scale) ** 2))


def scale_of(x: jax.Array) -> jax.Array:
    """A power of two near the largest element of x, so that x / scale is exact and its squares do not overflow."""
    largest = jnp.max(jnp.abs(x), initial=0)
    _, exponent = jnp.frexp(jnp.where((largest >= jnp.finfo(x.dtype).tiny) & (largest < np.inf), largest, 1))
    most = jnp.finfo(x.dtype).maxexp - 2  # XLA may compute x / scale as x * (1 / scale), which must not underflow
    return jax.lax.stop_gradient(jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, -most, most)))


def direction(x: jax.Array) -> jax.Array:
    """x / ‖x‖, accurate even if ‖x‖ overflows; zeros stay unchanged."""
    parts = jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x
    scaled = x / scale_of(parts).astype(x.dtype)
    length = norm(scaled)
    return jnp.where(length == 0, x, scaled / divisor(length).astype(x.dtype))


def divisor(v: jax.Array) -> jax.Array:
    """v, but 1 where v is 0, so that 0 / divisor(v) is 0."""
    return jnp.where(v == 0, 1, v)


@jax.custom_jvp
def root(v: jax.Array) -> jax.Array:
    """√v, with derivative 0 at 0, so that elements without gradients do not give NaN when a run is differentiated."""
    return jnp.sqrt(v)


@root.defjvp
def _root_jvp(primals: Tree, tangents: Tree) -> Tree:
    (v,), (dv,) = primals, tangents
    x = jnp.sqrt(v)
    return x, jnp.where(v > 0, dv / (2 * jnp.where(v > 0, x, 1)), 0)


@jax.custom_jvp
def sum_of_weights(b: Leaf, t: jax.Array) -> jax.Array:
    """1 - bᵗ, the sum of the weights of t gradients in a running mean that started at zero."""
    return -jnp.expm1(t * jnp.log(b))  # 1 - bᵗ loses five of seven digits in float32 at b = 0.999, t = 1


@sum_of_weights.defjvp
def _sum_of_weights_jvp(primals: Tree, tangents: Tree) -> Tree:
    (b, t), (db, _) = primals, tangents  # t is a number of steps and needs no derivative
    return sum_of_weights(b, t), -t * b ** (t - 1) * db  # valid at b = 0 as well, unlike the derivative of log


def all_finite(tree: Tree) -> jax.Array:
    """Whether no element of any leaf is NaN or infinite; a bool scalar. Integers and keys are always finite."""
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if is_inexact(x)]
    return jnp.all(jnp.array(finite, bool))


def at_leaves(owner: str, values: Iterable[tuple[KeyPath, Leaf]], tree: Tree) -> list[Leaf]:
    """For each leaf of `tree`, the value given at its path or at a branch above it, from pairs (path, value)."""
    at = dict(values)

    def value(path: KeyPath) -> Leaf:
        for length in range(len(path) + 1):
            if path[:length] in at:
                return at[path[:length]]
        raise ValueError(f"{owner}: nothing is given for the leaf {keystr(path)}, only for {[*map(keystr, at)]}")

    return [value(path) for path, _ in tree_flatten_with_path(tree)[0]]
