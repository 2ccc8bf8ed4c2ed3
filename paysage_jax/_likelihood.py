"""The likelihood that a run knows: log Z by annealing along the way that the parameters take, and the metric of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from ._annealing import effective_size, log_mean, moved, resample
from ._base import LAST, State, Transformation, apply_updates, check_state, find_states, next_step
from ._data import Batch, as_arrays
from ._estimators import Transition, as_states, run_chains
from ._phases import Energy, energies_of, rows
from ._pytree import Count, Number, Pytree, count, function, number
from ._trees import Params, Updates, as_scalar, check_params

_RESAMPLING = 2**32 - 1  # folded into a key; transitions are numbered from 0


class LogPartitionState(NamedTuple):
    """chains and their log_weights since the last resampling, log_z then; step: updates, resamplings: both int32."""

    chains: Batch
    log_weights: jax.Array
    log_z: jax.Array
    step: jax.Array
    resamplings: jax.Array


class TrackedEstimate(NamedTuple):
    """log_z: in nats. effective_size: of the chains, from 1 to their number. resamplings: since the start (int32)."""

    log_z: jax.Array
    effective_size: jax.Array
    resamplings: jax.Array


class track_log_partition(Transformation):
    """Last in a chain: follows log Z of the model while it is trained, by annealing along the run itself.

        w += E_p(v) - E_q(v),   q = p + u;   v ~ `sweeps` transitions of q
        log Z = log Z at the last resampling + log mean exp(w)

    The updates u pass unchanged. The chains v are not those of the estimator, which the gradient depends on. When
    their effective size falls below the share `resample_below`, they are drawn anew by their weights, and the mean
    weight goes into log Z. Read it by `log_partition(state)`; `log_likelihood` is the metric for `fit`.

    Args:
        energy: energy(params, v) -> (rows,), hidden units summed out.
        transition: transition(params, v, key) -> v.
        log_z: log Z of the parameters that the run starts from.
        chains: samples of that model, as `annealed_importance_sampling` returns them with log Z.
        key: a PRNG key.
        sweeps: transitions at each update, a whole number from 1 on.
        resample_below: a share of the number of chains, in [0, 1].

    Raises:
        TypeError, ValueError: for energies or states that do not fit, when traced.
    """

    _stage = LAST
    energy: Energy = function()
    transition: Transition = function()
    log_z: Number = number("(-inf, inf)")
    chains: Batch
    key: jax.Array
    sweeps: Count = count(default=1)
    resample_below: Number = number("[0, 1]", default=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.key, jax.Array | np.ndarray):
            raise TypeError(f"track_log_partition: key must be a key, jax.random.key(0), got {self.key!r}")
        vars(self)["chains"] = as_arrays("chains", self.chains)
        rows("chains", self.chains)

    def init(self, params: Params) -> State:
        # Copies: a step gives the memory of the state away.
        chains = as_states(self.transition, params, jax.tree.map(jnp.array, self.chains), self.key)
        none = jnp.zeros((), jnp.int32)
        weights = jnp.zeros(rows("chains", chains))
        return LogPartitionState(chains, weights, as_scalar("log_z", self.log_z), none, jnp.array(none))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(self, state, LogPartitionState)
        check_params("track_log_partition", updates, params)
        new, key = apply_updates(params, updates), jax.random.fold_in(self.key, state.step)
        moves = moved(self.energy, params, new, state.chains, state.log_weights.dtype)
        state = state._replace(log_weights=state.log_weights + moves, step=next_step(state.step))
        least = jnp.asarray(self.resample_below, float) * len(state.log_weights)
        poor = effective_size(state.log_weights) < least
        state = jax.lax.cond(poor, lambda: _resampled(state, key), lambda: state)
        return updates, state._replace(chains=run_chains(self.transition, self.sweeps, new, state.chains, key))


def _resampled(state: LogPartitionState, key: jax.Array) -> LogPartitionState:
    return state._replace(
        chains=resample(state.chains, state.log_weights, jax.random.fold_in(key, _RESAMPLING)),
        log_weights=jnp.zeros_like(state.log_weights),
        log_z=state.log_z + log_mean(state.log_weights),
        resamplings=next_step(state.resamplings),
    )


def log_partition(state: State) -> TrackedEstimate:
    """log Z as `track_log_partition` has it anywhere in `state`, and what its chains are worth.

    Raises:
        ValueError: unless there is exactly one.
    """
    found = find_states(state, LogPartitionState)
    if len(found) != 1:
        raise ValueError(f"log_partition: expected one track_log_partition in the state, found {len(found)}")
    (state,) = found
    log_z = state.log_z + log_mean(state.log_weights)
    return TrackedEstimate(log_z, effective_size(state.log_weights), state.resamplings)


class log_likelihood(Pytree):
    """A metric for `fit`: the mean of log p(v) over rows, in nats, by the log Z that the run tracks.

        mean of -E(v) - max(log Z, log Σ exp(-E(v)) over the distinct rows)

    The second term is a guard: the probabilities of distinct states add up to at most 1, whatever the chains say. Rows
    of the same energy count once, as they may be the same. There is no guard for rows that are not of whole numbers,
    for a density may be larger than 1. `guard(params)` is the bound; log Z below it means that the chains are lost.

    Args:
        energy: energy(params, v) -> (rows,), hidden units summed out.
        v: a pytree of arrays (rows, ...).

    Raises:
        ValueError: if no `track_log_partition` is in the optimizer.
    """

    energy: Energy = function()
    v: Batch

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["v"] = as_arrays("v", self.v)

    def __call__(self, params: Params, key: jax.Array, state: State) -> jax.Array:
        log_z = jnp.maximum(log_partition(state).log_z, self.guard(params))
        return -jnp.mean(energies_of(self.energy, params, "v", self.v)) - log_z

    def guard(self, params: Params) -> jax.Array:
        """A number that log Z cannot be below; -inf where there is none."""
        energies = jnp.sort(energies_of(self.energy, params, "v", self.v))
        # Equal rows may differ in the last digits, by where they stand in a matrix product.
        rounding = 16 * jnp.finfo(energies.dtype).eps * jnp.max(jnp.abs(energies))
        distinct = jnp.diff(energies, prepend=-jnp.inf) > rounding
        whole = jnp.all(jnp.stack([jnp.all(x == jnp.round(x)) for x in jax.tree.leaves(self.v)]))
        return jnp.where(whole, logsumexp(-energies, where=distinct), -jnp.inf)
