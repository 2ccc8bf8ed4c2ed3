"""The average of the parameters; round an optimizer: gradients that are skipped, leaves that are frozen."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._base import LAST, State, Transformation, Wrapper, apply_updates, check_state, find_states, next_step, no_step
from ._packing import pack_all_like, unpack_all
from ._pytree import Number, function, number
from ._trees import (
    Params,
    Updates,
    Where,
    all_finite,
    check_params,
    check_same_tree,
    is_inexact,
    selected,
    without,
    zeros_like_moments,
)


class AverageState(NamedTuple):
    """weight: the sum of the weights so far, 1 - decayᵗ; average: the weighted sum of parameters."""

    weight: jax.Array
    average: Params


class average_parameters(Transformation):
    """An exponential moving average (EMA) of the parameters, last in a chain; read it by `averaged_parameters`.

        average = decay average + (1 - decay) (p + u), from zero; read divided by the sum of the weights

    Of integers the last value is kept.

    Args:
        decay: in [0, 1).
    """

    _stage = LAST
    decay: Number = number("[0, 1)", default=0.999)

    def init(self, params: Params) -> State:
        self._check_for(params)
        return AverageState(jnp.zeros((), float), zeros_like_moments(params))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(self, state, AverageState)
        check_params("average_parameters", updates, params)
        check_same_tree("params", params, "the average", state.average)
        decay = jnp.asarray(self.decay, float)

        def mean(average: jax.Array, p: jax.Array) -> jax.Array:
            if not is_inexact(p):
                return p
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
    (weight,) = jax.tree.leaves(average.weight)  # flax's nnx keeps it in a variable
    weight = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda a: a / weight.astype(a.dtype) if is_inexact(a) else a, average.average)


# --- round an optimizer ------------------------------------------------------------------------------


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

    def init(self, params: Params) -> State:
        return SkipNonfiniteState(self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        def take(inner: State) -> tuple[Updates, State]:
            return self.optimizer.update(updates, inner, params, **extra)

        check_state(self, state, SkipNonfiniteState)
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

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        given, updates, params = updates, unpack_all(updates), unpack_all(params)
        frozen = selected("freeze", self.where, updates)
        live_params = params
        if params is not None:
            check_same_tree("updates", updates, "params", params)
            live_params = without(frozen, params)
        live, state = self.optimizer.update(without(frozen, updates), state, live_params, **extra)
        live, like = iter(jax.tree.leaves(live)), jax.tree.leaves(updates if params is None else params)
        new = [jnp.zeros_like(p) if f else next(live) for f, p in zip(frozen, like, strict=True)]
        return pack_all_like(jax.tree.structure(updates).unflatten(new), given), state
