"""How well chains mix: autocorrelation times, split R-hat and effective sample sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._core.batches import Weighted, as_floats
from .._core.devices import whole
from .._core.pytree import check_count
from .._core.threefry import unrolled
from .._core.trees import abs_sq, divisor, is_inexact, moment_dtype, norm
from .._core.types import Batch, Leaf, Params, Tree
from .annealing import finite_states
from .estimators import as_states
from .model import EnergyModel, as_model
from .phases import energies_of, hints, rows

_WINDOW = 5  # in autocorrelation times
_ROUNDS = 5  # rounds of power iteration
_R_HAT = 1.05  # reached when the autocorrelation time is about a twentieth of the steps


# --- one statistic -----------------------------------------------------------------------------------


class MixingStatistic(NamedTuple):
    """How well the chains sample one statistic, or each element of an array.

    autocorrelation_time: the integrated autocorrelation time in steps; 1 for independent states.
    r_hat: 1 if the chains agree, larger if they do not; 1.05 if the run is about twenty autocorrelation times long.
    effective_sample_size: the number of independent states whose mean would be equally accurate.

    All are NaN if the energy never changes.
    """

    autocorrelation_time: jax.Array
    r_hat: jax.Array
    effective_sample_size: jax.Array


def integrated_autocorrelation_time(series: jax.Array) -> jax.Array:
    """τ = 1 + 2 Σₖ ρ(k), k = 1 ... M, with the smallest M ≥ 5 τ(M), of series (steps, chains)."""
    steps, chains = series.shape
    # Deviations from the mean of all chains, so that chains that do not move give a long time.
    deviations = (series - jnp.mean(series)).T
    # In blocks of chains, the last one padded with zeros, to save memory in the transforms.
    block = min(chains, 128)
    blocks = jnp.pad(deviations, ((0, -chains % block), (0, 0))).reshape(-1, block, steps)

    def add_power(power: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        return power + jnp.sum(abs_sq(jnp.fft.rfft(block, 2 * steps)), axis=0), None

    power, _ = jax.lax.scan(add_power, jnp.zeros(steps + 1, series.dtype), blocks)
    covariance = jnp.fft.irfft(power)[:steps] / jnp.arange(steps, 0, -1, dtype=series.dtype)
    times = 2 * jnp.cumsum(covariance / covariance[0]) - 1
    closed = jnp.arange(steps, dtype=series.dtype) >= _WINDOW * times
    return times[jnp.where(jnp.any(closed), jnp.argmax(closed), steps - 1)]


def split_r_hat(means: jax.Array, variances: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """R-hat and the effective sample size from the means and variances of half chains (2, chains, ...).

        R² = V / W,   ESS = 2 chains V / B,   V = (1 - 1 / length) W + B

    W is the mean variance within the half chains, and B the variance of their means.
    """
    between = jnp.var(means, axis=(0, 1), ddof=1)
    within = jnp.mean(variances, axis=(0, 1))
    total = (1 - 1 / length) * within + between
    return jnp.sqrt(total / within), means.shape[0] * means.shape[1] * total / between


def _of_series(series: jax.Array) -> MixingStatistic:
    """`MixingStatistic` of a scalar, from its values in both halves (2, steps, chains)."""
    _, length, chains = series.shape
    series = series - series[0, 0, 0]  # so that a constant series has mean 0 without rounding error
    time = integrated_autocorrelation_time(series.reshape(2 * length, chains))
    r_hat, _ = split_r_hat(jnp.mean(series, axis=1), jnp.var(series, axis=1, ddof=1), length)
    return MixingStatistic(time, r_hat, 2 * length * chains / time)


def _of_moments(means: jax.Array, variances: jax.Array, length: int) -> MixingStatistic:
    """`MixingStatistic` of each unit, from the means and variances of both halves. A constant unit counts as mixed."""
    size = 2 * length * means.shape[1]
    r_hat, effective = split_r_hat(means, variances, length)
    still = (jnp.max(means, axis=(0, 1)) == jnp.min(means, axis=(0, 1))) & jnp.all(variances == 0, axis=(0, 1))
    r_hat, effective = jnp.where(still, 1, r_hat), jnp.where(still, size, effective)
    return MixingStatistic(size / effective, r_hat, effective)


# --- a run of chains ---------------------------------------------------------------------------------


class Mixing(NamedTuple):
    """Result of `mixing`; `print` shows it as a table.

    energy: the statistic of the energy. slow_direction: the statistic of the derivative of the energy along the slowest
    direction of the parameters. units: the statistics of the units; each field is an array like one state, or a tree of
    arrays. num_chains, steps: int32.
    """

    energy: MixingStatistic
    slow_direction: MixingStatistic
    units: MixingStatistic
    num_chains: jax.Array
    steps: jax.Array

    @property
    def worst(self) -> MixingStatistic:
        """The longest time, the largest R-hat and the smallest effective sample size of all statistics."""
        every = [self.energy, self.slow_direction, _worst_of(self.units)]
        return _worst_of(MixingStatistic(*(jnp.stack(values) for values in zip(*every, strict=True))))

    def __str__(self) -> str:
        if jnp.ndim(self.steps):
            return repr(self)
        named = {"energy": self.energy, "slow direction": self.slow_direction, "worst unit": _worst_of(self.units)}
        lines = [f"{'':16}{'autocorrelation':>16}{'R-hat':>10}{'effective size':>16}"]
        lines += [f"{name:16}{float(s[0]):16.1f}{float(s[1]):10.3f}{float(s[2]):16.0f}" for name, s in named.items()]
        mixed = self.worst.r_hat < _R_HAT  # False for NaN
        verdict = "no sign of slow mixing" if mixed else f"the chains have not mixed (R-hat should be below {_R_HAT})"
        return "\n".join([*lines, f"{int(self.num_chains)} chains, {int(self.steps)} steps: {verdict}"])


def _worst_of(statistic: MixingStatistic) -> MixingStatistic:
    def extreme(of: Callable[[jax.Array], jax.Array], tree: Tree) -> jax.Array:
        return of(jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]))

    times, r_hats, sizes = statistic
    return MixingStatistic(extreme(jnp.max, times), extreme(jnp.max, r_hats), extreme(jnp.min, sizes))


def mixing(model: EnergyModel, params: Params, chains: Batch, key: jax.Array, steps: int = 1000) -> Mixing:
    """Measure how well chains mix: integrated autocorrelation times, split R-hat, and effective sample sizes.

        τ = 1 + 2 Σₖ ρ(k), k = 1 ... M with M ≥ 5 τ,   R² = V / W,   ESS = chains steps / τ

    ρ is the autocorrelation around the mean of all chains, with the window of Sokal (1997), as in emcee. R is split
    R-hat (Gelman et al., 2013; Vehtari et al., 2021): W is the mean variance within the halves of the chains, B the
    variance of their means, and V = W (1 - 2 / steps) + B. These statistics are reported for

    - the energy;
    - the derivative d·∂E/∂params of the energy along a direction d of the parameters. The gradient averages such
      derivatives. d is the direction with the largest covariance between earlier and later states of a chain. Power
      iteration finds it during steps // 4 transitions before the measured ones;
    - each unit of the states. Its ESS is 2 chains V / B (Vats & Knudson, 2021), with a relative error of about
      1 / √chains, and its τ is chains steps / ESS.

    Memory: 2 numbers per chain and step (the energy and d·∂E/∂params), and about 8 numbers per unit and chain. A mode
    that no chain visits goes unnoticed; `compare_starts` may find it. `mixing` runs under `jit`, under `vmap`, and as a
    metric in `fit`:

        def r_hat(state, key):
            return pj.mixing(model, state.params, state.estimator_state, key, steps=20).worst.r_hat

    Args:
        model: a `Model`, or `rbm.RBM()`.
        params: its parameters.
        chains: states of the model, at least 2, with a common leading axis, for example `result.estimator_state`.
        key: a PRNG key.
        steps: the number of measured transitions, an integer of at least 4; odd numbers are rounded up. Changing it
            recompiles.

    Raises:
        TypeError, ValueError: for invalid energies or states, fewer than 2 chains, or fewer than 4 steps.
    """
    check_count("mixing: steps", steps)
    if int(steps) < 4:
        raise ValueError(f"mixing: steps must be at least 4, two for each half, got {steps}")
    model = as_model("mixing: model", model)
    chains = as_samples("mixing: chains", chains, params, model)
    with hints(chains, model.integer_states, whole=model.sample_hidden is not None):
        return _mixing(model, params, chains, key, (int(steps) + 1) // 2)


@partial(jax.jit, static_argnames="length")
def _mixing(model: EnergyModel, params: Params, v: Batch, key: jax.Array, length: int) -> Mixing:
    find_key, key = jax.random.split(key)
    v = as_states(model.transition, params, v, key)
    energies, moving = _energies_of_moving(model, params)
    direction, v = _slow_direction(model, params, v, find_key, max(1, length // (2 * _ROUNDS)))

    def step(carry: Tree, i: jax.Array) -> tuple[Tree, Tree]:
        v, means, squares, n = carry
        v, n = model.transition(params, v, jax.random.fold_in(unrolled(key), i)), n + 1
        x, old = as_numbers(v), means
        means = jax.tree.map(lambda x, m: m + (x - m) / n.astype(m.dtype), x, old)  # (Welford, 1962)
        squares = jax.tree.map(lambda s, x, m, new: s + (x - m) * (x - new), squares, x, old, means)
        return (v, means, squares, n), jax.jvp(lambda p: energies(p, v), (moving,), (direction,))

    def half(v: Batch, start: jax.Array) -> tuple[Batch, Tree]:
        zeros = jax.tree.map(jnp.zeros_like, as_numbers(v))
        numbers = start + jnp.arange(length)
        (v, means, squares, _), series = jax.lax.scan(step, (v, zeros, zeros, jnp.zeros((), int)), numbers)
        return v, (series, means, jax.tree.map(lambda s: s / (length - 1), squares))

    _, (series, means, variances) = jax.lax.scan(half, v, length * jnp.arange(2))
    scalars = jax.vmap(_of_series)(jnp.stack([whole(x) for x in series]))
    leaves, structure = jax.tree.flatten(means)
    units = [_of_moments(m, s, length) for m, s in zip(leaves, jax.tree.leaves(variances), strict=True)]
    return Mixing(
        energy=MixingStatistic(*(x[0] for x in scalars)),
        slow_direction=MixingStatistic(*(x[1] for x in scalars)),
        units=MixingStatistic(*(structure.unflatten(field) for field in zip(*units, strict=True))),
        num_chains=jnp.asarray(rows("chains", v), jnp.int32),
        steps=jnp.asarray(2 * length, jnp.int32),
    )


def as_samples(name: str, v: Batch, params: Params, model: EnergyModel) -> Batch:
    """Chains as arrays, at least two. Raises TypeError or ValueError for other input."""
    if isinstance(v, Weighted):
        raise TypeError(f"{name}: expected states without weights, got Weighted; draw rows by their weights")
    v = finite_states(name, v, params, model.integer_states)
    if (size := rows(name, v)) < 2:
        raise ValueError(f"{name}: expected at least 2 states, got {size}")
    return v


def as_numbers(v: Batch) -> Batch:
    """Convert to floats of at least float32."""
    return jax.tree.map(lambda x: x.astype(moment_dtype(x.dtype)), as_floats(v, float))


def _energies_of_moving(
    model: EnergyModel, params: Params
) -> tuple[Callable[[list[Leaf], Batch], jax.Array], list[Leaf]]:
    """The energies as a function of the noninteger parameters, and these parameters; both in at least float32."""
    leaves, structure = jax.tree.flatten(params)
    moves = [is_inexact(x) for x in leaves]

    def energies(moving: list[Leaf], v: Batch) -> jax.Array:
        values = iter(moving)
        every = [next(values).astype(jnp.result_type(x)) if m else x for x, m in zip(leaves, moves, strict=True)]
        found = energies_of(model.energy, structure.unflatten(every), "chains", v)
        return found.astype(moment_dtype(found.dtype))

    moving = [jnp.asarray(x) for x, m in zip(leaves, moves, strict=True) if m]
    return energies, [x.astype(moment_dtype(x.dtype)) for x in moving]


def _slow_direction(model: EnergyModel, params: Params, v: Batch, key: jax.Array, length: int) -> tuple[Tree, Batch]:
    """Iterate d ← Σₜ Cov[∂E(t), Σ d·∂E(s) over s < t], normalized; return d and the states afterwards."""
    energies, moving = _energies_of_moving(model, params)
    start_key, key = jax.random.split(key)

    def step(i: jax.Array, carry: Tree) -> Tree:
        v, direction, earlier, covariance = carry
        earlier = earlier + jax.jvp(lambda p: energies(p, v), (moving,), (direction,))[1]
        v = model.transition(params, v, jax.random.fold_in(unrolled(key), i))
        _, pull = jax.vjp(lambda p: energies(p, v), moving)
        deviations = earlier - jnp.mean(earlier)
        largest = divisor(jnp.max(jnp.abs(deviations)))  # so that derivatives in half precision do not overflow
        (product,) = pull(deviations / largest / len(earlier))
        return v, direction, earlier, jax.tree.map(lambda c, x: c + jnp.conj(x), covariance, product)

    def improve(i: jax.Array, carry: Tree) -> Tree:
        v, direction, earlier = carry
        zeros = jax.tree.map(jnp.zeros_like, direction)
        start = v, _normalized(direction), earlier, zeros
        v, _, earlier, covariance = jax.lax.fori_loop(i * length, (i + 1) * length, step, start)
        return v, covariance, jnp.zeros_like(earlier)

    # The first round has no direction yet and starts from a random number for each chain.
    zeros = jnp.zeros_like(energies(moving, v))
    random = zeros + jax.random.normal(start_key, zeros.shape, zeros.dtype)
    v, direction, _ = jax.lax.fori_loop(0, _ROUNDS, improve, (v, jax.tree.map(jnp.zeros_like, moving), random))
    return _normalized(direction), v


def _normalized(direction: list[Leaf]) -> list[Leaf]:
    length = norm(jnp.stack([norm(x).astype(float) for x in direction]))
    return [x / divisor(length).astype(x.dtype) for x in direction]
