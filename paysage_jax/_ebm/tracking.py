"""The likelihood that a run knows: log Z by annealing along the way that the parameters take, and the metric of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from .._core.batches import as_floats
from .._core.pytree import Count, Number, Pytree, as_number, converted, count, function, number, static
from .._core.trees import as_scalar, floating_dtype, moment_dtype
from .._core.types import Batch, Params, State, Tree, Updates
from .._optim.averaging import watched_parameters
from .._optim.transformation import LAST, Transformation, apply_updates, find_states, next_step
from .annealing import AnnealedEstimate, anneal, effective_sample_size, finite_states, linear_path, log_mean, resample
from .domain import mean_over_rows, measured
from .estimators import as_chains, as_states
from .model import EnergyModel, HasParams, as_model
from .phases import energies_of, hints, rows

_CHAINS = "These states are estimate.chains."
_RESAMPLING = 2**32 - 1  # folded into a key; transitions are numbered from 0


class LogPartitionState(NamedTuple):
    """What `track_log_partition` carries.

    chains, log_weights: their weights are those since the last resampling. log_z, variance: log Z then, its variance.
    params: the parameters whose log Z it is. start: those at the start, if the run reanneals.
    step: updates so far; resamplings: since the start or the last reannealing (both int32).
    """

    chains: Batch
    log_weights: jax.Array
    log_z: jax.Array
    variance: jax.Array
    params: Params
    start: Params
    step: jax.Array
    resamplings: jax.Array


class TrackedEstimate(NamedTuple):
    """What `tracked_log_partition` says of a run.

    From an error of about 0.5 on few chains have carried the weight, and log_z may be off by far more. If the chains
    have lost a mode, nothing here shows it.

    log_z, error: in nats, with the standard error since the start or the last reannealing, if the chains mix.
    effective_sample_size: of the chains, from 1 to their number.
    resamplings: since the start or the last reannealing (int32).
    """

    log_z: jax.Array
    error: jax.Array
    effective_sample_size: jax.Array
    resamplings: jax.Array


def _as_key(where: str, key: object) -> jax.Array | np.ndarray:
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"{where} must be a key, jax.random.key(0), got {key!r}")
    return key


def _as_start(where: str, estimate: AnnealedEstimate) -> AnnealedEstimate:
    """Of an estimate what a run starts from."""
    if not (hasattr(estimate, "log_z") and hasattr(estimate, "chains")):
        raise TypeError(f"{where} must be an AnnealedEstimate(log_z, chains), got {type(estimate).__name__}")
    log_z = as_number(f"{where}.log_z", estimate.log_z, "(-inf, inf)")
    return AnnealedEstimate(log_z, as_chains(f"{where}.chains", estimate.chains))


class track_log_partition(Transformation):
    """Last in a chain: follows log Z of the model while it is trained, by annealing along the run itself.

        w += E_p(v) - E_q(v),   v ~ the transition of q,   p: the parameters of the last time, q = params + updates
        log Z = log Z at the last resampling + log mean exp(w)

    The updates pass unchanged. The chains v are not those of the estimator, on which the gradient depends. When their
    effective sample size falls below the share `resample_below`, they are drawn anew by their weights, and the mean
    weight goes into log Z. Errors add up, mostly to too small a log Z, and `error` does not see modes that the chains
    have lost: where a run is fast or its model has many modes, anneal anew from time to time. Then the chains start
    again from those of `estimate`, and come to the present along the straight line from the first parameters.

    After an `average_parameters` in the same chain it follows the average. Read it by `tracked_log_partition(state)`;
    `tracked_log_likelihood` is the metric for `fit`, of the parameters whose log Z is tracked. Chain it outside
    `freeze` and `partition`, which hide parameters from their members, and outside `shard_state`: its chains lie whole
    on every device.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        estimate: log Z of the parameters that the run starts from and samples of that model, as
            `annealed_importance_sampling` returns them; AnnealedEstimate(log_z, chains) where both are known.
        key: a PRNG key.
        steps_per_update: annealing steps from p to q, each with a transition, a positive integer.
        every: updates from p to q, a positive integer. More are cheaper and follow less closely.
        resample_below: a share of the number of chains, in [0, 1].
        reanneal_every: updates, a positive integer; the updates of an epoch, or a multiple, so that what is
            measured then is fresh. None: never.
        reanneal_steps: annealing steps from the first parameters to the present, a positive integer.

    Raises:
        TypeError, ValueError: for energies or states that do not fit, when traced.
    """

    _stage = LAST
    state_type = LogPartitionState
    needs_params = True
    model: EnergyModel = converted(as_model)
    estimate: AnnealedEstimate = converted(_as_start)
    key: jax.Array = converted(_as_key)
    steps_per_update: Count = count(default=1)
    every: Count = count(default=1)
    resample_below: Number = number("[0, 1]", default=0.5)
    reanneal_every: Count | None = count(default=None)
    reanneal_steps: Count = count(default=1000)

    def init(self, params: Params) -> State:
        # Copies: a step gives the memory of the state away.
        start = None if self.reanneal_every is None else jax.tree.map(jnp.array, params)
        return self._at_start(jax.tree.map(jnp.array, params), start, jnp.zeros((), jnp.int32))

    def _at_start(self, params: Params, start: Params, step: jax.Array) -> LogPartitionState:
        chains = finite_states("estimate.chains", self.estimate.chains, params, self.model.integer_states)
        chains = jax.tree.map(jnp.array, chains)
        with hints(chains, self.model.integer_states):
            chains = as_states(self.model.transition, params, chains, self.key, _CHAINS)
        weights, log_z = jnp.zeros(rows("chains", chains)), as_scalar("estimate.log_z", self.estimate.log_z)
        return LogPartitionState(chains, weights, log_z, jnp.zeros(()), params, start, step, jnp.zeros((), jnp.int32))

    def apply(
        self, updates: Updates, state: State, params: Params | None, *, earlier: State = (), **extra: object
    ) -> tuple[Updates, State]:
        new = watched_parameters(apply_updates(params, updates), earlier)
        new = jax.tree.map(lambda p, like: p.astype(like.dtype), new, state.params)
        state = state._replace(step=next_step(state.step))
        # Chosen, and not a branch: under vmap all branches would run at every update.
        due = self._due(state.step, self.every)
        steps = jnp.where(due, jnp.asarray(self.steps_per_update), 0)
        if self.reanneal_every is not None:
            again = self._due(state.step, self.reanneal_every)
            state = _choose(again, self._at_start(state.start, state.start, state.step), state)
            due, steps = due | again, jnp.where(again, jnp.asarray(self.reanneal_steps), steps)
        key = jax.random.fold_in(self.key, state.step)
        path = linear_path(state.params, new)
        chains, moved = anneal(self.model, path, state.chains, key, steps)
        state = state._replace(chains=chains, log_weights=state.log_weights + moved)
        state = state._replace(params=_choose(due, new, state.params))
        poor = effective_sample_size(state.log_weights) < self.resample_below * jnp.asarray(len(moved), float)
        return updates, jax.lax.cond(poor, lambda: _resampled(state, key), lambda: state)

    @staticmethod
    def _due(step: jax.Array, every: ArrayLike) -> jax.Array:
        return step % jnp.asarray(every, jnp.int32) == 0


def _choose(first: jax.Array, a: Tree, b: Tree) -> Tree:
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def _log_ratio(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the mean weight, and its variance."""
    return log_mean(log_weights), 1 / effective_sample_size(log_weights) - 1 / len(log_weights)


