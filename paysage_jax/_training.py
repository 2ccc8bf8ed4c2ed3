"""The jitted step, and whole runs inside one compiled program."""

import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._base import State, apply_updates, as_transformation, find_states
from ._convergence import ConvergenceState, converged
from ._estimators import Estimator, EstimatorState, batch_size_of
from ._pytree import check_count
from ._trees import Params, all_finite

Metric = Callable[[Params, jax.Array], jax.Array]


class Outcome(IntEnum):
    """How a run ended."""

    EPOCHS_EXHAUSTED = 0
    CONVERGED = 1
    NON_FINITE = 2


class FitResult(NamedTuple):
    """All that a run ends with, a pytree of arrays: save it, and `fit(..., resume=result)` goes on from it.

    epochs_done: int32. outcome: int32, an `Outcome`. history: for each metric, and for "epoch" (the epochs done
    when it was measured), an array with a row per measurement; rows never reached hold NaN (-1 for integers).
    """

    params: Params
    optimizer_state: State
    estimator_state: EstimatorState
    epochs_done: jax.Array
    outcome: jax.Array
    history: dict[str, Any]


class TrainState(NamedTuple):
    """What a step changes: `TrainState(params, optimizer.init(params), estimator.init(params, batch, key))`."""

    params: Params
    optimizer_state: State
    estimator_state: EstimatorState


def _update(estimator, optimizer, state, batch, key, **extra):
    gradient, estimator_state, statistics = estimator.estimate(state.params, batch, state.estimator_state, key)
    updates, optimizer_state = optimizer.update(
        gradient, state.optimizer_state, state.params, statistics=statistics, **extra
    )
    return TrainState(apply_updates(state.params, updates), optimizer_state, estimator_state), statistics


_jitted_update = jax.jit(_update, donate_argnames="state")


def train_step(estimator: Estimator, optimizer: Any) -> Callable[..., tuple[TrainState, Any]]:
    """One jitted step: `step(state, batch, key, **extra) -> (state, statistics)`.

    `extra` (`epoch=`, say) goes to the optimizer. The state is donated: use the one that comes back. Another
    learning rate does not compile again.
    """
    return partial(_jitted_update, estimator, as_transformation(optimizer))


def fit(
    params: Params,
    optimizer: Any,
    estimator: Estimator,
    data: Any,
    *,
    epochs: int,
    key: jax.Array,
    batch_size: int | None = None,
    shuffle: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    metrics_every: int = 1,
    progress: bool = False,
    resume: FitResult | None = None,
) -> FitResult:
    """Train for `epochs` epochs, or until `track_convergence` in the optimizer has converged at the end of one.

    data: an array, or a dict or tuple of arrays, with one leading axis, cut into batches of `batch_size` (the last
    may be smaller), in a new order every epoch if `shuffle`: the whole run is one compiled program, which may be
    mapped by `jax.vmap` over hyperparameters and keys. Or an iterable of batches that can be read anew every
    epoch (a list, a loader): a jitted step per batch, the next one transferred while one is computed.
    metrics: `name -> metric(params, key)`, each a scalar or an array, measured every `metrics_every` epochs.
    progress: show a tqdm bar (in a terminal).
    resume: the result of an earlier call, to go on from (`params` is not used then); with the same key, data and
    options it ends bit for bit as if never cut.
    The optimizer's `update` gets the extra arguments `epoch` and `statistics`. No argument is modified.
    """
    check_count("fit: epochs", epochs)
    check_count("fit: metrics_every", metrics_every)
    if isinstance(key, int):
        raise TypeError(f"fit: key must be a key, jax.random.key({key}), got {key}")
    optimizer = as_transformation(optimizer)
    _check_leaves(optimizer=optimizer, estimator=estimator)
    measure = tuple((metrics or {}).items())
    if "epoch" in dict(measure):
        raise ValueError("fit: no metric may be called epoch: the history has the epoch itself under that name")
    in_memory = isinstance(data, jax.Array | np.ndarray | dict | tuple)
    if in_memory:
        size = batch_size_of("data", data)
        if not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= size:
            raise ValueError(f"fit: batch_size must be from 1 to the {size} rows of data, got {batch_size}")
        data = _own(data)
        first = jax.tree.map(lambda x: x[:batch_size], data)
    else:
        if batch_size is not None:
            raise ValueError("fit: batch_size does not go with an iterable, whose items are the batches")
        first = _first_batch(data)

    init_key, key = jax.random.split(key)
    rows = max(1, epochs // metrics_every)
    if resume is None:
        result = FitResult(
            params,
            optimizer.init(params),
            estimator.init(params, first, init_key),
            jnp.zeros((), jnp.int32),
            jnp.array(Outcome.EPOCHS_EXHAUSTED, jnp.int32),
            _history(params, key, measure, rows),
        )
    else:
        fresh = _history(resume.params, key, measure, rows)
        result = resume._replace(history=_continued(resume.history, fresh, metrics_every))
    result = _own(result)

    recording = dict(measure=measure, every=metrics_every)
    if in_memory:
        run = partial(_run_epochs, optimizer, estimator, data, key, batch_size=batch_size, shuffle=shuffle, **recording)
    else:
        run = partial(_iterate_epochs, optimizer, estimator, data, key, **recording)
    return _with_progress(run, result, epochs) if progress else run(result, np.int32(epochs))


def _own(tree):
    # A copy: JAX may alias a numpy buffer that its owner goes on writing to, and steps donate their arguments.
    return jax.tree.map(jnp.array, tree)


def _check_leaves(**trees):
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, int | float | np.generic | np.ndarray | jax.Array):
                kind = type(leaf).__name__
                raise TypeError(f"fit: {name}: {kind} is neither number nor array; declare its field by static()")


