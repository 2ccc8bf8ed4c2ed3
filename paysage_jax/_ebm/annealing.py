"""The partition function Z by annealing.

p(v) = exp(-E(v)) / Z. `energy(params, v) -> (rows,)` has the hidden units summed out; `transition(params, v, key) -> v`
is a Markov kernel that leaves p invariant. Chains v have log weights w. When the parameters change from p to q,

    w += E_p(v) - E_q(v),   v ~ the transition of q

After any number of changes, the mean of exp(w) is an unbiased estimate of Z_q / Z_p (Neal, 2001).
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
from .._core.threefry import unrolled
from .._core.trees import as_scalar, check_same_tree, floating_dtype, moment_dtype
from .._core.types import Batch, Params, Tree
from .estimators import as_states, run_chains
from .model import EnergyModel, as_model
from .phases import energies_of, hints, rows

Path = Callable[[jax.Array], Params]


# --- chains with weights -----------------------------------------------------------------------------


def log_mean(log_weights: jax.Array) -> jax.Array:
    return logsumexp(log_weights, axis=0) - np.log(len(log_weights)).astype(log_weights.dtype)


def variance_of_log_mean(log_weights: jax.Array) -> jax.Array:
    """The variance of `log_mean`; NaN for one weight, which shows no spread.

        log(1 + V / n),   V = the variance of the weights / (their mean)²

    This holds because the mean of n weights is nearly lognormal (Fenton, 1960). The V of the weights at hand is too
    small if a few of them dominate. Log weights are nearly normal, by the central limit theorem over many steps, and
    for normal ones V = exp(s²) - 1. The larger V counts. s is the spread above the median, because the weights below
    contribute little to the mean, however small they are.
    """
    n, log_weights = len(log_weights), whole(log_weights)
    above = jnp.maximum(log_weights - jnp.median(log_weights), 0)
    of_normal = 2 * jnp.mean(above**2)
    of_weights = jnp.log(n / effective_sample_size(log_weights))
    log_v = jnp.minimum(jnp.maximum(of_normal, of_weights), 80)  # log(1 + V); exp(89) would overflow
    return jnp.log1p(jnp.expm1(log_v) / n) if n > 1 else jnp.full_like(log_v, jnp.nan)


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """(Σ weights)² / Σ weights², the number of equally weighted chains that would be as accurate."""
    return jnp.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))


def resample(v: Batch, log_weights: jax.Array, key: jax.Array) -> Batch:
    """Systematic resampling: chain i is copied n wᵢ / Σ w times, rounded up or down."""
    n = len(log_weights)
    upper = jnp.cumsum(whole(jax.nn.softmax(log_weights)))
    points = (jnp.arange(n, dtype=upper.dtype) + jax.random.uniform(key, (), upper.dtype)) / n
    chosen = jnp.minimum(jnp.searchsorted(upper, points, side="right"), n - 1)
    return jax.tree.map(lambda x: take_rows(x, chosen), v)


# --- along a path ------------------------------------------------------------------------------------


class linear_path(Pytree):
    """A straight line between two parameter trees, a path for annealing.

        path(β) = (1 - β) start + β end

    Args:
        start, end: parameter trees of the same structure and shapes.

    Raises:
        ValueError: if structures or shapes differ.
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
    """A path in reverse direction."""

    path: Path

    def __call__(self, beta: jax.Array) -> Params:
        return self.path(1 - beta)


def anneal(
    model: EnergyModel, path: Path, v: Batch, key: jax.Array, steps: ArrayLike, name: str = "chains"
) -> tuple[Batch, jax.Array]:
    """The states at the end of the path, and the log weight of each chain. `name` describes v in errors."""
    v = as_states(model.transition, path(jnp.zeros(())), v, key, f"These states are {name}.")

    def step(k: jax.Array, carry: Tree) -> Tree:
        old, v, log_weights = carry
        new = path((k + 1).astype(float) / jnp.asarray(steps, float))
        moved = energies_of(model.energy, old, "chains", v) - energies_of(model.energy, new, "chains", v)
        v = model.transition(new, v, jax.random.fold_in(unrolled(key), k))
        return new, v, log_weights + moved.astype(log_weights.dtype)

    start = path(jnp.zeros(())), v, jnp.zeros(rows("chains", v))
    return jax.lax.fori_loop(0, steps, step, start)[1:]


_jitted_anneal = jax.jit(anneal, static_argnames="name")
_jitted_chains = jax.jit(run_chains, static_argnums=1)


class Annealing(NamedTuple):
    """An annealing path to `path(1)`, with states and log Z of the model at its start.

    path: a function path(beta) -> params, for beta from 0 to 1. If it is a pytree, for example `linear_path(start,
    end)` or `jax.tree_util.Partial(function, params)`, new parameters do not recompile.
    start: samples of the model with the parameters path(0), one for each chain.
    log_z_start: log Z of this model, in nats.
    """

    path: Path
    start: Batch
    log_z_start: ArrayLike


