"""The jitted step, and epochs of steps inside one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._base import State, apply_updates, as_transformation, find_states
from ._convergence import ConvergenceState, converged, is_lost, still_converged
from ._data import Batch, batch_size_of
from ._estimators import Estimator, EstimatorState, check_estimator
from ._metrics import early_stopping, measure, scalars_of
from ._placement import Placement
from ._sharding import lay_out
from ._trees import Params, all_finite


class Outcome(IntEnum):
    """How a run ended; NON_FINITE also where chains are lost, or an epoch made no update for want of finite numbers."""

    EPOCHS_EXHAUSTED = 0
    CONVERGED = 1
    NON_FINITE = 2
    NOT_IMPROVING = 3
    STOPPED = 4
    INTERRUPTED = 5

    @classmethod
    def _missing_(cls, value: Any) -> Any:
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
    best: Any
    history: dict[str, Any]

    @property
    def state(self) -> TrainState:
        """What a step changes."""
        return TrainState(self.params, self.optimizer_state, self.estimator_state)


# --- a step ------------------------------------------------------------------------------------------


def _update(
    estimator: Estimator, optimizer: Any, state: TrainState, batch: Batch, key: jax.Array, **extra: Any
) -> tuple[TrainState, Any]:
    if not all(hasattr(state, name) for name in TrainState._fields):
        raise TypeError(f"step(state, batch, key): state must be a TrainState, got {type(state).__name__}")
    gradient, estimator_state, statistics = _estimate(estimator, state, batch, key)
    extra = _what_is_known(estimator, state.params, batch, key, gradient, statistics) | extra
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params, **extra)
    return TrainState(apply_updates(state.params, updates), optimizer_state, estimator_state), statistics


def _estimate(estimator: Estimator, state: TrainState, batch: Batch, key: jax.Array) -> Any:
    estimate = estimator.estimate(state.params, batch, state.estimator_state, key)
    if not isinstance(estimate, tuple | list) or len(estimate) != 3:
        got = f"{len(estimate)} values" if isinstance(estimate, tuple | list) else type(estimate).__name__
        name = f"{type(estimator).__name__}.estimate"
        raise TypeError(f"{name}: expected (gradient, estimator_state, statistics), got {got}")
    return estimate


def _what_is_known(
    estimator: Estimator, params: Params, batch: Batch, key: jax.Array, gradient: Params, statistics: Any
) -> dict[str, Any]:
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


_jitted_update = jax.jit(_update, donate_argnames="state")


def train_step(estimator: Estimator, optimizer: Any) -> Callable[..., tuple[TrainState, Any]]:
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


# --- epochs ------------------------------------------------------------------------------------------


def keys_of(key: jax.Array, epoch: Any) -> jax.Array:
    """The keys of an epoch: for the order of the data, for its steps, for its metrics."""
    return jax.random.split(jax.random.fold_in(key, epoch), 3)


def numbered_update(
    optimizer: Any, estimator: Estimator, place: Placement, carry: Any, batch: Batch, key: jax.Array, i: Any, epoch: Any
) -> Any:
    """Step number i of an epoch on (state, sums): the sums of the statistics grow by theirs, weighted by rows."""
    state, sums = carry
    state, statistics = _update(estimator, optimizer, state, batch, jax.random.fold_in(key, i), epoch=epoch)
    rows, scalars = batch_size_of("batch", batch), scalars_of(statistics)
    return place.keep(state), jax.tree.map(lambda total, x: total + jnp.asarray(rows, x.dtype) * x, sums, scalars)


def no_sums(estimator: Estimator, state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
    """Zeros for the sums of the statistics."""
    shapes = _scalars.eval_shape(estimator, state, batch, key)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@jax.jit
def _scalars(estimator: Estimator, state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
    return scalars_of(_estimate(estimator, state, batch, key)[2])


def end_epoch(result: FitResult, state: TrainState, statistics: Any) -> FitResult:
    """One epoch more, if its parameters are finite and the run is not lost; else it ends with the epoch before."""
    outcome = result.outcome
    if find_states(state.optimizer_state, ConvergenceState):
        # A moment that has overflowed gives no steps: that is no convergence.
        moments = [x for x in jax.tree.leaves(state.optimizer_state) if x.ndim and jnp.issubdtype(x.dtype, jnp.inexact)]
        small = converged(state.optimizer_state) & all_finite(moments)
        outcome = jnp.where(small, jnp.int32(Outcome.CONVERGED), outcome)
    ended = result._replace(**state._asdict(), epochs_done=result.epochs_done + 1, outcome=outcome)
    failed = result._replace(outcome=jnp.int32(Outcome.NON_FINITE))
    good = all_finite(state.params) & ~is_lost(result.state, state, statistics)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), ended, failed)


def outcome_now(result: FitResult, optimizer: Any, stopping: early_stopping | None) -> jax.Array:
    """A run goes on, unless it has converged or stopped improving also by the present tolerance and patience."""
    ended = jnp.array(False)
    if find_states(result.optimizer_state, ConvergenceState):
        small = still_converged(optimizer, result.optimizer_state)
        ended = ended | ((result.outcome == Outcome.CONVERGED) & small)
    if stopping is not None:
        ended = ended | ((result.outcome == Outcome.NOT_IMPROVING) & stopping.gave_up(result.best))
    return jnp.where(ended, jnp.asarray(result.outcome, jnp.int32), jnp.int32(Outcome.EPOCHS_EXHAUSTED))


def take_row(
    result: FitResult, key: jax.Array, statistics: Any, metrics: Any, stopping: Any, data: Any
) -> tuple[FitResult, dict[str, Any]]:
    """The result with the best measurement renewed, and a row of the history."""
    key = keys_of(key, result.epochs_done - 1)[2]
    values = measure(metrics, result.state, key, result.epochs_done, statistics, data)
    if stopping is None:
        return result, values
    if stopping.metric not in values:
        raise ValueError(f"early_stopping: no metric {stopping.metric!r}; the history has {sorted(values)}")
    best = stopping.update(result.best, result.params, values)
    ends = stopping.gave_up(best) & (result.outcome == Outcome.EPOCHS_EXHAUSTED)
    outcome = jnp.where(ends, jnp.int32(Outcome.NOT_IMPROVING), result.outcome)
    return result._replace(best=best, outcome=outcome), values


@jax.jit
def first_row(
    estimator: Estimator, metrics: Any, stopping: Any, data: Any, key: jax.Array, result: FitResult, batch: Batch
) -> dict[str, Any]:
    """A row of the history, for its shapes."""
    return take_row(result, key, _scalars(estimator, result.state, batch, key), metrics, stopping, data)[1]


def is_due(result: FitResult, every: int) -> jax.Array:
    """Whether the epoch that has just ended is to be measured."""
    return (result.epochs_done % every == 0) & (result.outcome != Outcome.NON_FINITE)


@partial(jax.jit, static_argnames=("place", "batch_size", "shuffle", "every", "rows"))
def run_epochs(
    optimizer: Any,
    estimator: Estimator,
    place: Placement,
    metrics: Any,
    stopping: Any,
    data: Any,
    key: jax.Array,
    result: FitResult,
    stop: Any,
    *,
    batch_size: int,
    shuffle: bool,
    every: int,
    rows: int,
) -> FitResult:
    """Epochs up to number `stop`, or to the end of the run, on data in memory.

    The history of the result that comes back has the rows measured meanwhile, at most `rows`; if there is a history
    already, they are set in it, where they belong in a whole run.
    """
    size = batch_size_of("data", data)
    each = batch_size // place.shards  # rows that a shard gives to a batch
    full = size // place.shards // each
    first_batch = place.take(data, jnp.zeros((place.shards, each), jnp.int32))
    zeros = no_sums(estimator, result.state, first_batch, key)
    history, measured = result.history, 0
    result = result._replace(history=())

    def row(result: FitResult, statistics: Any) -> Any:
        return take_row(result, key, statistics, metrics, stopping, data)

    if not history:
        shapes, measured = jax.eval_shape(row, result, zeros)[1], result.epochs_done // every
        history = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), shapes)

    def epoch(carry: Any) -> Any:
        result, _ = carry
        order_key, steps_key, _ = keys_of(key, result.epochs_done)
        order = place.order(order_key, size, shuffle)

        def step(carry: Any, i: Any, batch: Batch) -> Any:
            return numbered_update(optimizer, estimator, place, carry, batch, steps_key, i, result.epochs_done)

        def whole_step(carry: Any, numbered_rows: Any) -> Any:
            i, chosen = numbered_rows
            return step(carry, i, place.take(data, chosen)), None

        whole = order[:, : full * each].reshape(place.shards, full, each).swapaxes(0, 1)
        carry, _ = jax.lax.scan(whole_step, (result.state, zeros), (jnp.arange(full), whole))
        if size > full * batch_size:
            carry = step(carry, full, place.take(data, order[:, full * each :], rest=True))
        state, sums = carry
        statistics = jax.tree.map(lambda total: total / size, sums)
        return end_epoch(result, state, statistics), statistics

    def goes_on(result: FitResult, end: Any) -> jax.Array:
        return (result.epochs_done < end) & (result.outcome == Outcome.EPOCHS_EXHAUSTED)

    def epochs_and_row(carry: Any) -> Any:
        # A loop of its own between measurements: under vmap a condition is a selection, and would measure every epoch.
        result, history = carry
        end = jnp.minimum(stop, (result.epochs_done // every + 1) * every)
        result, statistics = jax.lax.while_loop(lambda c: goes_on(c[0], end), epoch, (result, zeros))

        def record(result: FitResult, history: Any) -> Any:
            result, values = row(result, statistics)
            values = lay_out(values, place.whole)
            number = values["epoch"] // every - 1 - measured
            return result, jax.tree.map(lambda rows, value: rows.at[number].set(value), history, values)

        return jax.lax.cond(is_due(result, every), record, lambda *carry: carry, result, history)

    result, history = jax.lax.while_loop(lambda c: goes_on(c[0], stop), epochs_and_row, (result, history))
    return place.keep(result)._replace(history=lay_out(history, place.whole))


numbered_step = jax.jit(numbered_update, static_argnames="place", donate_argnames="carry")


@partial(jax.jit, static_argnames=("place", "every"))
def end_of_epoch(
    place: Placement, metrics: Any, stopping: Any, key: jax.Array, result: FitResult, carry: Any, n: Any, *, every: int
) -> FitResult:
    """After the steps of an epoch on n rows of an iterable. The history is one row, with a meaning if it is due."""
    state, sums = carry
    statistics = jax.tree.map(lambda total: total / n.astype(total.dtype), sums)
    result = end_epoch(result._replace(history=()), state, statistics)

    def row(result: FitResult) -> Any:
        return take_row(result, key, statistics, metrics, stopping, None)

    def skip(result: FitResult) -> Any:
        return result, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(row, result)[1])

    result, values = jax.lax.cond(is_due(result, every), row, skip, result)
    history = lay_out(jax.tree.map(lambda x: x[None], values), place.whole)
    return place.keep(result)._replace(history=history)
