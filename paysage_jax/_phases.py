"""The gradient of an energy-based model in two phases: a data term minus a model term.

One sign convention: a gradient is that of a loss to be lowered, the mean energy of the data minus the mean energy of
the model's samples, so low energy means likely. `energy(params, v) -> (batch,)` is a free energy or the energy of
complete states; v is a pytree of arrays with one leading batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._data import Batch, batch_size_of
from ._trees import Params

Energy = Callable[[Params, Any], jax.Array]


class Weighted(NamedTuple):
    """Data whose rows have weights, as the sequences of a protein family have; `fit` and loaders take it as it is.

    v: the rows. weights: (rows,) numbers from 0 on; if those of a batch are all 0, its gradient is NaN.
    """

    v: Batch
    weights: Any


class PhaseStatistics(NamedTuple):
    """Each phase's mean energy and its gradient with respect to the parameters; the penalty of energies, if any."""

    data_energy: jax.Array
    model_energy: jax.Array
    data_gradient: Params
    model_gradient: Params
    energy_penalty: jax.Array | None = None


def value_and_gradient(function: Callable[[Params], jax.Array], params: Params) -> tuple[jax.Array, Params]:
    """A real function's value, and its gradient as a `Transformation` takes it: of complex parameters ∂/∂x + i ∂/∂y.

    That of integers is 0: `freeze` keeps them out of the optimizer.
    """
    value, gradient = jax.value_and_grad(function, allow_int=True)(params)

    def as_taken(g: Any) -> jax.Array:
        return jnp.zeros(g.shape, jnp.int8) if g.dtype == jax.dtypes.float0 else jnp.conj(g)

    return value, jax.tree.map(as_taken, gradient)


def rows(name: str, v: Batch) -> int:
    """The number of states. Raises ValueError if there are none."""
    size = batch_size_of(name, v)
    if size == 0:
        raise ValueError(f"{name}: expected states, got 0 rows")
    return size


def weighted(batch: Batch) -> Weighted:
    """The batch and its weights, None if it has none.

    Raises ValueError for weights of another shape, and while their values are known for those that cannot be weights.
    """
    if not isinstance(batch, Weighted):
        return Weighted(batch, None)
    weights = batch.weights
    if weights is not None and jnp.shape(weights) != (size := rows("v", batch.v),):
        raise ValueError(f"weights: expected shape ({size},) as in v_data, got {jnp.shape(weights)}")
    if weights is not None and not isinstance(weights, Tracer):
        known = np.asarray(weights)
        if not (np.all(known >= 0) and np.any(known)):
            raise ValueError(f"weights: expected numbers from 0 on, not all 0, got {known}")
    return batch


def energies_of(energy: Energy, params: Params, name: str, v: Batch) -> jax.Array:
    """The energy of each state of v. Raises ValueError or TypeError if these are no energies."""
    size = rows(name, v)
    energies = energy(params, v)
    if jnp.shape(energies) != (size,):
        raise ValueError(f"energy(params, v): expected shape ({size},), one for each state, got {jnp.shape(energies)}")
    if not jnp.issubdtype(jnp.result_type(energies), jnp.floating):
        raise TypeError(f"energy(params, v): expected a floating dtype, got {jnp.result_type(energies)}")
    return energies


def _mean(x: jax.Array, weights: Any) -> jax.Array:
    if weights is None:
        return jnp.mean(x)
    weights = jnp.asarray(weights, x.dtype)
    return jnp.sum(weights * x) / jnp.sum(weights)


def two_phases(
    energy: Energy, params: Params, data: Weighted, model: Weighted, penalty: Any = None
) -> tuple[Params, PhaseStatistics]:
    """The gradient, with each phase's mean weighted by its weights, and what it is made of."""
    phases = {"v_data": data, "v_model": jax.lax.stop_gradient(model)}

    def mean_energy(params: Params, name: str) -> jax.Array:
        return _mean(energies_of(energy, params, name, phases[name].v), phases[name].weights)

    def squares(params: Params) -> jax.Array:
        means = [_mean(energies_of(energy, params, name, x.v) ** 2, x.weights) for name, x in phases.items()]
        return jnp.asarray(penalty, means[0].dtype) * sum(means)

    data_energy, data_gradient = value_and_gradient(lambda p: mean_energy(p, "v_data"), params)
    model_energy, model_gradient = value_and_gradient(lambda p: mean_energy(p, "v_model"), params)
    gradient = jax.tree.map(jnp.subtract, data_gradient, model_gradient)
    statistics = PhaseStatistics(data_energy, model_energy, data_gradient, model_gradient)
    if penalty is None:
        return gradient, statistics
    value, penalty_gradient = value_and_gradient(squares, params)
    return jax.tree.map(jnp.add, gradient, penalty_gradient), statistics._replace(energy_penalty=value)


def phase_gradient(energy: Energy) -> Callable[..., Params]:
    """A function that computes the gradient from data and samples; the samples are not differentiated.

        gradient(params, v_data, v_model, weights=None) = ∂/∂params (mean energy(v_data) - mean energy(v_model))

    Args:
        energy: energy(params, v) -> (batch,). `weights` (n_data,) make the mean over the data a weighted one.

    Raises:
        TypeError, ValueError: for energies of another shape or dtype, for no states, for weights below 0.
    """

    def gradient(params: Params, v_data: Batch, v_model: Batch, weights: Any = None) -> Params:
        data = Weighted(v_data, weights)
        return two_phases(energy, params, weighted(data), Weighted(v_model, None))[0]

    return gradient
