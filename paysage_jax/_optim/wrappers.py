"""Wrappers of an optimizer: skip or accumulate gradients, freeze leaves."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._core.pytree import Count, count, function
from .._core.trees import Where, all_finite, check_same_tree, selected, without, zeros_like_moments
from .._core.types import Params, State, Updates
from .packing import pack_all_like, unpack_all
from .transformation import Wrapper, next_step, no_step


class SkipNonfiniteState(NamedTuple):
    """inner: the state of the wrapped optimizer; skipped: the number of skipped updates (int32)."""

    inner: State
    skipped: jax.Array


class skip_nonfinite(Wrapper):
    """Wrap an optimizer to skip and count gradients that contain NaN or inf.

    The update is then zero and the state of the optimizer does not change. Any number of consecutive gradients may be
    skipped, but `fit` ends a run as `NON_FINITE` after an epoch in which every update was skipped.

    Args:
        optimizer: an optimizer or transformation.
    """

    state_type = SkipNonfiniteState

    def init(self, params: Params) -> State:
        return SkipNonfiniteState(self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        def take(inner: State) -> tuple[Updates, State]:
            return self.optimizer._update(updates, inner, params, **extra)

        finite = all_finite(updates)
        new_updates, inner = jax.lax.cond(finite, take, partial(no_step, take), state.inner)
        return new_updates, SkipNonfiniteState(inner, jnp.where(finite, state.skipped, next_step(state.skipped)))


class freeze(Wrapper):
    """Wrap an optimizer to freeze leaves. Their updates are zeros, and they have no moments.

    Args:
        optimizer: an optimizer or transformation.
        where: a predicate that selects the frozen leaves by their path, written "weights/0/matrix".

    Raises:
        ValueError: if `where` selects no leaf.
    """

    where: Where = function()

    def init(self, params: Params) -> State:
        params = unpack_all(params)
        frozen = selected("freeze", self.where, params)
        return self.optimizer.init(without(frozen, params))

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        given, updates, params = updates, unpack_all(updates), unpack_all(params)
        frozen = selected("freeze", self.where, updates)
        live_params = None if params is None else without(frozen, params)
        live, state = self.optimizer._update(without(frozen, updates), state, live_params, **extra)
        live, like = iter(jax.tree.leaves(live)), jax.tree.leaves(updates if params is None else params)
        new = [jnp.zeros_like(p) if f else next(live) for f, p in zip(frozen, like, strict=True)]
        return pack_all_like(jax.tree.structure(updates).unflatten(new), given), state


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    inner: the state of the wrapped optimizer. waiting: the number of gradients in the sum (int32). total: the sum of
    nᵢ gᵢ. rows: the sum of nᵢ (float32).
    """

    inner: State
    waiting: jax.Array
    total: Updates
    rows: jax.Array


class accumulate(Wrapper):
    """Wrap an optimizer to make one step on the mean of every k = `steps` gradients.

        u = optimizer((n₁ g₁ + ... + nₖ gₖ) / (n₁ + ... + nₖ)) at every k-th call, zeros at all other calls

    nᵢ is the number of rows in batch i, which `fit` and `train_step` pass as the extra argument `rows`. The step thus
    equals the step on one large batch, even if batches differ in size. Without `rows`, all nᵢ are 1.

    Between steps the state of the optimizer does not change, so its schedules and its `step` count actual steps. The
    sum is in at least float32 and carries over to the next epoch; the mean has the dtype of the gradients. The
    optimizer receives the extra arguments of the k-th call. Chain a `track_convergence` inside:
    accumulate(chain(adam(1e-3), track_convergence(1e-6)), 4). Outside, it would see the zeros, which it ignores only
    under `fit` and `train_step`.

    Args:
        optimizer: an optimizer or transformation.
        steps: the number k of gradients per step, a positive integer.
    """

    steps: Count = count()
    state_type = AccumulateState

    def init(self, params: Params) -> State:
        inner, total = self.optimizer.init(params), zeros_like_moments(params)
        return AccumulateState(inner, jnp.zeros((), jnp.int32), total, jnp.zeros((), jnp.float32))

    def apply(
        self, updates: Updates, state: State, params: Params | None, *, rows: Any = None, **extra: object
    ) -> tuple[Updates, State]:
        check_same_tree("updates", updates, "the state", state.total)
        n = jnp.asarray(1 if rows is None else rows, jnp.float32)
        now = AccumulateState(
            state.inner,
            next_step(state.waiting),
            jax.tree.map(lambda x, g: x + n.astype(x.dtype) * jnp.asarray(g, x.dtype), state.total, updates),
            state.rows + n,
        )

        def step(s: AccumulateState) -> tuple[Updates, AccumulateState]:
            means = jax.tree.map(lambda x: x / s.rows.astype(x.dtype), s.total)
            mean = jax.tree.map(lambda x, g: x.astype(jnp.result_type(g)), means, updates)
            of_all = {} if rows is None else {"rows": s.rows}
            new, inner = self.optimizer._update(mean, s.inner, params, **extra, **of_all)
            return new, AccumulateState(inner, *jax.tree.map(jnp.zeros_like, (s.waiting, s.total, s.rows)))

        return jax.lax.cond(now.waiting >= jnp.asarray(self.steps, jnp.int32), step, partial(no_step, step), now)
