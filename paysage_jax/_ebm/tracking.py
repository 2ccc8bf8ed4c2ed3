"""Track log Z and the likelihood during training, by annealing along the path of the parameters."""

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
from .._core.threefry import unrolled
from .._core.trees import as_scalar, floating_dtype, moment_dtype
from .._core.types import Batch, Params, State, Tree, Updates
from .._optim.averaging import watched_parameters
from .._optim.transformation import LAST, Transformation, apply_updates, find_states, next_step
from .annealing import (
    AnnealedEstimate,
    anneal,
    effective_sample_size,
    finite_states,
    linear_path,
    log_mean,
    resample,
    variance_of_log_mean,
)
from .domain import mean_over_rows, measured
from .estimators import as_chains, as_states
from .model import EnergyModel, HasParams, as_model
from .phases import energies_of, hints, rows

_CHAINS = "These states are estimate.chains."
_RESAMPLING = 2**32 - 1  # folded into a key; transitions are numbered from 0


class LogPartitionState(NamedTuple):
    """State of `track_log_partition`.

    chains, log_weights: the chains and their log weights since the last resampling. log_z, variance: log Z and its
    variance at the last resampling. params: the parameters whose log Z is tracked. start: the initial parameters, if
    the run reanneals. step: the number of updates so far. resamplings: their number since the start or the last
    reannealing (both int32).
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
    """Result of `tracked_log_partition`.

    Above an error of about 0.5, a few chains dominate the weights, and log_z tends to be too small. If the chains have
    lost a mode, no field shows it.

    log_z, error: log Z and its standard error since the start or the last reannealing, in nats, if the chains mix.
    effective_sample_size: from 1 to the number of chains.
    resamplings: their number since the start or the last reannealing (int32).
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
    """The fields of an estimate that a run starts from."""
    if not (hasattr(estimate, "log_z") and hasattr(estimate, "chains")):
        raise TypeError(f"{where} must be an AnnealedEstimate(log_z, chains), got {type(estimate).__name__}")
    log_z = as_number(f"{where}.log_z", estimate.log_z, "(-inf, inf)")
    return AnnealedEstimate(log_z, as_chains(f"{where}.chains", estimate.chains))


class track_log_partition(Transformation):
    """Track log Z of the model during training, by annealing along the path of the parameters. Chain it last.

        w += E_p(v) - E_q(v),   v ~ the transition of q,   p: the previous parameters, q = params + updates
        log Z = log Z at the last resampling + log mean exp(w)

    The updates pass unchanged. The chains v are separate from the chains of the estimator, on which the gradient
    depends. When their effective sample size falls below the fraction `resample_below`, the chains are resampled by
    their weights, and the log of the mean weight is added to log Z. Errors accumulate, and mostly make log Z too small.
    `error` does not reveal modes that the chains have lost. If parameters change fast or the model has many modes,
    reanneal from time to time: the chains then restart from `estimate` and are annealed along the straight line from
    the initial to the current parameters.

    After `average_parameters` in the same chain, the log Z of the average is tracked. `tracked_log_partition(state)`
    reads the result, and `tracked_log_likelihood` is a metric for `fit`. Chain it outside `freeze` and `partition`,
    which hide parameters from their members, and outside `shard_state`, because its chains are replicated on every
    device.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        estimate: log Z and samples for the initial parameters, from `annealed_importance_sampling`, or
            AnnealedEstimate(log_z, chains) if both are known.
        key: a PRNG key.
        steps_per_update: the number of annealing steps from p to q, each with one transition; a positive integer.
        every: the number of updates from p to q, a positive integer. Larger values are cheaper and less accurate.
        resample_below: a fraction of the number of chains, in [0, 1].
        reanneal_every: the number of updates between reannealings, a positive integer; None for never. Choose a
            multiple of the updates per epoch, so that metrics are computed directly after a reannealing.
        reanneal_steps: the number of annealing steps of a reannealing, a positive integer.

    Raises:
        TypeError, ValueError: at trace time, for energies or states that do not fit.
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
        # Copies, because a step donates the state.
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
        # A selection instead of a branch: under vmap, all branches would run at every update.
        due = self._due(state.step, self.every)
        steps = jnp.where(due, jnp.asarray(self.steps_per_update), 0)
        if self.reanneal_every is not None:
            again = self._due(state.step, self.reanneal_every)
            state = _choose(again, self._at_start(state.start, state.start, state.step), state)
            due, steps = due | again, jnp.where(again, jnp.asarray(self.reanneal_steps), steps)
        key = jax.random.fold_in(unrolled(self.key), state.step)
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


def _resampled(state: LogPartitionState, key: jax.Array) -> LogPartitionState:
    return state._replace(
        chains=resample(state.chains, state.log_weights, jax.random.fold_in(key, _RESAMPLING)),
        log_weights=jnp.zeros_like(state.log_weights),
        log_z=state.log_z + log_mean(state.log_weights),
        variance=state.variance + variance_of_log_mean(state.log_weights),
        resamplings=next_step(state.resamplings),
    )


def tracked_log_partition(state: State) -> TrackedEstimate:
    """Return the log Z tracked by `track_log_partition`, with its error.

    Args:
        state: the state of an optimizer, or an object that contains one, for example a `FitResult` or `TrainState`.

    Raises:
        ValueError: unless the state contains exactly one `track_log_partition`, of one run.
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
        raise ValueError(
            "tracked_log_partition: expected the state of one run, got many; use jax.vmap(tracked_log_partition)"
        )
    return found[0]


