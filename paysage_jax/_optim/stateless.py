"""Transforms without a state, to `chain` before or after an optimizer.

`where` is a predicate on the path of a leaf, written "weights/0/matrix". A predicate that selects no leaf raises a
ValueError. Transforms that need the parameters raise a ValueError if `update` is called without them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from .._core.pytree import Number, as_number, converted, function, number
from .._core.trees import (
    Where,
    as_scalar,
    at_leaves,
    check_addable,
    check_floating,
    check_same_tree,
    direction,
    is_inexact,
    moment_dtype,
    norm,
    selected,
    without,
)
from .._core.types import KeyPath, Leaf, Params, State, Tree, Updates
from .packing import pack_all_like, unpack_all
from .transformation import BEFORE, PROJECTION, Transformation, apply_updates


class _Stateless(Transformation):
    """Base class of transforms that compute new updates from updates and parameters. `where` sees unpacked leaves."""

    _whole_leaves: ClassVar[bool] = False  # whether packed leaves are unpacked even without a predicate

    def init(self, params: Params) -> State:
        self.check_for(params)
        if self._where is not None:
            selected(type(self).__name__, self._where, unpack_all(params))
        return ()

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        if type(state) is not tuple or state:
            raise TypeError(f"{type(self).__name__}: expected the state (), got {type(state).__name__}")
        if self._where is None and not self._whole_leaves:
            return self._new_updates(updates, params), state
        return pack_all_like(self._new_updates(unpack_all(updates), unpack_all(params)), updates), state

    @abstractmethod
    def _new_updates(self, updates: Updates, params: Params | None) -> Updates: ...

    @property
    def _where(self) -> Where | None:
        return getattr(self, "where", None)

    def _at_selected(
        self, rule: Callable[..., jax.Array], updates: Updates, params: Params | None, *trees: Tree, wide: bool = False
    ) -> Updates:
        """Apply rule(u, p, *leaves), in at least float32, to the leaves that `where` selects; other updates pass.

        Results have the dtype of the parameters, or stay in at least float32 if `wide` is true.
        """
        chosen = selected(type(self).__name__, self._where, updates)
        check_floating("params", without([not c for c in chosen], params))
        check_addable("updates", updates, "params", params)

        def apply(u: Leaf, p: Leaf, *leaves: Leaf) -> jax.Array:
            dtype = jnp.result_type(p)
            new = rule(*(jnp.asarray(x, moment_dtype(dtype)) for x in (u, p, *leaves)))
            return new if wide else new.astype(dtype)

        leaves, structure = jax.tree.flatten(updates)
        rows = zip(chosen, leaves, *map(jax.tree.leaves, (params, *trees)), strict=True)
        return structure.unflatten([apply(*row) if c else row[0] for c, *row in rows])


def _widened(x: Leaf) -> jax.Array:
    return jnp.asarray(x, moment_dtype(jnp.result_type(x)))


# --- before an optimizer -----------------------------------------------------------------------------


class clip_by_global_norm(_Stateless):
    """Scale the gradient down to at most `max_norm` (Pascanu, Mikolov & Bengio, 2013).

        g min(1, max_norm / ‖g‖),  ‖g‖ the Euclidean norm over all leaves

    If the norm is NaN, the gradient passes unchanged. If the norm is infinite, finite elements become 0 and infinite
    elements become NaN. Integer leaves pass unchanged and do not contribute to the norm.

    Args:
        max_norm: a positive number.
    """

    max_norm: Number = number("(0, inf]")

    def _new_updates(self, updates: Updates, params: Params | None) -> Updates:
        norms = [norm(_widened(g)).astype(float) for g in jax.tree.leaves(updates) if is_inexact(g)]
        if not norms:
            return updates
        total, max_norm = norm(jnp.stack(norms)), jnp.asarray(self.max_norm, float)
        # Multiply twice by the root of the factor, because the factor itself may underflow.
        root = jnp.where(total > max_norm, jnp.sqrt(max_norm) / jnp.sqrt(total), 1)

        def scaled(g: Leaf) -> jax.Array:
            wide = _widened(g)
            return (wide * root.astype(wide.dtype) * root.astype(wide.dtype)).astype(jnp.result_type(g))

        return jax.tree.map(lambda g: scaled(g) if is_inexact(g) else g, updates)


class add_decayed_weights(_Stateless):
    """Add the gradient of the penalty weight_decay ‖p‖² / 2. Chain it before an optimizer.

        g + weight_decay p

    Args:
        weight_decay: a nonnegative number.
        where: a predicate that selects leaves by their path; None selects all.
    """

    _stage = BEFORE
    needs_params = True
    weight_decay: Number = number()
    where: Where | None = function(default=None)

    def _new_updates(self, updates: Updates, params: Params | None) -> Updates:
        return self._at_selected(lambda g, p: g + jnp.asarray(self.weight_decay, p.dtype) * p, updates, params)


class add_l1_decay(_Stateless):
    """Add the gradient of the penalty l1_decay ‖p‖₁. Chain it before an optimizer.

        g + l1_decay sign(p),  sign(p) = p / |p| for complex p

    Args:
        l1_decay: a nonnegative number.
        where: a predicate that selects leaves by their path; None selects all.
    """

    _stage = BEFORE
    needs_params = True
    l1_decay: Number = number()
    where: Where | None = function(default=None)

    def _new_updates(self, updates: Updates, params: Params | None) -> Updates:
        return self._at_selected(lambda g, p: g + jnp.asarray(self.l1_decay, p.dtype) * jnp.sign(p), updates, params)


# --- after an optimizer ------------------------------------------------------------------------------


class project(_Stateless):
    """Project the parameters after the update. Chain it after an optimizer.

        u = q - p,  q = projection(p + u)

    If q is 0 or between p / 2 and 2 p, `apply_updates` gives exactly q. Otherwise the result differs from q by the
    rounding error of q - p: a parameter of 1e9 that is projected to 0.5 becomes 0 first, and 0.5 at the next update.
    For parameters below float32 the updates are float32, so the same holds for them.

    Args:
        projection: a function params -> params of the whole tree, for example `non_negative`, `unit_column_norm`, or
            one of `optax.projections`.
        where: a predicate that selects leaves by their path; None selects all.
    """

    _stage = PROJECTION
    _whole_leaves = True
    needs_params = True
    projection: Callable[[Params], Params] = function()
    where: Where | None = function(default=None)

    def _new_updates(self, updates: Updates, params: Params | None) -> Updates:
        projected = self.projection(apply_updates(params, updates))
        check_same_tree("projection(params)", projected, "params", params)
        return self._at_selected(lambda u, p, q: q - p, updates, params, projected, wide=True)


def non_negative(params: Params) -> Params:
    """Replace negative elements by 0.

        max(p, 0)

    Args:
        params: a pytree of real arrays.

    Raises:
        TypeError: if a leaf is complex.
    """

    def clamp(path: KeyPath, p: Leaf) -> jax.Array:
        if jnp.iscomplexobj(p):
            raise TypeError(f"non_negative: params{keystr(path)}: expected real numbers, got {jnp.result_type(p)}")
        return jnp.maximum(p, 0)

    return tree_map_with_path(clamp, params)


def unit_column_norm(params: Params) -> Params:
    """Scale the columns of every matrix to Euclidean norm 1. Columns of zeros and other leaves stay unchanged.

    Args:
        params: a pytree of arrays.
    """

    def scale(p: Leaf) -> Leaf:
        if jnp.ndim(p) != 2 or not is_inexact(p):
            return p
        return jax.vmap(direction, in_axes=1, out_axes=1)(_widened(p)).astype(jnp.result_type(p))

    return jax.tree.map(scale, params)


# --- a learning rate for each leaf -------------------------------------------------------------------


def _as_numbers(where: str, tree: Tree) -> Tree:
    return tree_map_with_path(lambda path, x: as_number(f"{where}{keystr(path)}", x), tree)


class scale_leaves(Transformation):
    """Multiply the update of each leaf by a factor, which gives each leaf a separate learning rate.

        chain(adam(1e-3), scale_leaves({"weights": 1.0, "biases": 0.1}))

    Args:
        factors: a tree of nonnegative numbers, in which one number may cover a whole branch. The factors are leaves of
            this transformation as a pytree, so changing one does not recompile.

    Raises:
        TypeError, ValueError: if a factor is not a nonnegative number, or if a leaf has no factor; it names the leaf.
    """

    factors: Any = converted(_as_numbers)

    def init(self, params: Params) -> State:
        self._factors_of(unpack_all(params))
        return ()

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        given, updates = updates, unpack_all(updates)
        check_floating("updates", updates)

        def scale(u: Leaf, factor: Leaf) -> jax.Array:
            wide = moment_dtype(jnp.result_type(u))
            return (jnp.asarray(u, wide) * as_scalar("scale_leaves", factor).astype(wide)).astype(jnp.result_type(u))

        leaves, structure = jax.tree.flatten(updates)
        return pack_all_like(structure.unflatten(map(scale, leaves, self._factors_of(updates))), given), state

    def _factors_of(self, tree: Tree) -> list[Leaf]:
        return at_leaves("scale_leaves", tree_flatten_with_path(self.factors)[0], tree)
