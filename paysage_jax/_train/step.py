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
    """How a run ended.

    NON_FINITE means that parameters or chains are NaN or infinite, or that an epoch made no update because of nonfinite
    numbers.
    """

    EPOCHS_EXHAUSTED = 0
    CONVERGED = 1
    NON_FINITE = 2
    NOT_IMPROVING = 3
    STOPPED = 4
    INTERRUPTED = 5

    @classmethod
    def _missing_(cls, value: object) -> Outcome | None:
        # A result contains a scalar array, for which Python 3.13 does not find the member.
        return cls(int(value)) if isinstance(value, jax.Array | np.ndarray) and value.size == 1 else None


class TrainState(NamedTuple):
    """The state of training: `TrainState(params, optimizer.init(params), estimator.init(params, batch, key))`."""

    params: Params
    optimizer_state: State
    estimator_state: EstimatorState


class FitResult(NamedTuple):
    """The state of a run after its last good epoch, a pytree of arrays; pass it as `resume=` to continue.

    epochs_done: the number of epochs (int32). outcome: an `Outcome` (int32). best: the `Best` measurement with early
    stopping, otherwise (). history: a dict of arrays with one row per measurement: "epoch" (the number of epochs done),
    "learning_rate", the means of the estimator's statistics over the last epoch (for example "loss", or "data_energy"
    and "model_energy"), and each metric.
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
        """The `TrainState` of the result."""
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
    """Return (gradient, estimator_state, statistics). Raises TypeError if the estimator returns something else."""
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
    """The extra arguments of an optimizer; for optax `value`, `value_fn`, and `grad` as from `jax.grad`."""
    known = {"statistics": statistics, "gradient": gradient, "grad": jax.tree.map(jnp.conj, gradient)}
    known["rows"] = batch_size_of("batch", batch)
    scalars = scalars_of(statistics)
    if "loss" in scalars:
        known["value"] = scalars["loss"]
    if value := getattr(estimator, "value", None):
        # A line search passes its arguments on by name, and rejects arguments that the function does not accept.
        known["value_fn"] = lambda p, statistics=None, gradient=None, epoch=None, rows=None: value(p, batch, key)
    return known


_jitted_update = jax.jit(update, donate_argnames="state")


def train_step(estimator: Estimator, optimizer: GradientTransformation) -> Callable[..., tuple[TrainState, Statistics]]:
    """Return a jitted step, `step(state, batch, key, **extra) -> (state, statistics)`.

    The input state is donated; use the returned one. Changing the learning rate does not recompile.

    Args:
        estimator: the estimator of the gradient.
        optimizer: an optimizer, from this package or another library. Its `update` receives the keyword arguments
            `extra` (for example `epoch=`), `statistics`, `gradient`, the number of `rows` of the batch, and, for
            `reduce_on_plateau` and the line searches of optax, `grad`. With a `loss_gradient` it also receives `value`
            (the loss) and `value_fn` (the loss at other parameters on the same batch).

    Raises:
        TypeError: if an argument is not an estimator or an optimizer.
    """
    check_estimator("train_step: estimator", estimator)
    return partial(_jitted_update, estimator, as_transformation(optimizer))
