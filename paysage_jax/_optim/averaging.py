"""Averages of the parameters along a run."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._core.pytree import Number, number
from .._core.trees import check_same_tree, is_inexact, moment_dtype
from .._core.types import Leaf, Params, State, Tree, Updates
from .packing import unpack_all
from .transformation import AVERAGE, Transformation, apply_updates, find_states, next_step


class AverageState(NamedTuple):
    """step: updates so far (int32). average: in at least float32; before any update, the parameters that `init` got."""

    step: jax.Array
    average: Params


class _Average(Transformation):
    """A weighted mean of the parameters after each update; the updates pass unchanged."""

    _stage = AVERAGE
    state_type = AverageState
    needs_params = True

    @abstractmethod
    def _weight(self, t: jax.Array) -> jax.Array:
        """The weight of the parameters after update number t = 1, 2, ..."""

    def init(self, params: Params) -> State:
        self.check_for(params)
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(_widened_copy, params))

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        check_same_tree("params", params, "the average", state.average)
        step = next_step(state.step)
        weight = self._weight(step.astype(float))

        def mean(average: jax.Array, p: jax.Array) -> jax.Array:
            if not is_inexact(p):
                return p
            return average + weight.astype(average.dtype) * (p.astype(average.dtype) - average)

        return updates, AverageState(step, jax.tree.map(mean, state.average, apply_updates(params, updates)))


def _widened_copy(p: Leaf) -> jax.Array:
    return jnp.array(p, moment_dtype(jnp.result_type(p)) if is_inexact(p) else None)


class average_parameters(_Average):
    """The average of the parameters over the last share of a run so far, last in a chain.

        average += (p - average) / (1 + share (t - 1))   after update number t = 1, 2, ...

    The window grows with the run, so that there is nothing to tune: the parameters after update s have a weight that
    grows as s^(1 / share - 1) (polynomial-decay averaging; Shamir & Zhang, 2013). share=1 is the mean of all (Polyak &
    Juditsky, 1992). Read it by `averaged_parameters`. Metrics, early stopping, and a `track_log_partition` that stands
    after it in the chain are of the average. Of integers the last value is kept.

    Args:
        share: in (0, 1].
    """

    share: Number = number("(0, 1]", default=0.2)

    def _weight(self, t: jax.Array) -> jax.Array:
        return 1 / (1 + jnp.asarray(self.share, float) * (t - 1))


class exponential_average(_Average):
    """The exponential moving average (EMA) of the parameters, last in a chain.

        average += (1 - decay) / (1 - decay^t) (p - average)   after update number t = 1, 2, ...

    It looks back about 1 / (1 - decay) updates, however long the run. Otherwise it is as `average_parameters`.

    Args:
        decay: in [0, 1).
    """

    decay: Number = number("[0, 1)", default=0.999)

    def _weight(self, t: jax.Array) -> jax.Array:
        decay = jnp.asarray(self.decay, float)
        return (1 - decay) / -jnp.expm1(t * jnp.log(decay))


def averaged_parameters(state: Tree) -> Params:
    """The average that `average_parameters` or `exponential_average` keeps, in at least float32.

    Before any update it is the parameters that `init` got.

    Args:
        state: an optimizer's state, or whatever has one in it: a `FitResult`, a `TrainState`.

    Raises:
        ValueError: unless there is exactly one.
    """
    found = find_states(state, AverageState)
    if len(found) != 1:
        raise ValueError(
            f"averaged_parameters: expected one average of the parameters in the state, found {len(found)}"
        )
    return found[0].average


def watched_parameters(params: Params, state: State) -> Params:
    """The average of the parameters if the state of their optimizer has one; otherwise `params`.

    Raises:
        ValueError: for several averages, and for one of a part of the parameters.
    """
    if not find_states(state, AverageState):
        return params
    average = averaged_parameters(state)
    if jax.tree.structure(average) != jax.tree.structure(params):
        average = unpack_all(average)
    check_same_tree("the average (chain it outside freeze and partition)", average, "params", params)
    return average
