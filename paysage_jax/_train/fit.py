"""`fit`: a training run with metrics, early stopping and checkpoints, on data in memory or from a loader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context
from jax.sharding import NamedSharding
from jax.tree_util import keystr, tree_leaves_with_path

from .._core.batches import copy_to_device
from .._core.devices import is_partitioned
from .._core.pytree import check_count
from .._core.threefry import split
from .._core.types import Batch, Params
from .._ebm.estimators import Estimator, check_estimator, entry_of
from .._optim.averaging import watched_parameters
from .._optim.transformation import GradientTransformation, as_transformation
from .checkpoints import CheckpointManager, Checkpoints, Directory, Settings
from .driver import Host, drive, progress_bar
from .early_stopping import early_stopping as EarlyStopping
from .epochs import Program, begin_epoch_of_loader, donating_step, outcome_now, with_shapes
from .history import Metric, check_metrics, empty_rows, rows_before
from .interrupts import heard
from .placement import check_not_partitioned, placement
from .processes import agree, raise_on_all_processes
from .source import Loader, Memory, check_leaves, open_source
from .step import FitResult


def fit(
    params: Params,
    optimizer: GradientTransformation,
    estimator: Estimator,
    data: object,
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
    callback: Callable[[FitResult], object] | None = None,
    progress: bool = False,
    checkpoints: Checkpoints | Directory | None = None,
    resume: FitResult | None = None,
) -> FitResult:
    """Train until epoch `epochs`, or until the run has converged, stopped improving, or become nonfinite.

    A run becomes nonfinite if parameters or chains are NaN or infinite, or if an epoch makes no update because of
    nonfinite numbers. The result is the state after the last good epoch, and `result.outcome` tells how the run ended.
    If an exception interrupts the run (Ctrl-C or an error of the loader, for example), the result so far is attached as
    `exception.result`. No argument is modified.

    With data in memory, the run is one compiled program, which can be mapped by `jax.vmap` over hyperparameters and
    keys. Rows of the history that a mapped run does not reach have epoch -1 and NaN. As in `jax.jit`, values read from
    globals or attributes are frozen when a function is traced, and functions are compared by identity: a lambda in the
    call recompiles at every call.

    Args:
        params: a pytree of floating arrays of JAX or NumPy; not used with `resume`. Integer leaves must be excluded
            from the optimizer by `freeze`, and stay unchanged.
        optimizer: an optimizer, from this package or another library. Its `update` receives the extra arguments
            `epoch`, `statistics`, `gradient` and `rows` of the batch (for optax `grad`, `value`, `value_fn`). If it
            contains a `track_convergence`, that can end the run.
        estimator: the estimator of the gradient, for example `persistent_contrastive_divergence` or `loss_gradient`.
        data: an array, or a dict or tuple of arrays with a common leading axis, which is split into batches (the last
            may be smaller). Or batches that can be read in every epoch: a list, a loader, or a function `data(epoch)`
            or `data()` that returns an iterable. A step compiles once per batch size. Two-phase estimators convert
            integers and bools to the floating dtype of the parameters; other estimators get them unchanged. The weights
            of `Weighted` data in memory are divided by their mean.
        epochs: the number of the last epoch, which includes the epochs before `resume`.
        key: a PRNG key, from `jax.random.key`.
        batch_size: the number of rows in a batch, for data in memory.
        shuffle: whether to shuffle data in memory in every epoch.
        sharding: the sharding of rows over devices, NamedSharding(mesh, PartitionSpec("data")). Data, batches and
            chains are sharded over the mesh axis "data". Everything else is replicated, or keeps its sharding (for
            example parameters over a model axis). Every process makes the same call; a loader yields only its local
            rows, and only process 0 calls the callback. Not under `jit` or `vmap`.
        shards: the number of shards of data in memory. Each shard is shuffled independently and contributes equally to
            every batch. The same number gives the same run on any number of devices that divides it. None: one shard
            per device.
        metrics: a dict name -> metric(state, key), where state is a `TrainState`. Metrics are traced. If the optimizer
            averages the parameters (`average_parameters`), state.params and `result.best.params` are the average.
        metrics_every: the number of epochs between measurements.
        early_stopping: stops the run when a metric stops improving; `result.best` has the best parameters.
        callback: called as callback(result) on the host after every measurement; True stops the run.
        progress: whether to show a tqdm bar with the latest metrics (in a terminal).
        checkpoints: a local directory, or `Checkpoints(directory, every=, keep=)`. Repeating the call resumes from the
            latest checkpoint and gives the result of an uninterrupted run, if batches depend only on the epoch. A
            checkpoint takes precedence over `resume`.
        resume: the result of an earlier call, from which to continue. With the same key, data and options, the result
            equals that of an uninterrupted run bit for bit. Metrics and early stopping may be added or removed; earlier
            rows of a new metric have no values.

    Raises:
        TypeError, ValueError: for a wrong argument; the message names it. For NaN and infinity in the data of two-phase
            estimators, the message names row and column. (A `loss_gradient` gets such data, because it may mask them.)

    >>> from paysage_jax import Outcome, loss_gradient, sgd
    >>> data = jnp.array([1.0, 3.0, 1.0, 3.0])
    >>> estimator = loss_gradient(lambda w, batch: jnp.mean((batch - w) ** 2))
    >>> result = fit(jnp.zeros(()), sgd(0.1), estimator, data, epochs=40, batch_size=4, key=jax.random.key(0))
    >>> Outcome(result.outcome).name, result.params.round(2)
    ('EPOCHS_EXHAUSTED', Array(2., dtype=float32))
    """
    with raise_on_all_processes():
        optimizer = as_transformation(optimizer)
        checkpoints = None if checkpoints is None else Checkpoints.of(checkpoints)
        with _naming_fit():
            _check_kinds(key, shuffle, early_stopping, callback, resume)
            keys = _split(key)
            for name, number in dict(epochs=epochs, metrics_every=metrics_every).items():
                check_count(name, number)
            if resume is None:
                _check_params(params)
            check_estimator("estimator", estimator)
            check_leaves(optimizer=optimizer, estimator=estimator)
            place = placement(sharding, shards)
            source = open_source(data, batch_size, place, entry_of(estimator, resume.params if resume else params))
            measured = check_metrics({} if metrics is None else metrics)
            order = source.batch_size, bool(shuffle), int(metrics_every)
            program = Program(optimizer, estimator, measured, early_stopping, key, place, *order)
            if traced := is_traced():
                on_host = dict(callback=callback, progress=progress or None, checkpoints=checkpoints, sharding=sharding)
                _refuse(**on_host, **{"data that is an iterable": None if isinstance(source, Memory) else source})
    run = dict(data=source.data, rows=source.rows, params=params, resume=resume, epochs=epochs)
    host = dict(callback=callback is None, checkpoints=str(checkpoints))
    agree(**program.to_agree(), **run, **host, sharding=place.description, shards=place.shards)
    source.put(place)

    with contextlib.ExitStack() as stack, _carrying(resume):
        disk = None
        if checkpoints is not None:
            disk = stack.enter_context(CheckpointManager(checkpoints, _settings(program, source)))
            agree(checkpoints_in_a_directory_that_all_see=-1 if disk.epoch is None else disk.epoch)
        program, result = start_or_resume(program, source, params, resume, disk, keys, int(epochs))
        if traced:
            return source.advance(program, _with_room(program, result, int(epochs)), np.int32(epochs))
        bar = None
        if progress and jax.process_index() == 0:
            bar = stack.enter_context(progress_bar(int(epochs), int(result.epochs_done)))
        stack.enter_context(heard())
        return drive(program, source, Host(result, int(epochs), callback, bar, disk))


def is_traced() -> bool:
    """Whether JAX is tracing the caller (`jit`, `vmap`, `scan`, `grad`), even if no argument is a tracer."""
    try:  # imported here because it imports Pallas, which takes a third of the import time of this package
        from jax.extend.core import get_opaque_trace_state
    except ImportError:  # jax 0.9
        from jax.core import get_opaque_trace_state  # type: ignore
    with eval_context():
        untraced = get_opaque_trace_state()
    return get_opaque_trace_state() != untraced


# --- the start of a run ------------------------------------------------------------------------------


def start_or_resume(
    program: Program,
    source: Memory | Loader,
    params: Params,
    resume: FitResult | None,
    disk: CheckpointManager | None,
    keys: tuple[jax.Array, jax.Array],
    epochs: int,
) -> tuple[Program, FitResult]:
    """The program with the shapes of this run, and the initial result: new, resumed, or from a checkpoint."""
    place = program.placement
    init_key, run_key = place.put_whole("key", keys)
    program = program.replace_unchecked(key=run_key)
    begun = disk.epoch if disk else None
    if begun is None:
        begun = 0 if resume is None else resume.epochs_done
    first = source.first_batch(place, begun, epochs - 1)
    result = _start(program, params, first, init_key) if resume is None else _resumed(resume)
    if program.early_stopping is not None and result.best == ():
        result = result._replace(best=program.early_stopping.start(watched_parameters(*result.state[:2])))
    if place.sharding is not None:
        like = result.params
        if resume is not None and not place.holds(like):
            like = place.put_whole("params", copy_to_device(params))
        optimizer_state = place.put_whole("the optimizer's state", program.optimizer.init(like))
        result, place = place.put_run(result, like, optimizer_state)
        program = program.replace_unchecked(placement=place)
    elif not any(map(is_partitioned, jax.tree.leaves(result.params))):
        check_not_partitioned("the optimizer's state", result.optimizer_state)
    program = with_shapes(program, result, first)
    result = result._replace(history=rows_before(result.history, program.empty_row, program.metrics_every))
    if disk and disk.epoch is not None:
        result = disk.latest(like=result)
    if program.early_stopping is not None and not is_traced():
        result = result._replace(best=program.early_stopping.resumed(result))
    if resume is not None or disk:
        result = result._replace(outcome=outcome_now(program, result))
    _check_first_step(program, result, first, resumed=resume is not None)
    return program, result


def _start(program: Program, params: Params, first: Batch, key: jax.Array) -> FitResult:
    place = program.placement
    params = place.put_whole("params", copy_to_device(params))
    zero = jnp.asarray(np.int32(0))
    optimizer_state = place.put_whole("the optimizer's state", program.optimizer.init(params))
    states = optimizer_state, place.put_chains(program.estimator.init(params, first, key))
    return FitResult(params, *states, epochs_done=zero, outcome=zero, best=(), history={})


@contextlib.contextmanager
def _naming_fit() -> Iterator[None]:
    """Prefix errors with "fit: ", because a check of an argument does not know its caller."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.args = (f"fit: {error}",)
        raise


