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
    """State of the averages.

    step: the number of updates so far (int32). average: a tree like the parameters, in at least float32; before the
    first update, the initial parameters.
    """

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
    """Average the parameters over the most recent fraction of the run. Chain it after the optimizer.

        average += (p - average) / (1 + share (t - 1))   after update number t = 1, 2, ...

    The window grows with the run, so there is nothing to tune: the weight of the parameters after update s grows as
    s^(1 / share - 1) (polynomial-decay averaging; Shamir & Zhang, 2013). With share=1 the average is the mean of all
    parameters so far (Polyak & Juditsky, 1992). `averaged_parameters` returns it. Metrics, early stopping, and a
    `track_log_partition` later in the chain use the average. Integer leaves keep their last value.

    Args:
        share: the fraction of the run, in (0, 1].
    """

    share: Number = number("(0, 1]", default=0.2)

    def _weight(self, t: jax.Array) -> jax.Array:
        return 1 / (1 + jnp.asarray(self.share, float) * (t - 1))


class exponential_average(_Average):
    """Exponential moving average (EMA) of the parameters. Chain it after the optimizer.

        average += (1 - decay) / (1 - decay^t) (p - average)   after update number t = 1, 2, ...

    The average covers about the last 1 / (1 - decay) updates, however long the run is. Otherwise it behaves like
    `average_parameters`.

    Args:
        decay: the weight of the previous average, in [0, 1).
    """

    decay: Number = number("[0, 1)", default=0.999)

    def _weight(self, t: jax.Array) -> jax.Array:
        decay = jnp.asarray(self.decay, float)
        return (1 - decay) / -jnp.expm1(t * jnp.log(decay))


def averaged_parameters(state: Tree) -> Params:
    """Return the average from `average_parameters` or `exponential_average`, in at least float32.

    Before the first update, the average is the initial parameters.

    Args:
        state: the state of an optimizer, or an object that contains one, for example a `FitResult` or `TrainState`.

    Raises:
        ValueError: unless the state contains exactly one average.
    """
    found = find_states(state, AverageState)
    if len(found) != 1:
        raise ValueError(
            f"averaged_parameters: expected one average of the parameters in the state, found {len(found)}"
        )
    return found[0].average


def watched_parameters(params: Params, state: State) -> Params:
    """The average of the parameters if the optimizer's state contains one; otherwise `params`.

    Raises:
        ValueError: if there are several averages, or if the average covers only some of the parameters.
    """
    if not find_states(state, AverageState):
        return params
    average = averaged_parameters(state)
    if jax.tree.structure(average) != jax.tree.structure(params):
        average = unpack_all(average)
    check_same_tree("the average (chain it outside freeze and partition)", average, "params", params)
    return average
