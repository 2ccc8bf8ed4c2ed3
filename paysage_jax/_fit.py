"""`fit`: a whole run, on data in memory or from a loader, that reports, stops in time and survives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.tree_util import keystr, tree_leaves_with_path

from ._base import as_transformation
from ._checkpoints import Checkpoints
from ._data import arrays_or_loader, batch_size_of, check_leaves, own
from ._estimators import Estimator, check_estimator, entry_of
from ._interrupts import heard
from ._loop import drive, is_traced, progress_bar, read_epoch
from ._metrics import Metric, check_metrics, empty_rows, rows_before
from ._metrics import early_stopping as EarlyStopping
from ._placement import check_not_spread, placement
from ._processes import check_same, together
from ._pytree import check_count
from ._sharding import is_spread
from ._training import (
    FitResult,
    end_of_epoch,
    first_row,
    no_sums,
    numbered_step,
    outcome_now,
    run_epochs,
)
from ._trees import Params

_ROWS = 64  # measurements that one call of the compiled program can hold
_ELEMENTS = 2**20  # in all of them together


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
    sharding: NamedSharding | None = None,
    shards: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
    metrics_every: int = 1,
    early_stopping: EarlyStopping | None = None,
    callback: Callable[[FitResult], Any] | None = None,
    progress: bool = False,
    checkpoints: Any = None,
    checkpoint_every: int = 1,
    keep: int = 3,
    resume: FitResult | None = None,
) -> FitResult:
    """Train until epoch number `epochs`, or until the run has converged, stopped improving or become non-finite.

    Non-finite: parameters or chains are NaN or infinite, or an epoch made no update for want of finite numbers.
    The result is the state after the last good epoch, and `result.outcome` says how the run ended. If anything raises
    in mid-run, Ctrl-C or the loader say, the exception carries the epochs done as `exception.result`.
    No argument is modified. Data in memory are one compiled program, which may be mapped by `jax.vmap` over
    hyperparameters and keys; rows of the history that were not reached then have epoch -1 (and NaN where there is one).
    As in `jax.jit`, functions are traced once, which freezes the values that they read from globals or attributes, and
    compared by identity: a lambda written in the call compiles anew at every call.

    Args:
        params: a pytree of floating arrays, which may be NumPy's; not used with `resume`. Leaves of integers stay as
            they are, if `freeze` keeps them out of the optimizer.
        optimizer: an optimizer, ours or another library's; its `update` gets the extra arguments `epoch`, `statistics`,
            `gradient` and `rows` of the batch (for optax `grad`, `value`, `value_fn`). A `track_convergence` in it can
            end the run.
        estimator: where gradients come from: `persistent_contrastive_divergence`, `loss_gradient`, ...
        data: an array, or a dict or tuple of arrays, with one leading axis, cut into batches (the last may be
            smaller). Or batches that can be read anew every epoch: a list, a loader, or a function `data(epoch)` or
            `data()` that returns an iterable. A step compiles once for each size of batch. Estimators of two phases
            convert integers and bools to the floating dtype of the parameters; other estimators get them as they are.
            `Weighted` data in memory get weights with mean 1.
        epochs: the number of the last epoch, those done before `resume` included.
        key: a PRNG key, of `jax.random.key`.
        batch_size: rows of data in memory for each step.
        shuffle: cut data in memory in a new order every epoch.
        sharding: rows over devices: NamedSharding(mesh, PartitionSpec("data")). Data, batches and chains lie in pieces
            over the mesh axis "data", the rest whole on each device, or as it was given (parameters over a model
            axis). Of several processes each calls with the same arguments, but a loader yields the rows of its own; the
            callback is that of process 0. Not under `jit` and `vmap`.
        shards: what data in memory are cut into; each is shuffled by itself and gives as many rows to every batch.
            The same number gives the same run on any number of devices that divides it. None: one for each device.
        metrics: name -> metric(params, key), traced; it may also take `state=` (`TrainState`) and `data=` (in memory).
        metrics_every: measure every so many epochs.
        early_stopping: stop when a metric has not improved for a while; `result.best` has the best parameters.
        callback: callback(result) after every measurement, on the host; True stops the run.
        progress: show a tqdm bar with the latest metrics (in a terminal).
        checkpoints: a local directory. Repeating the call resumes from the latest checkpoint and gives the result of an
            uninterrupted run, provided that batches depend on nothing but the epoch.
        checkpoint_every: epochs between checkpoints; writing one takes about a tenth of a second.
        keep: how many of the last checkpoints are kept.
        resume: the result of an earlier call, to go on from. With the same key, data and options it ends bit for bit
            as if never cut. Metrics and early stopping may be added, whose rows from before then have no values, or
            removed. A checkpoint goes before it.

    Raises:
        TypeError, ValueError: for wrong arguments, naming them; for NaN and infinities in data of two phases, naming
            row and column. (A `loss_gradient` gets them, because it may mask them.)

    >>> from paysage_jax import Outcome, loss_gradient, sgd
    >>> data = jnp.array([1.0, 3.0, 1.0, 3.0])
    >>> estimator = loss_gradient(lambda w, batch: jnp.mean((batch - w) ** 2))
    >>> result = fit(jnp.zeros(()), sgd(0.1), estimator, data, epochs=40, batch_size=4, key=jax.random.key(0))
    >>> Outcome(result.outcome).name, result.params.round(2)
    ('EPOCHS_EXHAUSTED', Array(2., dtype=float32))
    """
    with together():
        for name, value in dict(epochs=epochs, metrics_every=metrics_every, checkpoint_every=checkpoint_every).items():
            check_count(f"fit: {name}", value)
        check_count("fit: keep", keep)
        _check_kinds(key, shuffle, early_stopping, callback, resume)
        keys = _split(key)
        if resume is None:
            _check_params(params)
        check_estimator("fit: estimator", estimator)
        optimizer = as_transformation(optimizer)
        check_leaves(optimizer=optimizer, estimator=estimator)
        place = placement(sharding, shards)
        entry = entry_of(estimator, resume.params if resume else params)
        data, loader, rows = arrays_or_loader(data, batch_size, jnp.array if sharding is None else np.array, entry)
        measured = check_metrics({} if metrics is None else metrics, ("state",) if loader else ("state", "data"))
        batch_size = None if loader else int(batch_size or 0)
        if loader is None and (batch_size or 0) % place.shards:
            raise ValueError(f"fit: batch_size must be a multiple of the {place.shards} shards, got {batch_size}")
        if place.sharding and is_traced():
            raise ValueError("fit: sharding is for the host: not under jax.jit and jax.vmap")
    epochs, metrics_every, shuffle = int(epochs), int(metrics_every), bool(shuffle)
    settings = dict(batch_size=batch_size, shuffle=shuffle, metrics_every=metrics_every, rows=rows)
    settings["shards"] = None if loader else place.shards
    check_same(sharding=place.description, **settings, epochs=epochs, checkpoint_every=checkpoint_every)
    check_same(params=params, data=data, key=key, optimizer=optimizer, estimator=estimator, metrics=measured)
    check_same(early_stopping=early_stopping, resume=resume, callback=callback is None, checkpoints=str(checkpoints))
    if loader is None:
        data = place.data(data)
    init_key, run_key = place.run("key", keys)

    with contextlib.ExitStack() as on_exit, _carrying(resume):
        disk = None
        if checkpoints is not None:
            disk = Checkpoints(checkpoints, keep, settings | {"key": f"{key.dtype} {jax.random.key_data(key)}"})
            on_exit.callback(disk.close)
            check_same(checkpoints_in_a_folder_that_all_see=-1 if disk.epoch is None else disk.epoch)

        if loader is None:
            first = place.head(data, batch_size or 0)
        else:
            begun = disk.epoch if disk else None
            begun = begun if begun is not None else 0 if resume is None else int(resume.epochs_done)
            # Of a run that has ended already, for its shape.
            first = next(place.batches(loader.first(epoch) for epoch in [min(begun, epochs - 1)]))
            if (rows := batch_size_of("batch", first)) % place.devices:
                raise ValueError(f"fit: batches must divide over the {place.devices} devices, got one of {rows} rows")
            first = place.head(first, rows)
        if sharding is None:
            check_not_spread("data", first if loader else data)
        result = _resumed(resume) if resume else _start(place, params, optimizer, estimator, first, init_key)
        if early_stopping is not None and result.best == ():
            result = result._replace(best=early_stopping.start(result.params))
        if sharding is None:
            if not any(map(is_spread, jax.tree.leaves(result.params))):
                check_not_spread("the optimizer's state", result.optimizer_state)
        else:
            like = result.params if resume is None or place.holds(result.params) else place.run("params", own(params))
            result, place = place.begin(result, like, place.run("the optimizer's state", optimizer.init(like)))
        alone = result._replace(history=())
        shapes = first_row.eval_shape(estimator, measured, early_stopping, data, run_key, alone, first)
        result = result._replace(history=rows_before(result.history, shapes, metrics_every))
        if disk and disk.epoch is not None:
            result = disk.latest(like=result)
        if early_stopping is not None and not is_traced():
            result = result._replace(best=early_stopping.resumed(result))
        result = result._replace(outcome=outcome_now(result, optimizer, early_stopping))
        zeros = no_sums(estimator, result.state, first, run_key)
        if jax.process_count() > 1:  # functions and numbers of the program's own
            carry = result.state, zeros
            step = (optimizer, estimator, place, carry, first, run_key, np.int32(0), result.epochs_done)
            check_same(estimator_or_optimizer=numbered_step.lower(*step).as_text())
        if resume is not None:
            step = (optimizer, estimator, place, (result.state, zeros), first, run_key, np.int32(0), result.epochs_done)
            _check_step(result.state, numbered_step.eval_shape(*step)[0])

        run = partial(run_epochs, optimizer, estimator, place, measured, early_stopping, data, run_key)
        run = partial(run, batch_size=batch_size, shuffle=shuffle, every=metrics_every)
        if is_traced():
            on_host = dict(callback=callback, progress=progress or None, checkpoints=checkpoints)
            for name, value in (on_host | {"data that is an iterable": loader}).items():
                if value is not None:
                    raise ValueError(f"fit: {name} is for the host: not under jax.jit and jax.vmap")
            room = empty_rows(shapes, max(0, max(1, epochs // metrics_every) - len(result.history["epoch"])))
            history = jax.tree.map(lambda *parts: jnp.concatenate(parts), result.history, room)
            return run(result._replace(history=history), np.int32(epochs), rows=0)

        capacity = max(1, min(_ROWS, _ELEMENTS // sum(x.size for x in jax.tree.leaves(shapes))))
        if loader is None:
            run = partial(run, rows=capacity)
        else:
            end = partial(end_of_epoch, place, measured, early_stopping, run_key, every=metrics_every)
            step = partial(numbered_step, optimizer, estimator, place)
            run = partial(read_epoch, step, end, place, loader, run_key, zeros)
        bar = None
        if progress and jax.process_index() == 0:
            bar = on_exit.enter_context(progress_bar(epochs, int(result.epochs_done)))
        on_exit.enter_context(heard())
        return drive(run, result, epochs, metrics_every, capacity, callback, bar, disk, checkpoint_every)


# --- how a run starts --------------------------------------------------------------------------------


@contextlib.contextmanager
def _carrying(resume: FitResult | None) -> Iterator[None]:
    """What raises before the first step, in reading the first batch say, carries what was to be resumed."""
    try:
        yield
    except BaseException as error:
        if resume is not None:
            vars(error).setdefault("result", resume)
        raise


def _split(key: Any) -> tuple[jax.Array, jax.Array]:
    try:
        init_key, run_key = jax.random.split(key)
    except (TypeError, ValueError) as error:
        raise TypeError(f"fit: key must be one key, of jax.random.key: {error}") from None
    return init_key, run_key


def _resumed(resume: FitResult) -> FitResult:
    for path, x in tree_leaves_with_path(resume._replace(history=())):
        if jnp.issubdtype(x.dtype, np.number) and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
            raise ValueError(f"fit: resume{keystr(path)} has dtype {x.dtype}, which needs jax_enable_x64")
    return own(resume._replace(history=()))._replace(history=resume.history)  # which grows: a copy is compiled


def _check_step(state: Any, after: Any) -> None:
    for (path, x), y in zip(tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            expected = f"shape {y.shape} and dtype {y.dtype}, got {x.shape} and {x.dtype}"
            raise ValueError(f"fit: resume{keystr(path)}: expected {expected}; was it made without jax_enable_x64?")


def _start(place: Any, params: Params, optimizer: Any, estimator: Estimator, first: Any, key: jax.Array) -> FitResult:
    params = place.run("params", own(params))
    zero = jnp.zeros((), jnp.int32)
    optimizer_state = place.run("the optimizer's state", optimizer.init(params))
    states = optimizer_state, place.chains(estimator.init(params, first, key))
    return FitResult(params, *states, epochs_done=zero, outcome=zero, best=(), history={})


# --- mistakes ----------------------------------------------------------------------------------------


def _check_params(params: Any) -> None:
    if params is None:
        raise TypeError("fit: params must be a pytree of arrays, got None; only with resume= they are not used")
    for path, x in tree_leaves_with_path(params):
        where = f"fit: params{keystr(path)}"
        try:
            dtype = jnp.result_type(x)
        except TypeError:
            raise TypeError(f"{where}: expected an array of numbers, got {x!r}") from None
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            hint = "keep it out, for example by graph, params, rest = nnx.split(model, nnx.Param, ...)"
            raise TypeError(f"{where}: a PRNG key ({dtype}) cannot be trained: {hint}")


def _check_kinds(key: Any, shuffle: Any, stopping: Any, callback: Any, resume: Any) -> None:
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"fit: key must be a key, jax.random.key({key if isinstance(key, int) else 0}), got {key!r}")
    if not isinstance(shuffle, bool | np.bool_):
        raise TypeError(f"fit: shuffle must be True or False, got {type(shuffle).__name__}")
    if stopping is not None and not isinstance(stopping, EarlyStopping):
        raise TypeError(f"fit: early_stopping must be early_stopping(metric, ...), got {stopping!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"fit: callback must be a function callback(result), got {callback!r}")
    if resume is not None and not isinstance(resume, FitResult):
        raise TypeError(f"fit: resume must be the FitResult of an earlier call, got {type(resume).__name__}")
    if resume is not None and jnp.ndim(resume.outcome):
        hint = "take one of them, jax.tree.map(lambda x: x[0], result), or resume under jax.vmap"
        raise ValueError(f"fit: resume holds {resume.outcome.size} runs of a sweep: {hint}")