def _first_batch(data):
    if not hasattr(data, "__iter__"):
        kind = type(data).__name__
        raise TypeError(f"fit: data must be arrays with a leading axis or an iterable of batches, got {kind}")
    batches = iter(data)
    if batches is data:
        raise ValueError("fit: data is an iterator, to be read once; give a list or a loader, read every epoch")
    for batch in batches:
        return _own(batch)
    raise ValueError("fit: data yielded no batch in epoch 0")


def _history(params, key, measure, rows):
    """The empty history: a row per measurement to come."""
    shapes = {"epoch": jax.ShapeDtypeStruct((), jnp.int32)}
    shapes |= {name: jax.eval_shape(metric, params, key) for name, metric in measure}

    def empty(shape):
        missing = np.nan if jnp.issubdtype(shape.dtype, jnp.floating) else -1
        return jnp.full((rows, *shape.shape), missing, shape.dtype)

    return jax.tree.map(empty, shapes)


def _continued(history, fresh, every):
    """The rows of an earlier history, and after them those of a fresh one."""
    if fresh.keys() != history.keys():
        raise ValueError(f"fit: expected the metrics {sorted(history)} of resume, got {sorted(fresh)}")
    for name, rows in history.items():
        if rows.shape[1:] != fresh[name].shape[1:]:
            raise ValueError(f"fit: expected metric {name} of shape {rows.shape[1:]}, got {fresh[name].shape[1:]}")
    if not isinstance(history["epoch"], Tracer):
        first = int(history["epoch"][0])
        if first not in (-1, every):
            raise ValueError(f"fit: expected metrics_every {first}, as in resume, got {every}")
    return {name: jnp.concatenate([rows, fresh[name][len(rows) :]]) for name, rows in history.items()}


def _train_state(result):
    return TrainState(result.params, result.optimizer_state, result.estimator_state)


def _keys(key, epoch):
    """The keys of an epoch: for the order of the data, for its steps, for its metrics."""
    return jax.random.split(jax.random.fold_in(key, epoch), 3)


def _end_epoch(result):
    """One epoch more, and whether the run is over."""
    outcome = result.outcome
    if find_states(result.optimizer_state, ConvergenceState):
        outcome = jnp.where(converged(result.optimizer_state), jnp.int32(Outcome.CONVERGED), outcome)
    outcome = jnp.where(all_finite(result.params), outcome, jnp.int32(Outcome.NON_FINITE))
    return result._replace(epochs_done=result.epochs_done + 1, outcome=outcome)


