"""The state of a run, and the jitted step."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core.batches import batch_size_of
from .._core.types import Batch, Extra, Params, State, Statistics, Tree
from .._ebm.estimators import Estimator, EstimatorState, check_estimator
from .._optim.transformation import GradientTransformation, apply_updates, as_transformation
from .history import scalars_of


class Outcome(IntEnum):
    """How a run ended; NON_FINITE also where chains are lost, or an epoch made no update for want of finite numbers."""

    EPOCHS_EXHAUSTED = 0
    CONVERGED = 1
    NON_FINITE = 2
    NOT_IMPROVING = 3
    STOPPED = 4
    INTERRUPTED = 5

    @classmethod
    def _missing_(cls, value: object) -> Outcome | None:
        # A scalar array, as a result has it; Python 3.13 does not find the member by itself.
        return cls(int(value)) if isinstance(value, jax.Array | np.ndarray) and value.size == 1 else None


class TrainState(NamedTuple):
    """What a step changes: `TrainState(params, optimizer.init(params), estimator.init(params, batch, key))`."""

    params: Params
    optimizer_state: State
    estimator_state: EstimatorState


class FitResult(NamedTuple):
    """The state of a run after its last good epoch, a pytree of arrays; pass it as `resume=` to continue.

    epochs_done: int32. outcome: int32, an `Outcome`. best: the `Best` measurement if there is early stopping, else ().
    history: a row per measurement: "epoch" (the epochs done then), "learning_rate", the means of the estimator's
    statistics over the epoch that had just ended ("loss"; "data_energy" and "model_energy"), and each metric.
    """

    params: Params
    optimizer_state: State
    estimator_state: EstimatorState
    epochs_done: jax.Array
    outcome: jax.Array
    best: Tree
    history: Tree

    @property
    def state(self) -> TrainState:
        """What a step changes."""
        return TrainState(self.params, self.optimizer_state, self.estimator_state)


# --- a step ------------------------------------------------------------------------------------------


def update(
    estimator: Estimator,
    optimizer: GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    **extra: object,
) -> tuple[TrainState, Statistics]:
    if not all(hasattr(state, name) for name in TrainState._fields):
        raise TypeError(f"step(state, batch, key): state must be a TrainState, got {type(state).__name__}")
    gradient, estimator_state, statistics = estimate(estimator, state, batch, key)
    extra = _what_is_known(estimator, state.params, batch, key, gradient, statistics) | extra
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params, **extra)
    return TrainState(apply_updates(state.params, updates), optimizer_state, estimator_state), statistics


def estimate(estimator: Estimator, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Params, State, Statistics]:
    """(gradient, estimator_state, statistics). Raises TypeError if the estimator returns something else."""
    values = estimator.estimate(state.params, batch, state.estimator_state, key)
    if not isinstance(values, tuple | list) or len(values) != 3:
        got = f"{len(values)} values" if isinstance(values, tuple | list) else type(values).__name__
        name = f"{type(estimator).__name__}.estimate"
        raise TypeError(f"{name}: expected (gradient, estimator_state, statistics), got {got}")
    gradient, estimator_state, statistics = values
    return gradient, estimator_state, statistics


def _what_is_known(
    estimator: Estimator, params: Params, batch: Batch, key: jax.Array, gradient: Params, statistics: Statistics
) -> Extra:
    """The extra arguments of an optimizer; for optax `value`, `value_fn` and `grad`, which is that of `jax.grad`."""
    known = {"statistics": statistics, "gradient": gradient, "grad": jax.tree.map(jnp.conj, gradient)}
    known["rows"] = batch_size_of("batch", batch)
    scalars = scalars_of(statistics)
    if "loss" in scalars:
        known["value"] = scalars["loss"]
    if value := getattr(estimator, "value", None):
        # A line search hands on by name what it was given, and refuses what the function does not take.
        known["value_fn"] = lambda p, statistics=None, gradient=None, epoch=None, rows=None: value(p, batch, key)
    return known


_jitted_update = jax.jit(update, donate_argnames="state")


def train_step(estimator: Estimator, optimizer: GradientTransformation) -> Callable[..., tuple[TrainState, Statistics]]:
    """One jitted step: `step(state, batch, key, **extra) -> (state, statistics)`.

    The state is donated: use the one that comes back. Changing the learning rate does not recompile.

    Args:
        estimator: where the gradient comes from.
        optimizer: an optimizer, ours or another library's. It gets as keyword arguments `extra` (`epoch=`, for
            example), `statistics`, `gradient`, the number of `rows` of the batch, and what optax's `reduce_on_plateau`
            and line searches take: `grad`, and with a `loss_gradient` also `value` (the loss) and `value_fn` (the loss
            of other parameters on the same batch).
    """
    check_estimator("train_step: estimator", estimator)
    return partial(_jitted_update, estimator, as_transformation(optimizer))
