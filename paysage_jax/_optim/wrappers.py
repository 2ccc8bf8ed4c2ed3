"""Round an optimizer: gradients that are skipped or accumulated, leaves that are frozen."""

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
    """inner: the wrapped optimizer's state; skipped: the number of updates left out (int32)."""

    inner: State
    skipped: jax.Array


class skip_nonfinite(Wrapper):
    """Wraps an optimizer; skips and counts gradients containing NaN or inf.

    Then the update is zero and the optimizer's state stays as it was, however many such gradients follow. Under `fit`
    an epoch in which every update was skipped ends the run as `NON_FINITE`.

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
    """Wraps an optimizer; the leaves that `where` selects get zeros as updates and have no moments.

    Args:
        optimizer: an optimizer or transformation.
        where: the leaves that are frozen.
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
    """inner: the wrapped optimizer's state; waiting: the number of gradients (int32) in total, the sum of nᵢ gᵢ; rows:
    the sum of nᵢ (float32)."""

    inner: State
    waiting: jax.Array
    total: Updates
    rows: jax.Array


class accumulate(Wrapper):
    """Wraps an optimizer; it makes one step on the mean of every `steps` gradients, in the dtype that they have.

        u = optimizer((n₁ g₁ + ... + nₖ gₖ) / (n₁ + ... + nₖ)) at every k-th call, zeros in between

    nᵢ is the number of rows of batch i, which `fit` and `train_step` pass as the extra argument `rows`, so that the
    step is that of one large batch also where batches differ in size. Without it all nᵢ are 1.

    In between the optimizer's state stays as it is, so its schedules and its `step` count the steps made. The sum is
    in at least float32 and goes on from one epoch to the next. The extra arguments that count are those of the k-th
    call. A `track_convergence` is chained inside, accumulate(chain(adam(1e-3), track_convergence(1e-6)), 4), for
    outside it sees the zeros (and leaves them out only under `fit` and `train_step`, which pass it the gradient).

    Args:
        optimizer: an optimizer or transformation.
        steps: a positive integer.
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