class AnnealedEstimate(NamedTuple):
    """An estimate of log Z by annealing, with samples. If both are known exactly, only `log_z` and `chains` are needed.

    log_z, error: the estimate and its standard error, in nats; NaN for one chain. If a few chains dominate the weights,
    the error is that of normal log weights with the spread above their median.
    chains: states at the end of the annealing (in reverse: at the start of the path), resampled by their weights. They
    are as good as `effective_sample_size` independent samples of that model.
    effective_sample_size: (Σ weights)² / Σ weights², from 1 to the number of chains.
    bound: `log_z` with the mean of w in place of log mean exp(w), in nats. Its expected value is at most log Z (in
    reverse: at least log Z).
    """

    log_z: ArrayLike
    chains: Batch
    error: ArrayLike = 0.0
    effective_sample_size: ArrayLike = np.nan
    bound: ArrayLike = np.nan


def annealed_importance_sampling(
    model: EnergyModel, annealing: Annealing, key: jax.Array, steps: int = 1000
) -> AnnealedEstimate:
    """Estimate log Z by annealed importance sampling (AIS; Neal, 2001; Salakhutdinov & Murray, 2008).

        log Z(1) = log Z(0) + log mean exp(w),   w = Σₖ E(βₖ₋₁, v) - E(βₖ, v),   βₖ = k / steps

    The mean of the weights is unbiased, so its logarithm tends to be too small. A small effective sample size is a sign
    of this, but it does not always show. `reverse_annealed_importance_sampling` tends to be too large. If its samples
    follow the model, log Z is between the two estimates, up to their errors.

    With many steps the noise of both estimates exceeds their bias, and log Z may be on one side of both. Their `bound`
    fields still bracket log Z (bidirectional Monte Carlo; Grosse, Ghahramani & Adams, 2015), because the mean of w has
    a bias of about half its variance σ² and a noise of only σ / √chains. This holds if the bounds are at least 36 /
    chains nats apart. Closer bounds are dominated by noise; then use the estimates with their errors.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        annealing: the path, with log Z and one state for each chain at its start.
        key: a PRNG key.
        steps: the number of temperatures, a positive integer.

    Raises:
        TypeError, ValueError: for energies or states that do not fit, or steps below 1.
    """
    check_count("annealed_importance_sampling: steps", steps)
    model = as_model("annealed_importance_sampling: model", model)
    return _estimate("annealing.start", model, annealing.path, annealing.start, annealing.log_z_start, key, steps)


def finite_states(name: str, v: Batch, params: Params, integer_states: bool) -> Batch:
    """States as arrays. Integers and bools get the float dtype of the parameters unless `integer_states` is true."""
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
    return AnnealedEstimate(
        log_z=log_z_start + log_mean(log_weights),
        chains=resample(v, log_weights, draw_key),
        error=jnp.sqrt(variance_of_log_mean(log_weights)),
        effective_sample_size=effective_sample_size(log_weights),
        bound=log_z_start + jnp.mean(log_weights),
    )


def reverse_annealed_importance_sampling(
    model: EnergyModel, annealing: Annealing, samples: Batch, key: jax.Array, steps: int = 1000
) -> AnnealedEstimate:
    """Estimate log Z by annealing samples of the model back to the start of the path.

        log Z(1) = log Z(0) - log mean exp(w)

    The estimate tends to be too large. If the samples miss modes of the model, the estimate and the bound may both be
    too small (Burda, Grosse & Salakhutdinov, 2015, on reverse annealing).

    Args:
        model, annealing, key, steps: as in `annealed_importance_sampling`; `annealing.start` is not used.
        samples: independent samples of the model with the parameters path(1), one for each chain, for example
            persistent chains after many more transitions.

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
    """Estimate log p(v) for each row of v by reverse annealing (RAISE; Burda, Grosse & Salakhutdinov, 2015); (rows,).

        log p(v) ≈ -E(1, v) - log Z(0) + log mean exp(w)

    w are the weights of chains that start at v, make one transition at the end of the path, and are annealed back. The
    expected value is at most log p′(v), where p′ is the distribution of the end states of forward annealing. p′
    approaches p as the number of steps grows. Averaged over samples of the model, the estimate is below log p. Averaged
    over data, it may be above log p if the data are more likely under p′.

    Args:
        model: a `Model` whose transition is reversible (satisfies detailed balance), for example `rbm.RBM()`.
        annealing, key, steps: as in `annealed_importance_sampling`; `annealing.start` is not used.
        v: the data, states of the model; weights of `Weighted` data are ignored.
        num_chains: the number of chains per row, a positive integer. More chains raise the estimate on average and need
            more memory, because all are annealed at once.

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
