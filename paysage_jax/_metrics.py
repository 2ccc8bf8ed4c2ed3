"""What is measured during a run: ready metrics of energy-based models, rows of a history, early stopping.

A metric is `metric(params, key)`, a scalar, an array or a pytree of arrays; it may also take `state=`, the
`TrainState`, and `data=`, the data in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr

from ._data import Batch, Weighted, as_floats
from ._domain import check_binary, mean_over_rows, measured
from ._pytree import Count, Number, Pytree, accepted, as_pytree, count, number, static
from ._trees import Params, as_scalar, floating_dtype, moment_dtype

Metric = Callable[..., Any]

# --- ready metrics -----------------------------------------------------------------------------------


class pseudo_log_likelihood(Pytree):
    """Stochastic estimate of the pseudo-log-likelihood of binary states (Hyvärinen, 2006), in nats per row.

        n log σ(F(ṽ) - F(v)), averaged over the rows; ṽ is v with one of its n units, drawn for each row, flipped

    Its mean over the draws is the mean of Σᵢ log p(vᵢ | the other units).

    Args:
        energy: energy(params, v) -> (rows,), of states of zeros and ones, hidden units summed out.
        v: (rows, n), zeros and ones, or `Weighted`; then the mean is weighted.

    Raises:
        TypeError, ValueError: for states that are not binary, naming row and column.
    """

    energy: Callable[..., jax.Array] = static()
    v: Batch

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "pseudo_log_likelihood: v"
        vars(self)["v"] = measured(name, self.v, check_binary)
        if not isinstance(v := self.v.v, jax.Array) or v.ndim != 2:
            shapes = [x.shape for x in jax.tree.leaves(v)]
            raise ValueError(f"{name}: expected one array of binary states (rows, n), got arrays of shapes {shapes}")

    def __call__(self, params: Params, key: jax.Array) -> jax.Array:
        v = as_floats(self.v.v, floating_dtype(params))
        rows, units = v.shape
        drawn = jax.random.randint(key, (rows,), 0, units)
        flipped = jnp.where(jnp.arange(units)[None] == drawn[:, None], 1 - v, v)
        gain = self.energy(params, flipped) - self.energy(params, v)
        log_odds = gain.astype(moment_dtype(gain.dtype))
        return units * mean_over_rows(jax.nn.log_sigmoid(log_odds), self.v.weights)


class reconstruction_error(Pytree):
    """Mean squared difference between states and what one transition makes of them.

        mean of (v - transition(params, v, key))² over rows and units

    Args:
        transition: transition(params, v, key) -> v.
        v: a pytree of finite arrays (rows, ...), or `Weighted`; then the mean over rows is weighted.
        integer_states: whether states are counts or categories; otherwise integers and bools become floats.

    Raises:
        TypeError, ValueError: for NaN and infinities, naming row and column, and weights that do not fit.
    """

    transition: Callable[..., Batch] = static()
    v: Batch
    integer_states: bool = static(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["v"] = measured("reconstruction_error: v", self.v)

    def __call__(self, params: Params, key: jax.Array) -> jax.Array:
        v = _states(self, params, self.v)

        def squares(x: jax.Array, y: jax.Array) -> jax.Array:
            x, y = (as_floats(z, float) for z in (x, y))
            x, y = (z.astype(moment_dtype(z.dtype)) for z in (x, y))
            return jnp.sum(jnp.square(x - y).reshape(len(x), -1), axis=1)

        of_rows: Any = sum(jax.tree.leaves(jax.tree.map(squares, v, self.transition(params, v, key))))
        return mean_over_rows(of_rows, self.v.weights) / sum(x[0].size for x in jax.tree.leaves(v))


class free_energy_gap(Pytree):
    """Mean free energy of validation data minus that of training data: it grows when a model overfits (Hinton, 2010).

    Args:
        energy: energy(params, v) -> (rows,), hidden units summed out.
        train, validation: pytrees of finite arrays (rows, ...), or `Weighted`; then the mean is weighted.
        integer_states: whether states are counts or categories; otherwise integers and bools become floats.

    Raises:
        TypeError, ValueError: for NaN and infinities, naming row and column, and weights that do not fit.
    """

    energy: Callable[..., jax.Array] = static()
    train: Batch
    validation: Batch
    integer_states: bool = static(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "validation"):
            vars(self)[name] = measured(f"free_energy_gap: {name}", getattr(self, name))

    def __call__(self, params: Params, key: jax.Array) -> jax.Array:
        def mean(data: Weighted) -> jax.Array:
            return mean_over_rows(self.energy(params, _states(self, params, data)), data.weights)

        return mean(self.validation) - mean(self.train)


def _states(metric: Any, params: Params, data: Weighted) -> Batch:
    return as_floats(data.v, None if metric.integer_states else floating_dtype(params))


# --- early stopping ----------------------------------------------------------------------------------


class Best(NamedTuple):
    """The best measurement so far: params, the epochs done then (0: none yet), its value; and measurements since."""

    params: Params
    epoch: jax.Array
    value: jax.Array
    waited: jax.Array


class early_stopping(Pytree):
    """Stop a run when a metric has not improved for a while, and keep the best parameters (`result.best`).

    NaN never is an improvement.

    Args:
        metric: the name of a scalar in the history.
        patience: measurements without improvement after which the run stops, a whole number from 1 on.
        min_improvement: what counts as improvement is more than this, a number from 0 on.
        maximize: whether larger is better, as for a likelihood; otherwise smaller is, as for a loss.
    """

    metric: str = static()
    patience: Count = count(default=10)
    min_improvement: Number = number(default=0.0)
    maximize: bool = static(default=False)

    def start(self, params: Params) -> Best:
        """Nothing measured yet."""
        zero = jnp.zeros((), jnp.int32)
        return Best(jax.tree.map(jnp.array, params), zero, jnp.zeros((), float), zero)

    def update(self, best: Best, params: Params, values: dict[str, Any]) -> Best:
        """After one more measurement."""
        value = values[self.metric]
        if not isinstance(value, jax.Array) or jnp.iscomplexobj(value):
            raise TypeError(f"early_stopping: {self.metric}: expected a real scalar, got {value}")
        value = as_scalar(f"early_stopping: {self.metric}", value)
        gain = value - best.value if self.maximize else best.value - value
        improved = ((best.epoch == 0) & ~jnp.isnan(value)) | (gain > jnp.asarray(self.min_improvement, gain.dtype))
        new = Best(params, values["epoch"], value, jnp.zeros((), jnp.int32))
        return jax.tree.map(lambda n, o: jnp.where(improved, n, o), new, best._replace(waited=best.waited + 1))

    def resumed(self, run: Any) -> Best:
        """The best measurement of a run that goes on, a `FitResult`: none yet if it was of another metric.

        The last measurement, if it is that of the parameters, is compared again, for `maximize` may have changed.
        """
        best: Best = run.best
        epochs, values = (np.asarray(run.history[name]) for name in ("epoch", self.metric))
        value, then = np.asarray(best.value), values[epochs == np.asarray(best.epoch)].astype(best.value.dtype)
        if not len(then):
            return best
        gain = (values[-1] - value) if self.maximize else (value - values[-1])
        if then[0] != value:
            epoch, value = 0, 0.0
        elif epochs[-1] == int(run.epochs_done) and gain > np.asarray(self.min_improvement, value.dtype):
            epoch, value = epochs[-1], values[-1]
        else:
            return best
        numbers = jax.tree.map(jnp.full_like, (best.epoch, best.value, best.waited), (epoch, value, 0))
        return Best(jax.tree.map(jnp.copy, run.params), *numbers)

    def gave_up(self, best: Best) -> jax.Array:
        """Whether patience is at its end; a bool scalar."""
        return best.waited >= jnp.asarray(self.patience, jnp.int32)


# --- one measurement ---------------------------------------------------------------------------------


def scalars_of(statistics: Any) -> dict[str, jax.Array]:
    """The floating scalars among the statistics of an estimator (a NamedTuple or a dict), in at least float32."""
    named = statistics._asdict() if hasattr(statistics, "_asdict") else statistics
    items = named.items() if isinstance(named, dict) else ()
    scalars = {name: x for name, x in items if isinstance(x, jax.Array) and x.shape == ()}
    floating = {name: x for name, x in scalars.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {name: x.astype(moment_dtype(x.dtype)) for name, x in floating.items()}


def learning_rate_of(optimizer_state: Any) -> dict[str, jax.Array]:
    """The learning rate last applied under its name; an array where the state holds several, nothing where none."""

    def has_rate(state: Any) -> bool:
        return "learning_rate" in getattr(state, "_fields", ())

    def is_one(rate: Any) -> bool:
        return isinstance(rate, jax.Array) and rate.shape == () and jnp.issubdtype(rate.dtype, jnp.floating)

    states = jax.tree.leaves(optimizer_state, is_leaf=has_rate)
    rates = [state.learning_rate for state in states if has_rate(state) and is_one(state.learning_rate)]
    return {"learning_rate": rates[0] if len(rates) == 1 else jnp.stack(rates)} if rates else {}


def measure(
    metrics: dict[str, Metric], state: Any, key: jax.Array, epochs_done: jax.Array, statistics: Any, data: Any
) -> dict[str, Any]:
    """One row of the history. A metric goes before a statistic of the same name."""
    extra = {"state": state} | ({} if data is None else {"data": data})
    values = learning_rate_of(state.optimizer_state) | statistics | {"epoch": epochs_done}
    for name, metric in metrics.items():
        value = metric(state.params, key, **accepted(metric, extra, positional=2))
        try:
            # None is an empty tree, but no measurement.
            values[name] = jnp.asarray(value) if value is None else jax.tree.map(jnp.asarray, value)
        except (TypeError, ValueError):
            raise TypeError(f"fit: metrics[{name!r}] must return arrays of numbers, got {value!r}") from None
    return values


def check_metrics(metrics: Any, extra: tuple[str, ...]) -> dict[str, Metric]:
    """The metrics as callable pytrees, which may take the arguments `extra` too.

    Raises:
        TypeError, ValueError: naming the metric.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"fit: metrics must be a dict of name -> metric(params, key), got {type(metrics).__name__}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not callable(metric):
            raise TypeError(f"fit: metrics[{name!r}] must be a function metric(params, key), got {metric!r}")
        try:
            inspect.signature(metric).bind(None, None, **accepted(metric, dict.fromkeys(extra), positional=2))
        except (TypeError, ValueError) as error:
            raise TypeError(f"fit: metrics[{name!r}] must be a function metric(params, key): {error}") from None
    if "epoch" in metrics:
        raise ValueError("fit: no metric may be called epoch: the history has the epoch itself under that name")
    return {name: as_pytree(metric) for name, metric in metrics.items()}