def _measure(result, key, *, measure, every):
    """The metrics, if it is time for them."""

    def record(history):
        metric_key = _keys(key, result.epochs_done - 1)[2]
        values = {"epoch": result.epochs_done}
        values |= {name: metric(result.params, metric_key) for name, metric in measure}
        row = result.epochs_done // every - 1
        return jax.tree.map(lambda rows, value: rows.at[row].set(value), history, values)

    due = result.epochs_done % every == 0
    return result._replace(history=jax.lax.cond(due, record, lambda history: history, result.history))


@partial(jax.jit, static_argnames=("batch_size", "shuffle", "measure", "every"))
def _run_epochs(optimizer, estimator, data, key, result, stop, *, batch_size, shuffle, measure, every):
    """Epochs up to number `stop`, on data in memory."""
    size = batch_size_of("data", data)
    full = size // batch_size

    def epoch(result):
        order_key, steps_key, _ = _keys(key, result.epochs_done)
        order = jax.random.permutation(order_key, size) if shuffle else jnp.arange(size)

        def step(state, batch):
            i, rows = batch
            batch = jax.tree.map(lambda x: x[rows], data)
            step_key = jax.random.fold_in(steps_key, i)
            return _update(estimator, optimizer, state, batch, step_key, epoch=result.epochs_done)[0], None

        whole, rest = order[: full * batch_size].reshape(full, batch_size), order[full * batch_size :]
        state, _ = jax.lax.scan(step, _train_state(result), (jnp.arange(full), whole))
        if rest.size:
            state, _ = step(state, (full, rest))
        return _end_epoch(result._replace(**state._asdict()))

    def goes_on(result, end):
        return (result.epochs_done < end) & (result.outcome == Outcome.EPOCHS_EXHAUSTED)

    def epochs_and_metrics(result):
        # A loop of its own between measurements: under vmap a condition is a selection, and would measure every epoch.
        end = jnp.minimum(stop, (result.epochs_done // every + 1) * every)
        result = jax.lax.while_loop(partial(goes_on, end=end), epoch, result)
        return _measure(result, key, measure=measure, every=every)

    return jax.lax.while_loop(partial(goes_on, end=stop), epochs_and_metrics, result)


@partial(jax.jit, donate_argnames="state")
def _numbered_step(optimizer, estimator, state, batch, key, i, epoch):
    return _update(estimator, optimizer, state, batch, jax.random.fold_in(key, i), epoch=epoch)[0]


@partial(jax.jit, static_argnames=("measure", "every"))
def _end_epoch_and_measure(result, key, *, measure, every):
    return _measure(_end_epoch(result), key, measure=measure, every=every)


def _iterate_epochs(optimizer, estimator, data, key, result, stop, *, measure, every):
    """Epochs up to number `stop`, on an iterable of batches."""
    while result.epochs_done < stop and result.outcome == Outcome.EPOCHS_EXHAUSTED:
        _, step_key, _ = _keys(key, result.epochs_done)
        state = _train_state(result)
        i = -1
        # Steps are dispatched asynchronously: the next batch is fetched and transferred meanwhile.
        for i, batch in enumerate(data):
            state = _numbered_step(optimizer, estimator, state, _own(batch), step_key, np.int32(i), result.epochs_done)
        if i < 0:
            raise ValueError(f"fit: data yielded no batch in epoch {int(result.epochs_done)}")
        result = _end_epoch_and_measure(result._replace(**state._asdict()), key, measure=measure, every=every)
    return result


def _with_progress(run, result, epochs):
    """The same run in pieces of about a tenth of a second, between which a bar is drawn."""
    from tqdm import tqdm

    done = int(result.epochs_done)
    piece = 1
    with tqdm(total=epochs, initial=done, unit="epoch", disable=None) as bar:
        while done < epochs and result.outcome == Outcome.EPOCHS_EXHAUSTED:
            start = time.perf_counter()
            result = run(result, np.int32(min(done + piece, epochs)))
            bar.update(int(result.epochs_done) - done)
            done = int(result.epochs_done)
            if time.perf_counter() - start < 0.1:
                piece *= 2
    return result
