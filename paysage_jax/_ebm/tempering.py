"""Persistent chains that exchange states with hotter chains, for models with several modes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._core.batches import Weighted
from .._core.pytree import converted
from .._core.threefry import unrolled
from .._core.trees import is_inexact
from .._core.types import Batch, Params, Statistics, Tree
from .estimators import EstimatorState, hints_for, persistent_contrastive_divergence, states_of
from .model import Energy
from .phases import energies_of, rows, two_phases


class TemperedStatistics(NamedTuple):
    """Statistics of both phases and of the exchanges.

    data_energy to energy_penalty: as in `PhaseStatistics`. swap_rates: the mean acceptance probability of each pair of
    neighbouring temperatures, (temperatures - 1,). lowest_swap_rate: the smallest of them.
    """

    data_energy: jax.Array
    model_energy: jax.Array
    data_gradient: Params
    model_gradient: Params
    energy_penalty: jax.Array | None
    swap_rates: jax.Array
    lowest_swap_rate: jax.Array


def _as_betas(where: str, betas: Iterable[float]) -> tuple[float, ...]:
    betas = tuple(map(float, betas))
    if len(betas) < 2 or betas[0] < 0 or betas[-1] != 1 or not np.all(np.diff(betas) > 0):
        raise ValueError(f"{where} must increase from a nonnegative number to 1, got {betas}")
    return betas


class parallel_tempering(persistent_contrastive_divergence):
    """PCD with parallel tempering (Desjardins et al., 2010; Swendsen & Wang, 1986). Statistics: `TemperedStatistics`.

    Each chain is a ladder of states v₁ ... vₙ. State vᵢ samples the model with the parameters βᵢ θ at the inverse
    temperature βᵢ. (If the energy is linear in θ, the density is exp(-βᵢ E).) After each transition, every second pair
    of neighbours i, j exchanges its states with the Metropolis probability

        min(1, exp(Eᵢ(vᵢ) + Eⱼ(vⱼ) - Eᵢ(vⱼ) - Eⱼ(vᵢ))),  Eᵢ(v) = energy(βᵢ θ, v)

    The samples of the model are the states at β = 1. If a pair has a low swap rate (for example, below 0.1), add a
    temperature between the two. The state of the estimator has leaves of shape (chains, temperatures, ...). Integer
    parameters are the same at all temperatures.

    Args:
        model, num_chains, steps, chains, energy_penalty: as in `persistent_contrastive_divergence`.
        betas: inverse temperatures, increasing nonnegative numbers, of which the last is 1.

    Raises:
        TypeError, ValueError: for an argument that does not fit; the message names it.

    >>> from paysage_jax import rbm
    >>> v, key = jnp.eye(4), jax.random.key(0)
    >>> machine = rbm.RBM()
    >>> params = machine.init(v, 2, key)
    >>> estimator = parallel_tempering(machine, num_chains=10, betas=(0.0, 0.5, 1.0))
    >>> estimator.init(params, v, key).shape
    (10, 3, 4)
    """

    betas: Sequence[float] = converted(_as_betas, default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0))

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        chains = super().init(params, batch, key)
        return jax.tree.map(lambda x: jnp.repeat(x[:, None], len(self.betas), axis=1), chains)

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, Statistics]:
        data = states_of(self, params, batch, key)
        rows("estimator_state", estimator_state)
        betas = jnp.stack([jnp.asarray(beta, float) for beta in self.betas])
        scaled = jax.vmap(lambda beta, p: beta.astype(p.dtype) * p if is_inexact(p) else p, in_axes=(0, None))
        tempered = jax.tree.map(partial(scaled, betas), params)
        transition = jax.vmap(self.model.transition, in_axes=(0, 1, 0), out_axes=1)

        def step(i: ArrayLike, carry: Tree) -> Tree:
            ladders, rates = carry
            move_key, swap_key = jax.random.split(jax.random.fold_in(unrolled(key), i))
            ladders = transition(tempered, ladders, jax.random.split(move_key, len(self.betas)))
            ladders, rate = _swap(self.model.energy, tempered, ladders, swap_key)
            return ladders, rates + rate / self.steps

        no_rates = jnp.zeros(len(self.betas) - 1)
        with hints_for(self.model, data.v):
            ladders, rates = jax.lax.fori_loop(0, self.steps, step, (estimator_state, no_rates))
            samples = Weighted(jax.tree.map(lambda x: x[:, -1], ladders), None)
            gradient, statistics = two_phases(self.model.energy, params, data, samples, self.energy_penalty)
        return gradient, ladders, TemperedStatistics(*statistics, rates, jnp.min(rates))


def _swap(energy: Energy, tempered: Params, ladders: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
    """The ladders after exchanges, and the exchange probability of each pair, averaged over the ladders."""
    energies = jax.vmap(lambda params, v: energies_of(energy, params, "v", v), in_axes=(0, 1), out_axes=1)
    hotter, colder = slice(None, -1), slice(1, None)

    def cross(of_params: slice, of_states: slice) -> jax.Array:
        """Eᵢ(vⱼ) for each pair."""
        params = jax.tree.map(lambda p: p[of_params], tempered)
        return energies(params, jax.tree.map(lambda x: x[:, of_states], ladders))

    own = energies(tempered, ladders)
    log_ratio = own[:, hotter] + own[:, colder] - cross(hotter, colder) - cross(colder, hotter)
    turn_key, accept_key = jax.random.split(key)
    pairs = jnp.arange(log_ratio.shape[1])
    turn = pairs % 2 == jax.random.randint(turn_key, (), 0, 2)  # neighbouring pairs share a state
    exponential = jax.random.exponential(accept_key, log_ratio.shape, log_ratio.dtype)
    accepted = (turn[None] & (-exponential < log_ratio)).astype(int)
    source = jnp.arange(own.shape[1])[None] + jnp.pad(accepted, ((0, 0), (0, 1))) - jnp.pad(accepted, ((0, 0), (1, 0)))
    ladders = jax.vmap(lambda ladder, chosen: jax.tree.map(lambda x: x[chosen], ladder))(ladders, source)
    return ladders, jnp.mean(jnp.exp(jnp.minimum(log_ratio, 0)), axis=0).astype(float)