# --- the history -------------------------------------------------------------------------------------


def empty_rows(shapes: Any, rows: int) -> Any:
    """Rows without a measurement: epoch -1, NaN in floating and complex arrays, and the largest or False in others."""

    def empty(path: Any, shape: Any) -> np.ndarray:
        if keystr(path) == "['epoch']":
            value: Any = -1
        elif jnp.issubdtype(shape.dtype, jnp.inexact):
            value = 0 if jax.config.jax_debug_nans else np.nan  # type: ignore[attr-defined]
        else:
            value = False if shape.dtype == bool else jnp.iinfo(shape.dtype).max
        return np.full((rows, *shape.shape), value, shape.dtype)

    return jax.tree_util.tree_map_with_path(empty, shapes)


def rows_before(history: Any, shapes: Any, every: int) -> Any:
    """The rows of an earlier history that were reached; none without one. Metrics that are new have no values in them.

    Raises ValueError where they do not fit.
    """
    if not history:
        return jax.tree.map(lambda x: np.empty((0, *x.shape), x.dtype), shapes)
    for name in history.keys() & shapes.keys():
        old = [(x.shape[1:], x.dtype) for x in jax.tree.leaves(history[name])]
        new = [(x.shape, x.dtype) for x in jax.tree.leaves(shapes[name])]
        if old != new or jax.tree.structure(history[name]) != jax.tree.structure(shapes[name]):
            raise ValueError(f"fit: metric {name} of resume has (shape, dtype) {old}, now it has {new}")
    history = empty_rows(shapes, len(history["epoch"])) | {name: history[name] for name in history if name in shapes}
    if isinstance(history["epoch"], Tracer):
        return history
    reached = np.asarray(history["epoch"]) >= 0
    history = jax.tree.map(lambda x: np.asarray(x)[reached], history)
    if len(history["epoch"]) and history["epoch"][0] != every:
        raise ValueError(f"fit: expected metrics_every={history['epoch'][0]}, as in resume, got {every}")
    return history


