"""Ready metrics of energy-based models."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from .._core.batches import Weighted, as_floats
from .._core.pytree import Pytree, converted
from .._core.trees import check_same_tree, floating_dtype, moment_dtype
from .._core.types import Batch, Leaf, Params
from .domain import check_binary, mean_over_rows, measured
from .model import EnergyModel, HasParams, as_model
from .phases import energies_of

# --- ready metrics -----------------------------------------------------------------------------------


def _check_binary_vectors(name: str, v: Batch) -> None:
    shapes = [x.shape for x in jax.tree.leaves(v)]
    if not jax.tree_util.all_leaves([v]) or len(shapes[0]) != 2:
        raise ValueError(f"{name}: expected one array of binary states (rows, n), got arrays of shapes {shapes}")
    check_binary(name, v)


class pseudo_log_likelihood(Pytree):
    """Stochastic estimate of the pseudo-log-likelihood of binary states (Hyvärinen, 2006), in nats per row.

        n log σ(F(ṽ) - F(v)), averaged over the rows; ṽ is v with one of its n units, drawn for each row, flipped

    Its mean over the draws is the mean of Σᵢ log p(vᵢ | the other units).

    Args:
        model: a model of zeros and ones.
        v: (rows, n), zeros and ones, or `Weighted`; then the mean is weighted.

    Raises:
        TypeError, ValueError: for states that are not binary, naming row and column.
    """

    model: EnergyModel = converted(as_model)
    v: Batch = converted(partial(measured, check=_check_binary_vectors))

    def __call__(self, state: HasParams, key: jax.Array) -> jax.Array:
        params = state.params
        v = as_floats(self.v.v, floating_dtype(params))
        rows, units = v.shape
        drawn = jax.random.randint(key, (rows,), 0, units)
        flipped = jnp.where(jnp.arange(units)[None] == drawn[:, None], 1 - v, v)
        gain = energies_of(self.model.energy, params, "v", flipped) - energies_of(self.model.energy, params, "v", v)
        log_odds = gain.astype(moment_dtype(gain.dtype))
        return units * mean_over_rows(jax.nn.log_sigmoid(log_odds), self.v.weights)


class reconstruction_error(Pytree):
    """Mean squared difference between states and what one transition makes of them.

        mean of (v - model.transition(params, v, key))² over rows and units

    Args:
        model: a `Model`, or `rbm.RBM()`.
        v: a pytree of finite arrays (rows, ...), or `Weighted`; then the mean over rows is weighted.

    Raises:
        TypeError, ValueError: for NaN and infinities, naming row and column, and weights that do not fit.
    """

    model: EnergyModel = converted(as_model)
    v: Batch = converted(measured)

    def __call__(self, state: HasParams, key: jax.Array) -> jax.Array:
        params = state.params
        v = _states(self.model, params, self.v)

        def squares(x: jax.Array, y: jax.Array) -> jax.Array:
            x, y = (as_floats(z, float) for z in (x, y))
            x, y = (z.astype(moment_dtype(z.dtype)) for z in (x, y))
            return jnp.sum(jnp.square(x - y).reshape(len(x), -1), axis=1)

        moved = self.model.transition(params, v, key)
        check_same_tree("transition(params, v, key)", moved, "v", v)
        of_rows: Leaf = sum(jax.tree.leaves(jax.tree.map(squares, v, moved)))
        return mean_over_rows(of_rows, self.v.weights) / sum(x[0].size for x in jax.tree.leaves(v))


class free_energy_gap(Pytree):
    """Mean free energy of validation data minus that of training data: it grows when a model overfits (Hinton, 2010).

    Args:
        model: a `Model`, or `rbm.RBM()`.
        train, validation: pytrees of finite arrays (rows, ...), or `Weighted`; then the mean is weighted.

    Raises:
        TypeError, ValueError: for NaN and infinities, naming row and column, and weights that do not fit.
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
