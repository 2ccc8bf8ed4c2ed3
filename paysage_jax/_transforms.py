"""Small steps to `chain` before or after an optimizer, or to wrap round one.

`where` is a predicate on a leaf's path, written "weights/0/matrix"; one that selects no leaf is a ValueError.
Transforms that read the parameters raise ValueError where `update` is called without them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._base import (
    Params,
    State,
    Transformation,
    Updates,
    all_finite,
    apply_updates,
    as_transformation,
    check_same_tree,
    find_states,
    leaf_paths,
    moment_dtype,
    next_step,
    norm,
    zeros_like_moments,
)
from ._pytree import Number, check_number, pytree_dataclass, static

Where = Callable[[str], bool]


def _selected(owner: str, where: Where | None, tree: Any) -> list[bool]:
    paths = leaf_paths(tree)
    chosen = [where is None or bool(where(path)) for path in paths]
    if paths and not any(chosen):
        raise ValueError(f"{owner}: the predicate selects none of the leaves {paths}")
    return chosen


def _check_params(owner: str, updates: Updates, params: Params | None) -> None:
    if params is None:
        raise ValueError(f"{owner}: needs the parameters: update(updates, state, params)")
    check_same_tree("updates", updates, "params", params)


def _map_selected(owner: str, where: Where | None, rule: Callable, updates: Updates, *trees: Any) -> Updates:
    """rule(u, *leaves), in at least float32, at the leaves that `where` selects; u itself at the others.

    It comes back in the dtype of the parameters if they are the first of the trees.
    """

    def apply(u, *leaves):
        dtype = jnp.result_type((leaves or [u])[0])
        return rule(*(jnp.asarray(x, moment_dtype(dtype)) for x in (u, *leaves))).astype(dtype)

    leaves, structure = jax.tree.flatten(updates)
    rows = zip(_selected(owner, where, updates), leaves, *map(jax.tree.leaves, trees), strict=True)
    return structure.unflatten([apply(*row) if chosen else row[0] for chosen, *row in rows])


# --- before an optimizer -----------------------------------------------------------------------------


@pytree_dataclass
class clip_by_global_norm(Transformation):
    """g min(1, max_norm / ‖g‖), ‖g‖ the Euclidean norm over all leaves (Pascanu, Mikolov & Bengio, 2013).

    A gradient whose norm is NaN passes unchanged.
    """

    max_norm: Number

    def __post_init__(self):
        check_number("clip_by_global_norm", "max_norm", self.max_norm, np.finfo(float).tiny, np.inf)

    def init(self, params):
        return ()

    def update(self, updates, state, params=None, **extra):
        leaves = [jnp.asarray(g, moment_dtype(jnp.result_type(g))) for g in jax.tree.leaves(updates)]
        if not leaves:
            return updates, state
        total = norm(jnp.stack([norm(g).astype(float) for g in leaves]))
        max_norm = jnp.asarray(self.max_norm, float)
        scale = jnp.where(total > max_norm, max_norm / total, 1)
        return _map_selected("clip_by_global_norm", None, lambda g: g * scale.astype(g.dtype), updates), state


@pytree_dataclass
class add_decayed_weights(Transformation):
    """g + weight_decay p: the gradient of weight_decay ‖p‖² / 2 added, before an optimizer, where `where` selects."""

    weight_decay: Number
    where: Where | None = static(default=None)

    def __post_init__(self):
        check_number("add_decayed_weights", "weight_decay", self.weight_decay, 0, np.inf, open_above=True)

    def init(self, params):
        _selected("add_decayed_weights", self.where, params)
        return ()

    def update(self, updates, state, params=None, **extra):
        _check_params("add_decayed_weights", updates, params)

        def rule(g, p):
            return g + jnp.asarray(self.weight_decay, g.dtype) * p

        return _map_selected("add_decayed_weights", self.where, rule, updates, params), state


@pytree_dataclass
class add_l1_decay(Transformation):
    """g + l1_decay sign(p): the gradient of l1_decay ‖p‖₁ added, before an optimizer, where `where` selects."""

    l1_decay: Number
    where: Where | None = static(default=None)

    def __post_init__(self):
        check_number("add_l1_decay", "l1_decay", self.l1_decay, 0, np.inf, open_above=True)

    def init(self, params):
        _selected("add_l1_decay", self.where, params)
        return ()

    def update(self, updates, state, params=None, **extra):
        _check_params("add_l1_decay", updates, params)

        def rule(g, p):
            return g + jnp.asarray(self.l1_decay, g.dtype) * jnp.sign(p)

        return _map_selected("add_l1_decay", self.where, rule, updates, params), state


# --- after an optimizer ------------------------------------------------------------------------------


@pytree_dataclass
class project(Transformation):
    """After the update the parameters are projection(params + updates), at the leaves that `where` selects.

    `projection(params) -> params` takes and returns the whole tree: `non_negative`, `unit_column_norm`, one of
    optax.projections, or your own.
    """

    projection: Callable[[Params], Params] = static()
    where: Where | None = static(default=None)

    def init(self, params):
        _selected("project", self.where, params)
        return ()

    def update(self, updates, state, params=None, **extra):
        _check_params("project", updates, params)
        projected = self.projection(apply_updates(params, updates))
        check_same_tree("projection(params)", projected, "params", params)
        return _map_selected("project", self.where, lambda u, p, q: q - p, updates, params, projected), state


def non_negative(params: Params) -> Params:
    """max(p, 0), element by element."""
    return jax.tree.map(lambda p: jnp.maximum(p, 0), params)


def unit_column_norm(params: Params) -> Params:
    """Every matrix with its columns scaled to Euclidean norm 1 (a column of zeros stays); other leaves as they are."""

    def scale(p):
        if jnp.ndim(p) != 2:
            return p
        wide = jnp.asarray(p, moment_dtype(jnp.result_type(p)))
        norms = jax.vmap(norm, in_axes=1)(wide)[None, :]
        return jnp.where(norms > 0, wide / norms, wide).astype(jnp.result_type(p))

    return jax.tree.map(scale, params)


class AverageState(NamedTuple):
    """weight: the sum of the weights so far, 1 - decayᵗ; average: the weighted sum of parameters."""

    weight: jax.Array
    average: Params


@pytree_dataclass
class average_parameters(Transformation):
    """A running mean of the parameters after each update, last in a chain; `averaged_parameters` reads it.

    average = decay average + (1 - decay) (p + u), from zero; the read-out divides by the sum of the weights.
    """

    decay: Number = 0.999

    def __post_init__(self):
        check_number("average_parameters", "decay", self.decay, 0, 1, open_above=True)

    def init(self, params):
        return AverageState(jnp.zeros((), float), zeros_like_moments(params))

    def update(self, updates, state, params=None, **extra):
        _check_params("average_parameters", updates, params)
        decay = jnp.asarray(self.decay, float)

        def mean(average, p):
            d = decay.astype(average.dtype)
            return d * average + (1 - d) * p.astype(average.dtype)

        average = jax.tree.map(mean, state.average, apply_updates(params, updates))
        return updates, AverageState(decay * state.weight + (1 - decay), average)


def averaged_parameters(state: State) -> Params:
    """The mean that `average_parameters` keeps anywhere in `state`, in at least float32; zeros before any update."""
    found = find_states(state, AverageState)
    if len(found) != 1:
        raise ValueError(f"averaged_parameters: expected one average_parameters in the state, found {len(found)}")
    (average,) = found
    weight = jnp.where(average.weight > 0, average.weight, 1)
    return jax.tree.map(lambda a: a / weight.astype(a.dtype), average.average)


# --- round an optimizer ------------------------------------------------------------------------------


class SkipNonfiniteState(NamedTuple):
    """inner: the wrapped optimizer's state; skipped: the number of updates left out (int32)."""

    inner: State
    skipped: jax.Array