def _resampled(state: LogPartitionState, key: jax.Array) -> LogPartitionState:
    log_ratio, variance = _log_ratio(state.log_weights)
    return state._replace(
        chains=resample(state.chains, state.log_weights, jax.random.fold_in(key, _RESAMPLING)),
        log_weights=jnp.zeros_like(state.log_weights),
        log_z=state.log_z + log_ratio,
        variance=state.variance + variance,
        resamplings=next_step(state.resamplings),
    )


def tracked_log_partition(state: State) -> TrackedEstimate:
    """log Z as `track_log_partition` has it anywhere in `state`, and how far it can be trusted.

    Raises:
        ValueError: unless there is exactly one, of one run.
    """
    return _estimate(_tracked(state))


def _tracked(state: State) -> LogPartitionState:
    found = find_states(state, LogPartitionState)
    if len(found) != 1:
        raise ValueError(
            f"tracked_log_partition: expected one track_log_partition in the state, found {len(found)}; "
            "chain it last: chain(optimizer, track_log_partition(...))"
        )
    if jnp.ndim(found[0].log_weights) != 1:
        raise ValueError("tracked_log_partition: the state of many runs; use jax.vmap(tracked_log_partition)")
    return found[0]


def _estimate(state: LogPartitionState) -> TrackedEstimate:
    log_ratio, variance = _log_ratio(state.log_weights)
    error = jnp.sqrt(jnp.maximum(state.variance + variance, 0))
    return TrackedEstimate(state.log_z + log_ratio, error, effective_sample_size(state.log_weights), state.resamplings)