@contextlib.contextmanager
def _carrying(resume: FitResult | None) -> Iterator[None]:
    """Attach the result to resume to an exception before the first step, for example from the first batch."""
    try:
        yield
    except BaseException as error:
        if resume is not None:
            vars(error).setdefault("result", resume)
        raise


def _split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    try:
        init_key, run_key = _two_keys(key)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key must be one key, of jax.random.key: {error}") from None
    return init_key, run_key


@jax.jit
def _two_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, second = split(key)
    return first, second


def _resumed(resume: FitResult) -> FitResult:
    for path, x in tree_leaves_with_path(resume._replace(history=())):
        if jnp.issubdtype(x.dtype, np.number) and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
            raise ValueError(f"fit: resume{keystr(path)} has dtype {x.dtype}, which needs jax_enable_x64")
    copied = copy_to_device(resume._replace(history=()))
    return copied._replace(history=resume.history)  # not copied, because a copy compiles for every length


def _with_room(program: Program, result: FitResult, epochs: int) -> FitResult:
    """The result with empty rows for all future measurements."""
    rows = max(1, epochs // program.metrics_every) - len(result.history["epoch"])
    room = empty_rows(program.empty_row, max(0, rows))
    return result._replace(history=jax.tree.map(lambda *parts: jnp.concatenate(parts), result.history, room))


def _settings(program: Program, source: Memory | Loader) -> Settings:
    """The settings that distinguish runs, as for JSON."""
    key = f"{program.key.dtype} {jax.random.key_data(program.key)}"
    settings = dict(shuffle=program.shuffle, metrics_every=program.metrics_every, key=key)
    return settings | source.settings(program.placement)


# --- checks ------------------------------------------------------------------------------------------


def _refuse(**on_host: object) -> None:
    for name, value in on_host.items():
        if value is not None:
            raise ValueError(f"{name}: not available under jax.jit and jax.vmap, because it runs on the host")


def _check_first_step(program: Program, result: FitResult, first: Batch, resumed: bool) -> None:
    """Raise ValueError if processes compile different steps, or if a resumed state has other shapes or dtypes."""
    if jax.process_count() == 1 and not resumed:
        return
    epoch = begin_epoch_of_loader.eval_shape(program, result._replace(history=()))
    if jax.process_count() > 1:  # the text includes functions and constants of the program
        agree(estimator_or_optimizer=donating_step.lower(program, epoch, first, np.int32(0)).as_text())
    if resumed:
        after = donating_step.eval_shape(program, epoch, first, np.int32(0)).state
        for (path, x), y in zip(tree_leaves_with_path(result.state), jax.tree.leaves(after), strict=True):
            if (x.shape, x.dtype) != (y.shape, y.dtype):
                expected = f"shape {y.shape} and dtype {y.dtype}, got {x.shape} and {x.dtype}"
                raise ValueError(f"fit: resume{keystr(path)}: expected {expected}; was it made without jax_enable_x64?")


def _check_params(params: Params) -> None:
    if params is None:
        raise TypeError("params must be a pytree of arrays, got None; they may be None only with resume=")
    for path, x in tree_leaves_with_path(params):
        where = f"params{keystr(path)}"
        try:
            dtype = jnp.result_type(x)
        except TypeError:
            raise TypeError(f"{where}: expected an array of numbers, got {x!r}") from None
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            hint = "exclude it, for example with graph, params, rest = nnx.split(model, nnx.Param, ...)"
            raise TypeError(f"{where}: expected an array of numbers, got a PRNG key ({dtype}); {hint}")


def _check_kinds(key: jax.Array, shuffle: object, stopping: object, callback: object, resume: FitResult | None) -> None:
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key must be a key, jax.random.key({key if isinstance(key, int) else 0}), got {key!r}")
    if not isinstance(shuffle, bool | np.bool_):
        raise TypeError(f"shuffle must be True or False, got {type(shuffle).__name__}")
    if stopping is not None and not isinstance(stopping, EarlyStopping):
        raise TypeError(f"early_stopping must be early_stopping(metric, ...), got {stopping!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function callback(result), got {callback!r}")
    if resume is not None and not isinstance(resume, FitResult):
        raise TypeError(f"resume must be the FitResult of an earlier call, got {type(resume).__name__}")
    if resume is not None and jnp.ndim(resume.outcome):
        hint = "select one with jax.tree.map(lambda x: x[0], result), or resume under jax.vmap"
        raise ValueError(f"resume must be one run, got {resume.outcome.size} runs of a sweep; {hint}")