@pytree_dataclass
class skip_nonfinite(Transformation):
    """The wrapped optimizer, except that a gradient with a NaN or inf anywhere changes nothing and is counted.

    Then the update is zero and the optimizer's state stays as it was, however many such gradients follow.
    """

    optimizer: Transformation

    def __post_init__(self):
        object.__setattr__(self, "optimizer", as_transformation(self.optimizer))

    def init(self, params):
        return SkipNonfiniteState(self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(self, updates, state, params=None, **extra):
        def take(inner):
            return self.optimizer.update(updates, inner, params, **extra)

        def skip(inner):
            new_updates, new_inner = jax.eval_shape(take, inner)
            # Another library's state may change its dtype at an update.
            inner = jax.tree.map(lambda new, x: x if x.dtype == new.dtype else x.astype(new.dtype), new_inner, inner)
            return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), new_updates), inner

        finite = all_finite(updates)
        new_updates, inner = jax.lax.cond(finite, take, skip, state.inner)
        return new_updates, SkipNonfiniteState(inner, jnp.where(finite, state.skipped, next_step(state.skipped)))


@pytree_dataclass
class freeze(Transformation):
    """The wrapped optimizer on all leaves but those that `where` selects: they get zeros and have no moments."""

    optimizer: Transformation
    where: Where = static()

    def __post_init__(self):
        object.__setattr__(self, "optimizer", as_transformation(self.optimizer))

    def init(self, params):
        frozen = _selected("freeze", self.where, params)
        return self.optimizer.init(_without(frozen, params))

    def update(self, updates, state, params=None, **extra):
        frozen = _selected("freeze", self.where, updates)
        if params is not None:
            check_same_tree("updates", updates, "params", params)
            params = _without(frozen, params)
        live, state = self.optimizer.update(_without(frozen, updates), state, params, **extra)
        leaves, structure = jax.tree.flatten(updates)
        live = iter(jax.tree.leaves(live))
        return structure.unflatten(
            [jnp.zeros_like(u) if f else next(live) for f, u in zip(frozen, leaves, strict=True)]
        ), state


def _without(frozen: list[bool], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([None if f else leaf for f, leaf in zip(frozen, leaves, strict=True)])
