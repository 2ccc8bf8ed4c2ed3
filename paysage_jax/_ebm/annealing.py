"""The partition function Z by annealing.

p(v) = exp(-E(v)) / Z. `energy(params, v) -> (rows,)` has the hidden units summed out; `transition(params, v, key) -> v`
is a Markov kernel that leaves p as it is. Chains v carry log weights w; when the parameters move from p to q,

    w += E_p(v) - E_q(v),   v ~ the transition of q

and the mean of exp(w) is an unbiased estimate of Z_q / Z_p, of however many moves (Neal, 2001).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from .._core.batches import Weighted, as_arrays, as_floats, check_finite
from .._core.devices import take_rows, whole
from .._core.pytree import Pytree, as_pytree, check_count
from .._core.trees import as_scalar, check_same_tree, floating_dtype, moment_dtype
from .._core.types import Batch, Params, Tree
from .estimators import as_states, run_chains
from .model import EnergyModel, as_model
from .phases import energies_of, hints, rows

Path = Callable[[jax.Array], Params]


# --- chains with weights -----------------------------------------------------------------------------


def log_mean(log_weights: jax.Array) -> jax.Array:
    return logsumexp(log_weights, axis=0) - np.log(len(log_weights)).astype(log_weights.dtype)


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """(Σ weights)² / Σ weights²: so many chains of equal weight would be as good."""
    return jnp.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))


def resample(v: Batch, log_weights: jax.Array, key: jax.Array) -> Batch:
    """Systematic resampling: chain i is taken as often as its share of the weights says, rounded up or down."""
    n = len(log_weights)
    upper = jnp.cumsum(whole(jax.nn.softmax(log_weights)))
    points = (jnp.arange(n, dtype=upper.dtype) + jax.random.uniform(key, (), upper.dtype)) / n
    chosen = jnp.minimum(jnp.searchsorted(upper, points, side="right"), n - 1)
    return jax.tree.map(lambda x: take_rows(x, chosen), v)


# --- along a path ------------------------------------------------------------------------------------


class linear_path(Pytree):
    """The straight line between two parameter trees, a path for annealing.

        path(β) = (1 - β) start + β end

    Args:
        start, end: parameters of the same shapes.
    """

    start: Params
    end: Params

    def __post_init__(self) -> None:
        check_same_tree("end", self.end, "start", self.start)

    def __call__(self, beta: jax.Array) -> Params:
        def between(a: jax.Array, b: jax.Array) -> jax.Array:
            dtype = jnp.result_type(b)
            a, b = (jnp.asarray(x, moment_dtype(jnp.result_type(x))) for x in (a, b))
            share = jnp.asarray(beta, b.dtype)
            return ((1 - share) * a + share * b).astype(dtype)

        return jax.tree.map(between, self.start, self.end)


class _backwards(Pytree):
    """The same path from its end."""

    path: Path

    def __call__(self, beta: jax.Array) -> Params:
        return self.path(1 - beta)


def anneal(
    model: EnergyModel, path: Path, v: Batch, key: jax.Array, steps: ArrayLike, name: str = "chains"
) -> tuple[Batch, jax.Array]:
    """The states at the end of the path, and what has come to the log weight of each chain. `name`: of v, in errors."""
    v = as_states(model.transition, path(jnp.zeros(())), v, key, f"These states are {name}.")

    def step(k: jax.Array, carry: Tree) -> Tree:
        old, v, log_weights = carry
        new = path((k + 1).astype(float) / jnp.asarray(steps, float))
        moved = energies_of(model.energy, old, "chains", v) - energies_of(model.energy, new, "chains", v)
        return new, model.transition(new, v, jax.random.fold_in(key, k)), log_weights + moved.astype(log_weights.dtype)

    start = path(jnp.zeros(())), v, jnp.zeros(rows("chains", v))
    return jax.lax.fori_loop(0, steps, step, start)[1:]


_jitted_anneal = jax.jit(anneal, static_argnames="name")
_jitted_chains = jax.jit(run_chains, static_argnums=1)


class Annealing(NamedTuple):
    """A path for annealing to `path(1)`, with states and log Z of the model where it starts.

    path: path(beta) -> params, beta from 0 to 1. If it is a pytree, such as `linear_path(start, end)` or
    `jax.tree_util.Partial(function, params)`, other parameters do not recompile.
    start: samples of the model path(0), one for each chain.
    log_z_start: log Z of the model path(0).
    """

    path: Path
    start: Batch
    log_z_start: ArrayLike


class AnnealedEstimate(NamedTuple):
    """log Z of a model and samples of it, by annealing. Where both are known exactly, the rest may be left out.

    log_z, error: scalars in nats; the error is too small while few chains carry most of the weight.
    chains: states where the annealing ended (in reverse: at the start of the path), drawn by their weights: samples of
    that model, as good as `effective_sample_size` says.
    effective_sample_size: (Σ weights)² / Σ weights², from 1 to the number of chains.
    bound: a scalar in nats: log_z with the mean of w for log mean exp(w); on average below log Z, in reverse above it.
    """

    log_z: ArrayLike
    chains: Batch
    error: ArrayLike = 0.0
    effective_sample_size: ArrayLike = np.nan
    bound: ArrayLike = np.nan


def annealed_importance_sampling(
    model: EnergyModel, annealing: Annealing, key: jax.Array, steps: int = 1000
) -> AnnealedEstimate:
    """log Z at the end of a path, by annealed importance sampling (AIS; Neal, 2001; Salakhutdinov & Murray, 2008).

        log Z(1) = log Z(0) + log mean exp(w),   w = Σₖ E(βₖ₋₁, v) - E(βₖ, v),   βₖ = k / steps

    The mean of the weights is unbiased; its logarithm tends to be too small. A small effective sample size may warn of
    it, but need not. `reverse_annealed_importance_sampling` tends to be too large; if its samples are the model's, log
    Z is between the two up to their errors.

    With many steps they are off by noise more than by bias, and log Z may be on one side of both. It is between the
    field `bound` of the two (bidirectional Monte Carlo; Grosse, Ghahramani & Adams, 2015): the mean of w is off by
    about half its variance σ², against a noise of σ / √chains. That holds for bounds at least 36 / chains nats apart;
    closer ones are noise, too, and the estimates with their errors say all there is.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        annealing: the path, and states and log Z at its start, one state for each chain.
        key: a PRNG key.
        steps: the number of temperatures, a positive integer.

    Raises:
        TypeError, ValueError: for energies or states that do not fit, or steps below 1.
    """
    check_count("annealed_importance_sampling: steps", steps)
    model = as_model("annealed_importance_sampling: model", model)
    return _estimate("annealing.start", model, annealing.path, annealing.start, annealing.log_z_start, key, steps)


def finite_states(name: str, v: Batch, params: Params, integer_states: bool) -> Batch:
    """States as arrays; integers and bools as floats of the dtype of the parameters, unless they are to stay."""
    v = as_arrays(name, v, np.asarray)
    rows(name, v)
    check_finite(name, v)
    return as_arrays(name, as_floats(v, None if integer_states else floating_dtype(params)))


def _estimate(
    name: str, model: EnergyModel, path: Path, v: Batch, log_z_start: ArrayLike, key: jax.Array, steps: int
) -> AnnealedEstimate:
    v = finite_states(name, v, jax.eval_shape(path, jnp.zeros(())), model.integer_states)
    log_z_start = as_scalar("log_z_start", log_z_start)
    anneal_key, draw_key = jax.random.split(key)
    with hints(v, model.integer_states):
        v, log_weights = _jitted_anneal(model, as_pytree(path), v, anneal_key, steps, name=name)
    log_ratio = log_mean(log_weights)
    error = jnp.std(jnp.exp(log_weights - log_ratio), ddof=1) / np.sqrt(len(log_weights)).astype(log_weights.dtype)
    return AnnealedEstimate(
        log_z=log_z_start + log_ratio,
        chains=resample(v, log_weights, draw_key),
        error=error,
        effective_sample_size=effective_sample_size(log_weights),
        bound=log_z_start + jnp.mean(log_weights),
    )


def reverse_annealed_importance_sampling(
    model: EnergyModel, annealing: Annealing, samples: Batch, key: jax.Array, steps: int = 1000
) -> AnnealedEstimate:
    """log Z at the end of a path, from samples of the model there that are annealed back to its start.

        log Z(1) = log Z(0) - log mean exp(w)

    It tends to be too large. If the samples miss parts of the model, estimate and bound may both be too small, like all
    that is learned from them (Burda, Grosse & Salakhutdinov, 2015, on annealing in reverse).

    Args:
        model, annealing, key, steps: as in `annealed_importance_sampling`; the states at the start are not used.
        samples: independent samples of the model at the end of the path, one for each chain, for example persistent
            chains after many more transitions.

    Raises:
        TypeError, ValueError: for energies or states that do not fit, or steps below 1.
    """
    check_count("reverse_annealed_importance_sampling: steps", steps)
    model = as_model("reverse_annealed_importance_sampling: model", model)
    log_z_start = as_scalar("log_z_start", annealing.log_z_start)
    estimate = _estimate("samples", model, _backwards(as_pytree(annealing.path)), samples, 0.0, key, steps)
    return estimate._replace(log_z=log_z_start - estimate.log_z, bound=log_z_start - estimate.bound)


def reverse_ais_log_prob(
    model: EnergyModel, annealing: Annealing, v: Batch, key: jax.Array, steps: int = 1000, num_chains: int = 1
) -> jax.Array:
    """An estimate of log p(v) for each row of v, cautious for samples of the model; (rows,).

        log p(v) ≈ -E(1, v) - log Z(0) + log mean exp(w)

    w are the weights of chains that start at v, make a transition at the end of the path, and are annealed back. The
    expected value is at most log p′(v), where p′ is the distribution that annealing forward from path(0) draws from; p′
    comes to p as the steps grow. Averaged over samples of the model this is below log p. Over data it may be above,
    where they are more likely under p′. (RAISE; Burda, Grosse & Salakhutdinov, 2015.)

    Args:
        model: a `Model` whose transition is reversible (detailed balance holds), as that of `rbm.RBM()` is.
        annealing, key, steps: as in `annealed_importance_sampling`; the states at the start are not used.
        v: the data, states of the model; the weights of `Weighted` data change no row.
        num_chains: chains for each row. With more the estimate rises on average; all are annealed at once.

    Raises:
        TypeError, ValueError: for energies or states that do not fit, or steps or num_chains below 1.
    """
    check_count("reverse_ais_log_prob: steps", steps)
    check_count("reverse_ais_log_prob: num_chains", num_chains)
    model, path = as_model("reverse_ais_log_prob: model", model), as_pytree(annealing.path)
    log_z_start = as_scalar("log_z_start", annealing.log_z_start)
    first_key, key = jax.random.split(key)
    params = path(jnp.ones(()))
    v = finite_states("v", v.v if isinstance(v, Weighted) else v, params, model.integer_states)
    size = rows("v", v)
    with hints(v, model.integer_states):
        v = as_states(model.transition, params, v, first_key, "These states are v.")
    repeated = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), num_chains, axis=0), v)
    start = _jitted_chains(as_pytree(model.transition), 1, params, repeated, first_key)
    _, log_weights = _jitted_anneal(model, _backwards(path), start, key, steps)
    log_mean_weight = log_mean(log_weights.reshape(size, num_chains).T)
    return -energies_of(model.energy, params, "v", v) - log_z_start + log_mean_weight
