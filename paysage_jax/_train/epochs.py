"""The program of a run, which does not change, and its epochs: in one compiled loop, or step by step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._core.batches import batch_size_of, weight_of
from .._core.devices import lay_out
from .._core.pytree import Pytree, static
from .._core.threefry import fold_in, split
from .._core.trees import all_finite
from .._core.types import Batch, Row, Statistics, Tree
from .._ebm.estimators import Estimator
from .._optim.averaging import watched_parameters
from .._optim.convergence import ConvergenceState, converged, is_lost, still_converged
from .._optim.transformation import Transformation, find_states
from .early_stopping import early_stopping as EarlyStopping
from .history import Metric, empty_rows, measure, scalars_of
from .placement import Placement
from .step import FitResult, Outcome, TrainState, estimate, update

_ROWS = 64  # the largest number of measurements in one call of the compiled program
_ELEMENTS = 2**20  # the largest number of elements in all of them together


class Program(Pytree):
    """Everything that does not change in a run.

    batch_size: the batch size of data in memory; 0 for a loader. zero_sums, empty_row: the sums of an epoch before its
    first step, and a row of the history without a measurement; `with_shapes` adds them.
    """

    optimizer: Transformation
    estimator: Estimator
    metrics: dict[str, Metric]
    early_stopping: EarlyStopping | None
    key: jax.Array
    placement: Placement = static()
    batch_size: int = static()
    shuffle: bool = static()
    metrics_every: int = static()
    zero_sums: Tree = ()
    empty_row: Tree = ()

    def to_agree(self) -> Row:
        """The fields that must be the same in all processes, by name."""
        return {name: value for name, value in vars(self).items() if name != "placement"}

    @property
    def rows_at_once(self) -> int:
        """The largest number of measurements in one call of the compiled program."""
        elements = sum(x.size for x in jax.tree.leaves(self.empty_row))
        return max(1, min(_ROWS, _ELEMENTS // elements))


class Epoch(NamedTuple):
    """An epoch in progress.

    number: its number. keys: its PRNG keys. state: the current `TrainState`. sums: the sums of the
    statistics over rows, and the sum of the weights of the rows.
    """

    number: jax.Array
    keys: _Keys
    state: TrainState
    sums: Tree


class _Keys(NamedTuple):
    order: jax.Array
    steps: jax.Array
    metrics: jax.Array


def _keys_of(program: Program, epoch: ArrayLike) -> _Keys:
    return _Keys(*split(fold_in(program.key, epoch), 3))


# --- one epoch ---------------------------------------------------------------------------------------


def begin_epoch(program: Program, result: FitResult) -> Epoch:
    number = result.epochs_done
    return Epoch(number, _keys_of(program, number), result.state, program.zero_sums)


def step(program: Program, epoch: Epoch, batch: Batch, i: ArrayLike) -> Epoch:
    """Step number i of an epoch."""
    key = fold_in(epoch.keys.steps, i)
    state, statistics = update(program.estimator, program.optimizer, epoch.state, batch, key, epoch=epoch.number)
    sums = jax.tree.map(jnp.add, epoch.sums, _sums_of(statistics, batch))
    return epoch._replace(state=lay_out(state, program.placement.state), sums=sums)


def _sums_of(statistics: Statistics, batch: Batch) -> Tree:
    """The scalar statistics times the number of rows, and the total weight of the rows."""
    rows = batch_size_of("batch", batch)
    return {name: jnp.asarray(rows, x.dtype) * x for name, x in scalars_of(statistics).items()}, weight_of(batch)


def finish_epoch(program: Program, result: FitResult, epoch: Epoch) -> tuple[FitResult, dict[str, jax.Array]]:
    """The result after an epoch and the means of its statistics. If the run is not finite, keep the previous result."""
    sums, weight = epoch.sums
    statistics = jax.tree.map(lambda total: total / weight.astype(total.dtype), sums)
    state, outcome = epoch.state, result.outcome
    if find_states(state.optimizer_state, ConvergenceState):
        # A moment that has overflowed also gives zero steps, but this is not convergence.
        moments = [x for x in jax.tree.leaves(state.optimizer_state) if x.ndim]
        small = converged(state.optimizer_state) & all_finite(moments)
        outcome = jnp.where(small, jnp.int32(Outcome.CONVERGED), outcome)
    ended = result._replace(**state._asdict(), epochs_done=result.epochs_done + 1, outcome=outcome)
    failed = result._replace(outcome=jnp.int32(Outcome.NON_FINITE))
    good = all_finite(state.params) & ~is_lost(result.state, state, statistics)
    return jax.lax.cond(good, lambda: ended, lambda: failed), statistics


def measure_epoch(program: Program, result: FitResult, statistics: Statistics) -> tuple[FitResult, Row]:
    """The result with the best measurement updated, and a row of the history."""
    key = _keys_of(program, result.epochs_done - 1).metrics
    state = result.state
    if program.metrics or program.early_stopping is not None:
        state = state._replace(params=watched_parameters(*state[:2]))
    values = measure(program.metrics, state, key, result.epochs_done, statistics)
    values = lay_out(values, program.placement.replicated)
    if (stopping := program.early_stopping) is None:
        return result, values
    if stopping.metric not in values:
        raise ValueError(f"early_stopping: no metric {stopping.metric!r}; the history has {sorted(values)}")
    best = stopping.update(result.best, state.params, values)
    ends = stopping.should_stop(best) & (result.outcome == Outcome.EPOCHS_EXHAUSTED)
    outcome = jnp.where(ends, jnp.int32(Outcome.NOT_IMPROVING), result.outcome)
    return result._replace(best=best, outcome=outcome), values


def is_due(program: Program, result: FitResult) -> jax.Array:
    """Whether the last epoch should be measured."""
    return (result.epochs_done % program.metrics_every == 0) & (result.outcome != Outcome.NON_FINITE)


def outcome_now(program: Program, result: FitResult) -> jax.Array:
    """The outcome at the start. A run continues unless it has ended also by the current tolerance and patience."""
    ended = jnp.array(False)
    if find_states(result.optimizer_state, ConvergenceState):
        small = still_converged(program.optimizer, result.optimizer_state)
        ended = ended | ((result.outcome == Outcome.CONVERGED) & small)
    if (stopping := program.early_stopping) is not None:
        ended = ended | ((result.outcome == Outcome.NOT_IMPROVING) & stopping.should_stop(result.best))
    return jnp.where(ended, jnp.asarray(result.outcome, jnp.int32), jnp.int32(Outcome.EPOCHS_EXHAUSTED))


# --- the shapes of a run -----------------------------------------------------------------------------


@jax.jit
def _first_sums_and_row(program: Program, result: FitResult, batch: Batch) -> Tree:
    statistics = estimate(program.estimator, result.state, batch, program.key)[2]
    sums = jax.tree.map(jnp.asarray, _sums_of(statistics, batch))
    return sums, measure_epoch(program, result, scalars_of(statistics))[1]


def with_shapes(program: Program, result: FitResult, batch: Batch) -> Program:
    """The program with the zero sums and the empty row for a run from this result. Only shapes are evaluated."""
    sums, row = _first_sums_and_row.eval_shape(program, result._replace(history=()), batch)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums)
    return program.replace_unchecked(zero_sums=zeros, empty_row=jax.tree.map(lambda x: x[0], empty_rows(row, 1)))


# --- epochs on data in memory ------------------------------------------------------------------------


@jax.jit
def run_epochs(program: Program, data: object, result: FitResult, stop: ArrayLike) -> FitResult:
    """Run epochs on data in memory, up to number `stop` or to the end of the run.

    If the given result has no history, the history of the returned one contains the new rows. Otherwise the new rows
    are written into the given history, at their places in the whole run.
    """
    place, every = program.placement, program.metrics_every
    history, measured = result.history, 0
    result = result._replace(history=())
    if not history:
        rows, measured = program.rows_at_once, result.epochs_done // every
        history = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), program.empty_row)

    def epoch(carry: Tree) -> Tree:
        result, _ = carry
        return finish_epoch(program, result, _all_steps(program, data, begin_epoch(program, result)))

    def goes_on(result: FitResult, end: Tree) -> jax.Array:
        return (result.epochs_done < end) & (result.outcome == Outcome.EPOCHS_EXHAUSTED)

    def epochs_and_row(carry: Tree) -> Tree:
        # An inner loop between measurements: under vmap, a condition becomes a selection and would measure every epoch.
        result, history = carry
        end = jnp.minimum(stop, (result.epochs_done // every + 1) * every)
        zeros = jax.tree.map(jnp.asarray, program.zero_sums[0])
        result, statistics = jax.lax.while_loop(lambda c: goes_on(c[0], end), epoch, (result, zeros))

        def record(result: FitResult, history: Tree) -> tuple[FitResult, Tree]:
            result, row = measure_epoch(program, result, statistics)
            number = row["epoch"] // every - 1 - measured
            return result, jax.tree.map(lambda rows, x: rows.at[number].set(x), history, row)

        return jax.lax.cond(is_due(program, result), record, lambda *carry: carry, result, history)

    result, history = jax.lax.while_loop(lambda c: goes_on(c[0], stop), epochs_and_row, (result, history))
    return lay_out(result, place.result)._replace(history=lay_out(history, place.replicated))


def _all_steps(program: Program, data: object, epoch: Epoch) -> Epoch:
    """All steps of an epoch."""
    place, size = program.placement, batch_size_of("data", data)
    each = program.batch_size // place.shards  # rows per shard in a batch
    full = size // place.shards // each
    order = place.order(epoch.keys.order, size, program.shuffle)
    whole = order[:, : full * each].reshape(place.shards, full, each).swapaxes(0, 1)

    def numbered(epoch: Epoch, numbered_rows: Tree) -> tuple[Epoch, None]:
        i, chosen = numbered_rows
        return step(program, epoch, place.take(data, chosen), i), None

    epoch, _ = jax.lax.scan(numbered, epoch, (jnp.arange(full), whole))
    if size > full * program.batch_size:
        epoch = step(program, epoch, place.take(data, order[:, full * each :], with_remainder=True), full)
    return epoch


# --- epochs on batches of a loader -------------------------------------------------------------------


@jax.jit
def begin_epoch_of_loader(program: Program, result: FitResult) -> Epoch:
    """A copy of the state, which the steps donate; the result stays valid."""
    return jax.tree.map(jnp.copy, begin_epoch(program, result))


donating_step = jax.jit(step, donate_argnames="epoch")


@jax.jit
def finish_epoch_of_loader(program: Program, result: FitResult, epoch: Epoch) -> FitResult:
    """The result after the last step of an epoch. Its history is one row, empty unless a measurement is due."""
    result, statistics = finish_epoch(program, result._replace(history=()), epoch)

    def measured(result: FitResult) -> tuple[FitResult, Row]:
        return measure_epoch(program, result, statistics)

    def skipped(result: FitResult) -> tuple[FitResult, Row]:
        return result, jax.tree.map(jnp.asarray, program.empty_row)

    result, row = jax.lax.cond(is_due(program, result), measured, skipped, result)
    history = lay_out(jax.tree.map(lambda x: x[None], row), program.placement.replicated)
    return lay_out(result, program.placement.result)._replace(history=history)
