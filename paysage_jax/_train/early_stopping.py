"""Stop a run when a metric has not improved for a while."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core.pytree import Count, Number, Pytree, count, number, static
from .._core.trees import as_scalar
from .._core.types import Params, Row, Tree
from .._optim.averaging import watched_parameters


class Best(NamedTuple):
    """The best measurement so far.

    params: the parameters. epoch: the number of epochs done at that time; 0 before the first measurement (int32).
    value: the value of the metric. waited: the number of measurements since then (int32).
    """

    params: Params
    epoch: jax.Array
    value: jax.Array
    waited: jax.Array


class early_stopping(Pytree):
    """Stop a run when a metric stops improving, and keep the best parameters as `result.best`.

    NaN never counts as an improvement.

    Args:
        metric: the name of a scalar in the history.
        patience: the number of measurements without improvement after which the run stops, a positive integer.
        min_delta: a nonnegative number; only a change by more than this counts as an improvement.
        maximize: whether larger values are better, as for a likelihood; otherwise smaller values are, as for a loss.
    """

    metric: str = static()
    patience: Count = count(default=10)
    min_delta: Number = number(default=0.0)
    maximize: bool = static(default=False)

    def start(self, params: Params) -> Best:
        """The state before the first measurement."""
        zero = jnp.zeros((), jnp.int32)
        return Best(jax.tree.map(jnp.array, params), zero, jnp.zeros((), float), zero)

    def update(self, best: Best, params: Params, values: Row) -> Best:
        """The state after one more measurement."""
        value = values[self.metric]
        if not isinstance(value, jax.Array) or jnp.iscomplexobj(value):
            raise TypeError(f"early_stopping: {self.metric}: expected a real scalar, got {value}")
        value = as_scalar(f"early_stopping: {self.metric}", value)
        gain = value - best.value if self.maximize else best.value - value
        improved = ((best.epoch == 0) & ~jnp.isnan(value)) | (gain > jnp.asarray(self.min_delta, gain.dtype))
        new = Best(params, values["epoch"], value, jnp.zeros((), jnp.int32))
        return jax.tree.map(lambda n, o: jnp.where(improved, n, o), new, best._replace(waited=best.waited + 1))

    def resumed(self, run: Tree) -> Best:
        """The best measurement of a resumed run, a `FitResult`. It is reset if the run tracked another metric.

        The last measurement is compared again if it belongs to the current parameters, because `maximize` may have
        changed.
        """
        best: Best = run.best
        epochs, values = (np.asarray(run.history[name]) for name in ("epoch", self.metric))
        value, then = np.asarray(best.value), values[epochs == np.asarray(best.epoch)].astype(best.value.dtype)
        if not len(then):
            return best
        gain = (values[-1] - value) if self.maximize else (value - values[-1])
        if then[0] != value:
            epoch, value = 0, 0.0
        elif epochs[-1] == int(run.epochs_done) and gain > np.asarray(self.min_delta, value.dtype):
            epoch, value = epochs[-1], values[-1]
        else:
            return best
        numbers = jax.tree.map(jnp.full_like, (best.epoch, best.value, best.waited), (epoch, value, 0))
        return Best(jax.tree.map(jnp.copy, watched_parameters(run.params, run.optimizer_state)), *numbers)

    def should_stop(self, best: Best) -> jax.Array:
        """Whether the patience is exhausted; a bool scalar."""
        return best.waited >= jnp.asarray(self.patience, jnp.int32)
