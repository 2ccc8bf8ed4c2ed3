"""Metrics of energy-based models, for `fit`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .._core.batches import Weighted, as_floats
from .._core.pytree import Pytree, converted
from .._core.trees import check_same_tree, floating_dtype, moment_dtype
from .._core.types import Batch, Leaf, Params
from .domain import check_binary, check_each, mean_over_rows, measured
from .model import EnergyModel, HasParams, as_model
from .phases import energies_of


class pseudo_log_likelihood(Pytree):
    """Stochastic estimate of the pseudo-log-likelihood of discrete states (Hyvärinen, 2006), in nats per row.

        n log p(vᵢ | the other units), averaged over the rows; i, one of the n units, is drawn for each row

        p(vᵢ | the other units) = exp(-F(v)) / Σ exp(-F(v with vᵢ = x)) over the values x of a unit

    The expected value over i is the mean of Σᵢ log p(vᵢ | the other units).

    Args:
        model: an `rbm.RBM` whose visible units take finitely many values, or any model of binary states.
        v: states (rows, n), or `Weighted` for a weighted mean.

    Raises:
        TypeError, ValueError: for a value that the units do not take; it names row and column.
    """

    model: EnergyModel = converted(as_model)
    v: Batch = converted(measured)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._values is None:
            raise ValueError(f"pseudo_log_likelihood: model: expected discrete visible units, got {self.model!r}")
        _check_values("pseudo_log_likelihood: v", self.v.v, self._values)

    @property
    def _values(self) -> Sequence[float] | None:
        """The values of a visible unit; None for real numbers."""
        visible = getattr(self.model, "visible", None)
        return (0.0, 1.0) if visible is None else visible.values

    def __call__(self, state: HasParams, key: jax.Array) -> jax.Array:
        params = state.params
        v = _states(self.model, params, self.v)
        rows, units = v.shape
        drawn = jax.random.randint(key, (rows,), 0, units)
        chosen = jnp.arange(units)[None] == drawn[:, None]
        values = jnp.asarray(self._values, v.dtype)

        def energies(value: jax.Array) -> jax.Array:
            return energies_of(self.model.energy, params, "v", jnp.where(chosen, value, v))

        minus_energies = -jax.lax.map(energies, values).T
        log_p = jax.nn.log_softmax(minus_energies.astype(moment_dtype(minus_energies.dtype)), axis=1)
        taken = jnp.sum(jnp.where(chosen, v, 0), axis=1)[:, None] == values[None]
        return units * mean_over_rows(jnp.sum(log_p, axis=1, where=taken), self.v.weights)


def _check_values(name: str, v: Batch, values: Sequence[float]) -> None:
    binary = tuple(values) == (0, 1)
    shapes = [x.shape for x in jax.tree.leaves(v)]
    if not jax.tree_util.all_leaves([v]) or len(shapes[0]) != 2:
        kind = "binary states" if binary else f"states {list(values)}"
        raise ValueError(f"{name}: expected one array of {kind} (rows, n), got arrays of shapes {shapes}")
    if binary:
        check_binary(name, v)
    else:
        check_each(name, v, lambda x: np.isin(x, values), f"values {list(values)}", lambda x: "a unit takes only these")


class reconstruction_error(Pytree):
    """Mean squared difference between states and the states after one transition.

        mean of (v - model.transition(params, v, key))² over rows and units

    Of `rbm.Categorical` units it is the share of the units that are in another state than before.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        v: a pytree of finite arrays (rows, ...), or `Weighted` for a weighted mean.

    Raises:
        TypeError, ValueError: for NaN and infinity, naming row and column, and for weights that do not fit.
    """

    model: EnergyModel = converted(as_model)
    v: Batch = converted(measured)

    def __call__(self, state: HasParams, key: jax.Array) -> jax.Array:
        params = state.params
        v = _states(self.model, params, self.v)
        # Labels have no differences. A `Model` does not say whether its integers are labels or counts.
        categories = getattr(getattr(self.model, "visible", None), "integer_states", False)

        def differences(x: jax.Array, y: jax.Array) -> jax.Array:
            """The squares (rows, numbers) or, of categories, whether they differ (rows, units)."""
            if categories:
                return jnp.any((x != y).reshape(*x.shape[:2], -1), axis=2).astype(float)
            x, y = (as_floats(z, float) for z in (x, y))
            x, y = (z.astype(moment_dtype(z.dtype)) for z in (x, y))
            return jnp.square(x - y).reshape(len(x), -1)

        moved = self.model.transition(params, v, key)
        check_same_tree("transition(params, v, key)", moved, "v", v)
        found = jax.tree.leaves(jax.tree.map(differences, v, moved))
        of_rows: Leaf = sum(jnp.sum(x, axis=1) for x in found)
        return mean_over_rows(of_rows, self.v.weights) / sum(x.shape[1] for x in found)


class free_energy_gap(Pytree):
    """Difference of the mean free energies of validation and training data, which grows under overfitting.

        mean F(validation) - mean F(train)   (Hinton, 2010)

    Args:
        model: a `Model`, or `rbm.RBM()`.
        train, validation: pytrees of finite arrays (rows, ...), or `Weighted` for weighted means.

    Raises:
        TypeError, ValueError: for NaN and infinity, naming row and column, and for weights that do not fit.
    """

    model: EnergyModel = converted(as_model)
    train: Batch = converted(measured)
    validation: Batch = converted(measured)

    def __call__(self, state: HasParams, key: jax.Array) -> jax.Array:
        params = state.params

        def mean(data: Weighted) -> jax.Array:
            energies = energies_of(self.model.energy, params, "v", _states(self.model, params, data))
            return mean_over_rows(energies, data.weights)

        return mean(self.validation) - mean(self.train)


def _states(model: EnergyModel, params: Params, data: Weighted) -> Batch:
    return as_floats(data.v, None if model.integer_states else floating_dtype(params))
