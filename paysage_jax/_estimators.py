"""Gradients of energy-based models: the difference of a data phase and a model phase.

One sign convention: a gradient is that of a loss to be lowered, the mean energy of the data minus the mean
energy of the model's samples, so low energy means likely. `energy(params, v) -> (batch,)` is a free energy or
the energy of complete states; v is a pytree of arrays with one leading batch axis.
`transition(params, v, key) -> v` is a Markov kernel that leaves the model's distribution unchanged.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

from ._base import Params, check_same_tree
from ._pytree import accepted, check_count, pytree_dataclass, static

Energy = Callable[[Params, Any], jax.Array]
Transition = Callable[[Params, Any, jax.Array], Any]
Batch = Any  # a pytree of arrays with one leading batch axis
EstimatorState = Any


class PhaseStatistics(NamedTuple):
    """The two phases apart: mean energies (scalars), and their gradients by the parameters."""

    data_energy: jax.Array
    model_energy: jax.Array
    data_gradient: Params
    model_gradient: Params


def batch_size_of(name: str, batch: Batch) -> int:
    """The size of the leading axis. Raises ValueError where leaves have none or disagree."""
    leaves = tree_flatten_with_path(batch)[0]
    sizes = {jnp.shape(leaf)[:1] for _, leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        shapes = ", ".join(f"{name}{keystr(path)} {jnp.shape(leaf)}" for path, leaf in leaves)
        raise ValueError(f"{name}: expected leaves with one common leading batch axis, got {shapes or 'no leaves'}")
    return sizes.pop()[0]


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


def _two_phases(energy: Energy, params: Params, v_data: Batch, v_model: Batch, weights: Any = None):
    phase = jax.value_and_grad(lambda p, v, w=None: _mean_energy(energy, p, v, w))
    data_energy, data_gradient = phase(params, v_data, weights)
    model_energy, model_gradient = phase(params, jax.lax.stop_gradient(v_model))
    gradient = jax.tree.map(jnp.subtract, data_gradient, model_gradient)
    return gradient, PhaseStatistics(data_energy, model_energy, data_gradient, model_gradient)


def phase_gradient(energy: Energy) -> Callable[..., Params]:
    """gradient(params, v_data, v_model, weights=None) = ∂/∂params (mean energy(v_data) - mean energy(v_model)).

    Samples are not differentiated. `weights` (n_data,) makes the mean over the data a weighted one.
    """

    def gradient(params: Params, v_data: Batch, v_model: Batch, weights: Any = None) -> Params:
        return _two_phases(energy, params, v_data, v_model, weights)[0]

    return gradient


class Estimator(ABC):
    """A pure pair that estimates a gradient from a batch; `init, estimate = estimator` unpacks it.

    `init(params, batch, key) -> estimator_state`;
    `estimate(params, batch, estimator_state, key) -> (gradient, estimator_state, statistics)`.
    """

    @abstractmethod
    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState: ...

    @abstractmethod
    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, Any]: ...

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


@pytree_dataclass
class contrastive_divergence(Estimator):
    """CD-k (Hinton, 2002): the model samples are the batch after `steps` transitions. Statistics: PhaseStatistics."""

    energy: Energy = static()
    transition: Transition = static()
    steps: int = static(default=1)

    def __post_init__(self):
        check_count("contrastive_divergence", "steps", self.steps)

    def init(self, params, batch, key):
        return ()

    def estimate(self, params, batch, estimator_state, key):
        samples = _run_chains(self.transition, self.steps, params, batch, key)
        gradient, statistics = _two_phases(self.energy, params, batch, samples)
        return gradient, estimator_state, statistics


@pytree_dataclass
class persistent_contrastive_divergence(Estimator):
    """PCD-k (Tieleman, 2008): chains that go on from update to update, `steps` transitions each.

    They start from the first batch: from its first `chains` states, repeated if there are fewer; chains=None
    takes as many as the batch has. The chain state is the chains. Statistics: PhaseStatistics.
    """

    energy: Energy = static()
    transition: Transition = static()
    steps: int = static(default=1)
    chains: int | None = static(default=None)

    def __post_init__(self):
        check_count("persistent_contrastive_divergence", "steps", self.steps)
        if self.chains is not None:
            check_count("persistent_contrastive_divergence", "chains", self.chains)

    def init(self, params, batch, key):
        size = batch_size_of("batch", batch)
        rows = jnp.arange(self.chains or size) % size
        return _as_states(self.transition, params, jax.tree.map(lambda v: jnp.asarray(v)[rows], batch), key)

    def estimate(self, params, batch, estimator_state, key):
        chains = _run_chains(self.transition, self.steps, params, estimator_state, key)
        gradient, statistics = _two_phases(self.energy, params, batch, chains)
        return gradient, chains, statistics


class LossStatistics(NamedTuple):
    """loss: its value on the batch (a scalar)."""

    loss: jax.Array


@pytree_dataclass
class loss_gradient(Estimator):
    """The gradient of `loss(params, batch) -> scalar`, or of `loss(params, batch, key=key)`: no model phase."""

    loss: Callable[..., jax.Array] = static()

    def init(self, params, batch, key):
        return ()

    def estimate(self, params, batch, estimator_state, key):
        loss, gradient = jax.value_and_grad(self.loss)(params, batch, **accepted(self.loss, {"key": key}, positional=2))
        return gradient, estimator_state, LossStatistics(loss)