def latest(history: Any) -> dict[str, str]:
    """The scalars measured last, as text."""
    scalars = {name: x for name, x in history.items() if name != "epoch" and getattr(x, "ndim", 0) == 1 and len(x)}
    return {name: f"{float(x[-1]):.4g}" for name, x in scalars.items() if x.dtype.kind in "biuf"}


class History:
    """Rows on the host: NumPy arrays that grow, with room for more."""

    def __init__(self, rows: Any) -> None:
        self._rows = jax.tree.map(np.array, rows)
        self._count = len(rows["epoch"])

    def extend(self, rows: Any, count: int) -> None:
        """Add the first `count` rows."""
        end = self._count + count

        def add(old: np.ndarray, new: Any) -> np.ndarray:
            if end > len(old):  # what was given out stays as it is
                old = np.concatenate([old, np.empty((max(end, 64), *old.shape[1:]), old.dtype)])
            old[self._count : end] = np.asarray(new)[:count]
            return old

        self._rows = jax.tree.map(add, self._rows, rows)
        self._count = end

    def arrays(self) -> Any:
        """The rows so far, read-only."""

        def view(x: np.ndarray) -> np.ndarray:
            x = x[: self._count]
            x.flags.writeable = False
            return x

        return jax.tree.map(view, self._rows)
