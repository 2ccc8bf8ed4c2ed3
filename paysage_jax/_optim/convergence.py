"""When a compiled loop can stop: convergence, tracked in the optimizer's state, and runs that cannot recover."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jax.typing import DTypeLike

from .._core.pytree import Count, Number, count, function, number
from .._core.trees import all_finite, as_scalar, is_inexact, moment_dtype, norm, real_dtype
from .._core.types import Leaf, Params, State, Statistics, Tree, Updates
from .packing import unpack_all
from .transformation import LAST, Transformation, find_states
from .wrappers import SkipNonfiniteState


def gradient_magnitude(tree: Tree) -> jax.Array:
    """The size of a gradient or an update, as paysage (2017) measures it; a scalar of at least float32.

        √(mean over leaves of ‖leaf‖² / len(leaf)),  len the size of the first dimension

    Integer leaves are ignored, because optimizers do not update them.

    Args:
        tree: a pytree of arrays with at least one dimension, packed or not.

    Raises:
        ZeroDivisionError: if the tree has no floating or complex leaves.
        TypeError: if a leaf is a scalar.
    """
    leaves = [(path, leaf) for path, leaf in tree_flatten_with_path(unpack_all(tree))[0] if is_inexact(leaf)]
    if not leaves:
        raise ZeroDivisionError("gradient_magnitude: the tree has no leaves")
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            message = f"gradient_magnitude: tree{keystr(path)} has no first dimension"
            raise TypeError(f"{message}; give track_convergence another measure: magnitude=")
    dtypes = [moment_dtype(jnp.result_type(leaf)) for _, leaf in leaves]
    widest = max(map(real_dtype, dtypes), key=lambda dtype: jnp.finfo(dtype).bits)

    def rms(leaf: Leaf, dtype: DTypeLike) -> jax.Array:
        return norm(jnp.asarray(leaf, dtype)).astype(widest) / np.sqrt(widest.type(max(len(leaf), 1)))

    norms = [rms(leaf, dtype) for (_, leaf), dtype in zip(leaves, dtypes, strict=True)]
    return norm(jnp.stack(norms)) / np.sqrt(widest.type(len(leaves)))


class ConvergenceState(NamedTuple):
    """State of `track_convergence`.

    magnitude: of the last update; before the first update, the largest float. streak: the number of consecutive updates
    at or below the tolerance (int32). converged: whether the streak has reached the patience (bool).
    """

    magnitude: jax.Array
    streak: jax.Array
    converged: jax.Array


class track_convergence(Transformation):
    """Track whether the updates have become small. Chain it last.

        converged: magnitude(updates) <= tolerance for `patience` consecutive updates

    The updates pass unchanged. NaN never counts as small. `fit` also passes the gradient, so an update of zeros for a
    nonzero gradient (skipped or overflowed, for example) is ignored. Without the gradient, an update of zeros counts as
    small. Use the `chain` of this package: `optax.chain` drops the gradient and hides a new tolerance from a resumed
    run.

    Args:
        tolerance: a nonnegative number.
        magnitude: a function updates -> scalar.
        patience: a positive integer.
    """

    _stage = LAST
    state_type = ConvergenceState
    tolerance: Number = number("[0, inf]")
    magnitude: Callable[[Updates], jax.Array] = function(default=gradient_magnitude)
    patience: Count = count(default=1)

    def init(self, params: Params) -> State:
        largest = jnp.array(jnp.finfo(jnp.result_type(float)).max, float)
        return ConvergenceState(largest, jnp.zeros((), jnp.int32), jnp.array(False))

    def apply(
        self, updates: Updates, state: State, params: Params | None, *, gradient: Tree = None, **extra: object
    ) -> tuple[Updates, State]:
        magnitude = as_scalar("magnitude(updates)", self.magnitude(updates))
        patience = jnp.asarray(self.patience, jnp.int32)
        below = magnitude <= jnp.asarray(self.tolerance, float)
        streak = jnp.where(below, jnp.minimum(state.streak, patience - 1) + 1, 0)
        if gradient is not None:
            no_step = jax.lax.cond(magnitude == 0, lambda: ~_all_zero(gradient), lambda: jnp.array(False))
            streak = jnp.where(no_step, state.streak, streak)
        return updates, ConvergenceState(magnitude, streak, streak >= patience)


def _all_zero(tree: Tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(x == 0) for x in jax.tree.leaves(tree) if is_inexact(x)]))


def converged(state: State) -> jax.Array:
    """Whether every `track_convergence` in `state` has converged; a bool scalar, for example for `lax.while_loop`.

    Args:
        state: the state of an optimizer, or an object that contains one.

    Raises:
        ValueError: if the state contains no `track_convergence`.
    """
    found = find_states(state, ConvergenceState)
    if not found:
        raise ValueError("converged: no track_convergence in the state; chain one after the optimizer")
    return jnp.all(jnp.stack(jax.tree.leaves([s.converged for s in found])))  # flax's nnx keeps each in a variable


def still_converged(optimizer: Transformation, state: State) -> jax.Array:
    """Whether `state` has converged also by the current tolerances and patience of `optimizer`."""
    found = find_states(state, ConvergenceState)
    is_tracker = lambda x: isinstance(x, track_convergence)  # noqa: E731
    trackers = [x for x in jax.tree.leaves(optimizer, is_leaf=is_tracker) if is_tracker(x)]
    small = [
        (s.magnitude <= jnp.asarray(t.tolerance, float)) & (s.streak >= jnp.asarray(t.patience, jnp.int32))
        for s, t in zip(found, trackers, strict=False)  # a tracker inside another library's chain is not seen
    ]
    return jnp.all(jnp.stack([converged(state), *small]))


def is_lost(before: Tree, after: Tree, statistics: Statistics) -> jax.Array:
    """Whether a run cannot recover after an epoch, although its parameters are finite.

    There are two such cases. Either the chains are not finite, and neither are the statistics that depend on them. Or
    no parameter changed, because every update was skipped, or because statistics, chains or moments are not finite.

    Args:
        before, after: the `TrainState` before and after the epoch.
        statistics: the means over the epoch.
    """
    moved = _differ(before.params, after.params)
    reported = ~all_finite(statistics)

    def look_closer() -> jax.Array:
        both = [find_states(state.optimizer_state, SkipNonfiniteState) for state in (before, after)]
        skipped = jnp.any(jnp.array([_only_skipped(*states) for states in zip(*both, strict=True)], bool))
        moments = [x for x in jax.tree.leaves(after.optimizer_state) if x.ndim]
        chains_lost = ~all_finite(after.estimator_state)
        return (reported & chains_lost) | (~moved & (reported | chains_lost | skipped | ~all_finite(moments)))

    return jax.lax.cond(reported | ~moved, look_closer, lambda: jnp.array(False))


def _only_skipped(before: SkipNonfiniteState, after: SkipNonfiniteState) -> jax.Array:
    """Whether all gradients were skipped: any other would have changed the inner state, at least its step."""
    (old,), (new,) = map(jax.tree.leaves, (before.skipped, after.skipped))  # flax's nnx keeps each in a variable
    return (new > old) & ~_differ(before.inner, after.inner)


def _differ(a: Tree, b: Tree) -> jax.Array:
    return jnp.any(jnp.array([jnp.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)], bool))
