"""The average of the parameters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._core.pytree import Number, number
from .._core.trees import check_same_tree, is_inexact, zeros_like_moments
from .._core.types import Params, State, Updates
from .transformation import LAST, Transformation, apply_updates, find_states


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
    state_type = AverageState
    needs_params = True
    decay: Number = number("[0, 1)", default=0.999)

    def init(self, params: Params) -> State:
        self.check_for(params)
        return AverageState(jnp.zeros((), float), zeros_like_moments(params))

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
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
