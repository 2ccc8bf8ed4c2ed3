"""Small steps to `chain` before or after an optimizer, or to wrap round one.

`where` is a predicate on a leaf's path, written "weights/0/matrix"; one that selects no leaf is a ValueError.
Transforms that read the parameters raise ValueError where `update` is called without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._base import State, Transformation, Wrapper, apply_updates, find_states, next_step
from ._pytree import Number, number, static
from ._trees import (
    Params,
    Updates,
    Where,
    all_finite,
    check_params,
    check_same_tree,
    moment_dtype,
    norm,
    selected,
    zeros_like_moments,
)


def _map_selected(
    owner: str, where: Where | None, rule: Callable[..., jax.Array], updates: Updates, *trees: Any
) -> Updates:
    """rule(u, *leaves), in at least float32, at the leaves that `where` selects; u itself at the others.

    It comes back in the dtype of the parameters if they are the first of the trees.
    """

    def apply(u: Any, *leaves: Any) -> jax.Array:
        dtype = jnp.result_type((leaves or [u])[0])
        return rule(*(jnp.asarray(x, moment_dtype(dtype)) for x in (u, *leaves))).astype(dtype)

    leaves, structure = jax.tree.flatten(updates)
    rows = zip(selected(owner, where, updates), leaves, *map(jax.tree.leaves, trees), strict=True)
    return structure.unflatten([apply(*row) if chosen else row[0] for chosen, *row in rows])


# --- before an optimizer -----------------------------------------------------------------------------


class clip_by_global_norm(Transformation):
    """Scale the gradient down to at most `max_norm` (Pascanu, Mikolov & Bengio, 2013).

        g min(1, max_norm / ‖g‖),  ‖g‖ the Euclidean norm over all leaves

    A gradient whose norm is NaN passes unchanged.

    Args:
        max_norm: a number above 0.
    """

    max_norm: Number = number("(0, inf]")

    def init(self, params: Params) -> State:
        return ()

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        leaves = [jnp.asarray(g, moment_dtype(jnp.result_type(g))) for g in jax.tree.leaves(updates)]
        if not leaves:
            return updates, state
        total, max_norm = norm(jnp.stack([norm(g).astype(float) for g in leaves])), jnp.asarray(self.max_norm, float)
        scale = jnp.where(total > max_norm, max_norm / total, 1)
        return _map_selected("clip_by_global_norm", None, lambda g: g * scale.astype(g.dtype), updates), state


class add_decayed_weights(Transformation):
    """Add the gradient of the penalty weight_decay ‖p‖² / 2, before an optimizer.

        g + weight_decay p

    Args:
        weight_decay: a number from 0 on.
        where: which leaves; all if None.
    """

    weight_decay: Number = number()
    where: Where | None = static(default=None)

    def init(self, params: Params) -> State:
        selected("add_decayed_weights", self.where, params)
        return ()

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_params("add_decayed_weights", updates, params)

        def rule(g: jax.Array, p: jax.Array) -> jax.Array:
            return g + jnp.asarray(self.weight_decay, g.dtype) * p

        return _map_selected("add_decayed_weights", self.where, rule, updates, params), state


class add_l1_decay(Transformation):
    """Add the gradient of the penalty l1_decay ‖p‖₁, before an optimizer.

        g + l1_decay sign(p)

    Args:
        l1_decay: a number from 0 on.
        where: which leaves; all if None.
    """

    l1_decay: Number = number()
    where: Where | None = static(default=None)

    def init(self, params: Params) -> State:
        selected("add_l1_decay", self.where, params)
        return ()

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_params("add_l1_decay", updates, params)

        def rule(g: jax.Array, p: jax.Array) -> jax.Array:
            return g + jnp.asarray(self.l1_decay, g.dtype) * jnp.sign(p)

        return _map_selected("add_l1_decay", self.where, rule, updates, params), state


# --- after an optimizer ------------------------------------------------------------------------------


class project(Transformation):
    """Project the parameters after the update: they become projection(params + updates).

    Args:
        projection: params -> params, of the whole tree: `non_negative`, `unit_column_norm`, one of
            `optax.projections`, or your own.
        where: which leaves are projected; all if None.
    """

    projection: Callable[[Params], Params] = static()
    where: Where | None = static(default=None)

    def init(self, params: Params) -> State:
        selected("project", self.where, params)
        return ()

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_params("project", updates, params)
        projected = self.projection(apply_updates(params, updates))
        check_same_tree("projection(params)", projected, "params", params)
        return _map_selected("project", self.where, lambda u, p, q: q - p, updates, params, projected), state


def non_negative(params: Params) -> Params:
    """max(p, 0), element by element."""
    return jax.tree.map(lambda p: jnp.maximum(p, 0), params)


def unit_column_norm(params: Params) -> Params:
    """Every matrix with its columns scaled to Euclidean norm 1 (a column of zeros stays); other leaves as they are."""

    def scale(p: Any) -> Any:
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


class average_parameters(Transformation):
    """An exponential moving average (EMA) of the parameters, last in a chain; read it by `averaged_parameters`.

        average = decay average + (1 - decay) (p + u), from zero; read divided by the sum of the weights

    Args:
        decay: in [0, 1).
    """

    decay: Number = number("[0, 1)", default=0.999)

    def init(self, params: Params) -> State:
        return AverageState(jnp.zeros((), float), zeros_like_moments(params))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_params("average_parameters", updates, params)
        decay = jnp.asarray(self.decay, float)

        def mean(average: jax.Array, p: jax.Array) -> jax.Array:
            d = decay.astype(average.dtype)
            return d * average + (1 - d) * p.astype(average.dtype)

        average = jax.tree.map(mean, state.average, apply_updates(params, updates))
        return updates, AverageState(decay * state.weight + (1 - decay), average)


def averaged_parameters(state: State) -> Params:
    """The mean that `average_parameters` keeps anywhere in `state`, in at least float32; zeros before any update.

    Raises:
        ValueError: unless there is exactly one.
    """
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


class skip_nonfinite(Wrapper):
    """Wraps an optimizer; skips and counts gradients containing NaN or inf.

    Then the update is zero and the optimizer's state stays as it was, however many such gradients follow.

    Args:
        optimizer: an optimizer or transformation.
    """

    def init(self, params: Params) -> State:
        return SkipNonfiniteState(self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        def take(inner: State) -> tuple[Updates, State]:
            return self.optimizer.update(updates, inner, params, **extra)

        def skip(inner: State) -> tuple[Updates, State]:
            new_updates, new_inner = jax.eval_shape(take, inner)
            # Another library's state may change its dtype at an update.
            inner = jax.tree.map(lambda new, x: x if x.dtype == new.dtype else x.astype(new.dtype), new_inner, inner)
            return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), new_updates), inner

        finite = all_finite(updates)
        new_updates, inner = jax.lax.cond(finite, take, skip, state.inner)
        return new_updates, SkipNonfiniteState(inner, jnp.where(finite, state.skipped, next_step(state.skipped)))


class freeze(Wrapper):
    """Wraps an optimizer; the leaves that `where` selects get zeros as updates and have no moments.

    Args:
        optimizer: an optimizer or transformation.
        where: the leaves that are frozen.
    """

    where: Where = static()

    def init(self, params: Params) -> State:
        frozen = selected("freeze", self.where, params)
        return self.optimizer.init(_without(frozen, params))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        frozen = selected("freeze", self.where, updates)
        live_params = params
        if params is not None:
            check_same_tree("updates", updates, "params", params)
            live_params = _without(frozen, params)
        live, state = self.optimizer.update(_without(frozen, updates), state, live_params, **extra)
        leaves, structure = jax.tree.flatten(updates)
        live, like = iter(jax.tree.leaves(live)), jax.tree.leaves(updates if params is None else params)
        rows = zip(frozen, leaves, like, strict=True)
        new = [jnp.zeros_like(u, jnp.result_type(p)) if f else next(live) for f, u, p in rows]
        return structure.unflatten(new), state


def _without(frozen: list[bool], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([None if f else leaf for f, leaf in zip(frozen, leaves, strict=True)])
