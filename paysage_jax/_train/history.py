"""The history of a run: one measurement, and the rows of all measurements."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr

from .._core.pytree import as_pytree
from .._core.trees import moment_dtype
from .._core.types import KeyPath, Leaf, Row, State, Statistics, Tree
from .._ebm.model import HasParams

Metric = Callable[[HasParams, jax.Array], Tree]


# --- one measurement ---------------------------------------------------------------------------------


def scalars_of(statistics: Statistics) -> dict[str, jax.Array]:
    """The floating scalars among the statistics of an estimator (a NamedTuple or a dict), in at least float32."""
    named = statistics._asdict() if hasattr(statistics, "_asdict") else statistics
    items = named.items() if isinstance(named, dict) else ()
    scalars = {name: x for name, x in items if isinstance(x, jax.Array) and x.shape == ()}
    floating = {name: x for name, x in scalars.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {name: x.astype(moment_dtype(x.dtype)) for name, x in floating.items()}


def learning_rate_of(optimizer_state: State) -> dict[str, jax.Array]:
    """The learning rate applied last, as a dict: an array if the state has several, an empty dict if it has none."""

    def has_rate(state: State) -> bool:
        return "learning_rate" in getattr(state, "_fields", ())

    def is_one(rate: Leaf) -> bool:
        return isinstance(rate, jax.Array) and rate.shape == () and jnp.issubdtype(rate.dtype, jnp.floating)

    states = jax.tree.leaves(optimizer_state, is_leaf=has_rate)
    rates = [state.learning_rate for state in states if has_rate(state) and is_one(state.learning_rate)]
    return {"learning_rate": rates[0] if len(rates) == 1 else jnp.stack(rates)} if rates else {}


def measure(
    metrics: dict[str, Metric], state: State, key: jax.Array, epochs_done: jax.Array, statistics: Statistics
) -> Row:
    """One row of the history. A metric overrides a statistic of the same name."""
    values = learning_rate_of(state.optimizer_state) | statistics | {"epoch": epochs_done}
    for name, metric in metrics.items():
        value = metric(state, key)
        try:
            # None would be an empty tree, but is not a measurement.
            values[name] = jnp.asarray(value) if value is None else jax.tree.map(jnp.asarray, value)
        except (TypeError, ValueError):
            raise TypeError(f"fit: metrics[{name!r}] must return arrays of numbers, got {value!r}") from None
    return values


def check_metrics(metrics: object) -> dict[str, Metric]:
    """The metrics as callable pytrees.

    Raises:
        TypeError, ValueError: for a wrong metric; the message names it.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be a dict of name -> metric(state, key), got {type(metrics).__name__}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not callable(metric):
            raise TypeError(f"metrics[{name!r}] must be a function metric(state, key), got {metric!r}")
        try:
            inspect.signature(metric).bind(None, None)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metrics[{name!r}] must be a function metric(state, key): {error}") from None
    if "epoch" in metrics:
        raise ValueError("metrics: the name 'epoch' is reserved for the epoch in the history; rename the metric")
    return {name: as_pytree(metric) for name, metric in metrics.items()}


# --- the history -------------------------------------------------------------------------------------


def empty_rows(shapes: Tree, rows: int) -> Tree:
    """Rows without a measurement: epoch -1, NaN for floating and complex arrays, the largest integer, or False."""

    def empty(path: KeyPath, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if keystr(path) == "['epoch']":
            value: object = -1
        elif jnp.issubdtype(shape.dtype, jnp.inexact):
            value = 0 if jax.config.jax_debug_nans else np.nan  # type: ignore[attr-defined]
        else:
            value = False if shape.dtype == bool else jnp.iinfo(shape.dtype).max
        return np.full((rows, *shape.shape), value, shape.dtype)

    return jax.tree_util.tree_map_with_path(empty, shapes)


def rows_before(history: Tree, shapes: Tree, every: int) -> Tree:
    """The measured rows of an earlier history, or no rows without one. New metrics have empty values in these rows.

    Raises ValueError if a metric or the interval does not fit.
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


def latest(history: Tree) -> dict[str, str]:
    """The scalars of the last measurement, as text."""
    scalars = {name: x for name, x in history.items() if name != "epoch" and getattr(x, "ndim", 0) == 1 and len(x)}
    return {name: f"{float(x[-1]):.4g}" for name, x in scalars.items() if x.dtype.kind in "biuf"}


class History:
    """Rows on the host, in NumPy arrays that grow."""

    def __init__(self, rows: Tree) -> None:
        self._rows = jax.tree.map(np.array, rows)
        self._count = len(rows["epoch"])

    def extend(self, rows: Tree, count: int) -> None:
        """Add the first `count` rows."""
        end = self._count + count

        def add(old: np.ndarray, new: Leaf) -> np.ndarray:
            if end > len(old):  # arrays that were returned earlier do not change
                old = np.concatenate([old, np.empty((max(end, 64), *old.shape[1:]), old.dtype)])
            old[self._count : end] = np.asarray(new)[:count]
            return old

        self._rows = jax.tree.map(add, self._rows, rows)
        self._count = end

    def arrays(self) -> Tree:
        """The rows so far, read-only."""

        def view(x: np.ndarray) -> np.ndarray:
            x = x[: self._count]
            x.flags.writeable = False
            return x

        return jax.tree.map(view, self._rows)