class tracked_log_likelihood(Pytree):
    """A metric for `fit`: the mean of log p(v) over rows, in nats, by the log Z that the run tracks.

        mean of -E(v) - max(log Z, guard),   guard = max(log Σ exp(-E(v)) over the distinct rows, at_least)

    The probabilities of distinct states add up to at most 1, whatever the chains say. Rows of the same energy count
    once, as they may be the same. A density has no such sum, for it may be larger than 1, and rows that are not of
    whole numbers are taken for one. Where the model has a mode that neither data nor chains visit, only another way
    there finds it: annealing from elsewhere as `at_least`. `guard(params, key)` is the bound; log Z below it by more
    than the noise of `at_least` means that the chains are lost.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        v: a pytree of finite arrays (rows, ...), or `Weighted`; then the mean is weighted.
        at_least: at_least(params, key) -> what log Z is not below, such as an estimate by forward annealing along
            another path, less 3: log Z + t is below such an estimate with a probability of at most exp(-t). None: no
            such bound.
        discrete: whether exp(-E) / Z is a probability; False where it is a density, as for Gaussian units.

    Raises:
        TypeError, ValueError: for NaN and infinities, for weights that do not fit, and if no `track_log_partition` is
            in the optimizer.
    """

    model: EnergyModel = converted(as_model)
    v: Batch = converted(measured)
    at_least: Callable[[Params, jax.Array], jax.Array] | None = function(default=None)
    discrete: bool = static(default=True)

    def __call__(self, state: HasParams, key: jax.Array) -> jax.Array:
        tracked = _tracked(state.optimizer_state)
        log_z = jnp.maximum(_estimate(tracked).log_z, self.guard(tracked.params, key))
        return -mean_over_rows(self._energies(tracked.params), self.v.weights) - log_z

    def _energies(self, params: Params) -> jax.Array:
        v = as_floats(self.v.v, None if self.model.integer_states else floating_dtype(params))
        return energies_of(self.model.energy, params, "v", v)

    def guard(self, params: Params, key: jax.Array) -> jax.Array:
        """A number that log Z is not below; -inf where there is none."""
        bound = self._sum_over_rows(params) if self.discrete else jnp.array(-jnp.inf)
        if self.at_least is None:
            return bound
        at_least = as_scalar("tracked_log_likelihood: at_least(params, key)", self.at_least(params, key))
        return jnp.maximum(bound, at_least)

    def _sum_over_rows(self, params: Params) -> jax.Array:
        """log Σ exp(-E) of the distinct rows."""
        energies = jnp.sort(self._energies(params))
        # Equal rows may differ in the last digits, by where they stand in a matrix product.
        rounding = 16 * jnp.finfo(energies.dtype).eps * jnp.max(jnp.abs(energies))
        distinct = jnp.diff(energies, prepend=-jnp.inf) > rounding
        whole = jnp.all(jnp.stack([jnp.all(x == jnp.round(x)) for x in jax.tree.leaves(as_floats(self.v.v, float))]))
        energies = energies.astype(moment_dtype(energies.dtype))
        return jnp.where(whole, logsumexp(-energies, where=distinct), -jnp.inf)
