"""Gradients of energy-based models: a data term (positive phase) minus a model term (negative phase).

One sign convention: a gradient is that of a loss to be lowered, the mean energy of the data minus the mean energy of
the model's samples, so low energy means likely. `energy(params, v) -> (batch,)` is a free energy or the energy of
complete states; v is a pytree of arrays with one leading batch axis. `transition(params, v, key) -> v` is a Markov
kernel that leaves the model's distribution unchanged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._data import Batch, batch_size_of
from ._pytree import Pytree, accepted, count, static
from ._trees import Params, check_same_tree

Energy = Callable[[Params, Any], jax.Array]
Transition = Callable[[Params, Any, jax.Array], Any]
EstimatorState = Any


class PhaseStatistics(NamedTuple):
    """Each phase's mean energy and its gradient with respect to the parameters."""

    data_energy: jax.Array
    model_energy: jax.Array
    data_gradient: Params
    model_gradient: Params


def _mean_energy(energy: Energy, params: Params, v: Batch, weights: Any = None) -> jax.Array:
    size = batch_size_of("v", v)
    energies = energy(params, v)
    if jnp.shape(energies) != (size,):
        raise ValueError(f"energy(params, v): expected shape ({size},), one for each state, got {jnp.shape(energies)}")
    if weights is None:
        return jnp.mean(energies)
    if jnp.shape(weights) != (size,):
        raise ValueError(f"weights: expected shape ({size},) as in v_data, got {jnp.shape(weights)}")
    weights = jnp.asarray(weights, energies.dtype)
    return jnp.sum(weights * energies) / jnp.sum(weights)


def _two_phases(
    energy: Energy, params: Params, v_data: Batch, v_model: Batch, weights: Any = None
) -> tuple[Params, PhaseStatistics]:
    phase = jax.value_and_grad(lambda p, v, w=None: _mean_energy(energy, p, v, w))
    data_energy, data_gradient = phase(params, v_data, weights)
    model_energy, model_gradient = phase(params, jax.lax.stop_gradient(v_model))
    gradient = jax.tree.map(jnp.subtract, data_gradient, model_gradient)
    return gradient, PhaseStatistics(data_energy, model_energy, data_gradient, model_gradient)


def phase_gradient(energy: Energy) -> Callable[..., Params]:
    """A function that computes the gradient from data and samples; the samples are not differentiated.

        gradient(params, v_data, v_model, weights=None) = ∂/∂params (mean energy(v_data) - mean energy(v_model))

    Args:
        energy: energy(params, v) -> (batch,). `weights` (n_data,) make the mean over the data a weighted one.
    """

    def gradient(params: Params, v_data: Batch, v_model: Batch, weights: Any = None) -> Params:
        return _two_phases(energy, params, v_data, v_model, weights)[0]

    return gradient


class Estimator(Pytree):
    """A pure pair that estimates a gradient from a batch; `init, estimate = estimator` unpacks it."""

    @abstractmethod
    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        """What is carried from batch to batch, the Markov chains say, given a first batch."""

    @abstractmethod
    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, Any]:
        """(gradient, estimator_state, statistics): statistics, a NamedTuple, are reported and not carried."""

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.estimate))


def _run_chains(transition: Transition, steps: int, params: Params, v: Batch, key: jax.Array) -> Batch:
    """v after `steps` transitions."""
    v = _as_states(transition, params, v, key)
    return jax.lax.fori_loop(0, steps, lambda i, v: transition(params, v, jax.random.fold_in(key, i)), v)


def _as_states(transition: Transition, params: Params, v: Batch, key: jax.Array) -> Batch:
    """v in the dtypes that the transition returns, as a loop needs it (data may be integers, states floats)."""
    states = jax.eval_shape(transition, params, v, key)
    check_same_tree("transition(params, v, key)", states, "v", v)
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), v, states)


class contrastive_divergence(Estimator):
    """CD-k (Hinton, 2002): the model's samples are the batch after `steps` transitions. Statistics: PhaseStatistics.

    Args:
        energy: energy(params, v) -> (batch,).
        transition: transition(params, v, key) -> v.
        steps: a whole number from 1 on.
    """

    energy: Energy = static()
    transition: Transition = static()
    steps: int = count(default=1, static=True)

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        return ()

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, PhaseStatistics]:
        samples = _run_chains(self.transition, self.steps, params, batch, key)
        gradient, statistics = _two_phases(self.energy, params, batch, samples)
        return gradient, estimator_state, statistics


class persistent_contrastive_divergence(Estimator):
    """PCD-k (Tieleman, 2008): Markov chains that persist across updates, advanced `steps` transitions each time.

    They start from the first batch: from its first `chains` states, repeated if there are fewer. The estimator's
    state is the chains. Statistics: PhaseStatistics.

    Args:
        energy: energy(params, v) -> (batch,).
        transition: transition(params, v, key) -> v.
        steps: a whole number from 1 on.
        chains: their number; None takes as many as the batch has states.
    """

    energy: Energy = static()
    transition: Transition = static()
    steps: int = count(default=1, static=True)
    chains: int | None = count(default=None, static=True)

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        size = batch_size_of("batch", batch)
        rows = jnp.arange(self.chains or size) % size
        return _as_states(self.transition, params, jax.tree.map(lambda v: jnp.asarray(v)[rows], batch), key)

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, PhaseStatistics]:
        chains = _run_chains(self.transition, self.steps, params, estimator_state, key)
        gradient, statistics = _two_phases(self.energy, params, batch, chains)
        return gradient, chains, statistics


class LossStatistics(NamedTuple):
    """loss: its value on the batch (a scalar)."""

    loss: jax.Array


class loss_gradient(Estimator):
    """The gradient of an ordinary loss: no model term. Statistics: LossStatistics.

    Args:
        loss: loss(params, batch) -> scalar, or loss(params, batch, key=key).
    """

    loss: Callable[..., jax.Array] = static()

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        return ()

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, LossStatistics]:
        loss, gradient = jax.value_and_grad(self.value)(params, batch, key)
        return gradient, estimator_state, LossStatistics(loss)

    def value(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The loss, which the line searches of optax take at other parameters too."""
        return self.loss(params, batch, **accepted(self.loss, {"key": key}, positional=2))