def _estimate(state: LogPartitionState) -> TrackedEstimate:
    log_z = state.log_z + log_mean(state.log_weights)
    error = jnp.sqrt(state.variance + variance_of_log_mean(state.log_weights))
    return TrackedEstimate(log_z, error, effective_sample_size(state.log_weights), state.resamplings)


class tracked_log_likelihood(Pytree):
    """A metric for `fit`: the mean of log p(v) over rows, in nats, with the tracked log Z.

        mean of -E(v) - max(log Z, guard),   guard = max(log Σ exp(-E(v)) over the distinct rows, at_least)

    The probabilities of distinct states sum to at most 1, which bounds log Z from below even if the chains have lost
    modes. Rows of equal energy count once, because they may be equal. This bound does not hold for densities, so it is
    not used if the rows contain numbers that are not integers. If the model has a mode that neither the data nor the
    chains visit, only annealing along a different path can find it; pass such an estimate as `at_least`.
    `guard(params, key)` returns the bound. If the tracked log Z is below it by more than the noise of `at_least`, the
    chains have lost modes.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        v: a pytree of finite arrays (rows, ...), or `Weighted` for a weighted mean.
        at_least: a function (params, key) -> lower bound on log Z; None for no bound. For example, an estimate by
            forward annealing along another path, minus 3: such an estimate exceeds log Z + t with probability at most
            exp(-t).
        discrete: whether exp(-E) / Z is a probability; False if it is a density, for example for Gaussian units.

    Raises:
        TypeError, ValueError: for NaN and infinity, for weights that do not fit, and, when called, if the optimizer has
            no `track_log_partition`.
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
        """A lower bound on log Z; -inf if there is none.

        Args:
            params: the parameters.
            key: a PRNG key, for `at_least`.
        """
        bound = self._sum_over_rows(params) if self.discrete else jnp.array(-jnp.inf)
        if self.at_least is None:
            return bound
        at_least = as_scalar("tracked_log_likelihood: at_least(params, key)", self.at_least(params, key))
        return jnp.maximum(bound, at_least)

    def _sum_over_rows(self, params: Params) -> jax.Array:
        """log Σ exp(-E) over the distinct rows."""
        energies = jnp.sort(self._energies(params))
        # The energies of equal rows may differ by rounding, depending on their place in a matrix product.
        rounding = 16 * jnp.finfo(energies.dtype).eps * jnp.max(jnp.abs(energies))
        distinct = jnp.diff(energies, prepend=-jnp.inf) > rounding
        whole = jnp.all(jnp.stack([jnp.all(x == jnp.round(x)) for x in jax.tree.leaves(as_floats(self.v.v, float))]))
        energies = energies.astype(moment_dtype(energies.dtype))
        return jnp.where(whole, logsumexp(-energies, where=distinct), -jnp.inf)
