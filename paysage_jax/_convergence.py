"""Convergence as part of the optimizer's state, so that a compiled loop can stop by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._base import State, Transformation, find_states
from ._pytree import Count, Number, as_scalar, check_count, check_number, pytree_dataclass, static
from .classic import gradient_magnitude


class ConvergenceState(NamedTuple):
    """The magnitude of the last update, the updates in a row at or under the tolerance, and whether that is enough."""

    magnitude: jax.Array
    streak: jax.Array
    converged: jax.Array


@pytree_dataclass
class track_convergence(Transformation):
    """Last in a chain: whether magnitude(update) <= tolerance, `patience` updates in a row; NaN never is.

    `magnitude(updates) -> scalar` is paysage's `gradient_magnitude` unless given. The updates pass unchanged.
    """

    tolerance: Number
    magnitude: Callable[[Any], jax.Array] = static(default=gradient_magnitude)
    patience: Count = 1

    def __post_init__(self):
        check_number("track_convergence", "tolerance", self.tolerance, 0, np.inf)
        check_count("track_convergence", "patience", self.patience)

    def init(self, params):
        return ConvergenceState(jnp.array(np.inf, float), jnp.zeros((), jnp.int32), jnp.array(False))

    def update(self, updates, state, params=None, **extra):
        magnitude = as_scalar("magnitude(updates)", self.magnitude(updates))
        patience = jnp.asarray(self.patience, jnp.int32)
        below = magnitude <= jnp.asarray(self.tolerance, float)
        streak = jnp.where(below, jnp.minimum(state.streak, patience - 1) + 1, 0)
        return updates, ConvergenceState(magnitude, streak, streak >= patience)


def converged(state: State) -> jax.Array:
    """Whether every `track_convergence` in `state` has converged; a bool scalar, for a `lax.while_loop`.

    Raises ValueError if there is none.
    """
    found = find_states(state, ConvergenceState)
    if not found:
        raise ValueError("converged: no track_convergence in the state; chain one after the optimizer")
    return jnp.all(jnp.stack([s.converged for s in found]))
