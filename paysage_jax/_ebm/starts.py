"""Compare chains from two starts until they agree. This may find modes that all chains of a run have lost."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._core.pytree import check_count
from .._core.threefry import unrolled
from .._core.trees import moment_dtype
from .._core.types import Batch, Params, Tree
from .estimators import as_states
from .mixing import as_numbers, as_samples
from .model import EnergyModel, as_model
from .phases import energies_of, hints

_LEVEL = 0.01  # the significance level of all differences together


class StartComparison(NamedTuple):
    """Result of `compare_starts`; `print` shows it as a sentence.

    agreed: whether the two starts have reached the same energies and means of units. steps: the number of transitions
    until then, or the maximum (int32). energies: the mean energies from both starts in the last window, (2,).
    energy_difference: their difference in standard errors. unit_differences: the same for the mean of every unit, an
    array like one state or a tree of arrays. bound: the starts agree if all differences are below it.
    """

    agreed: jax.Array
    steps: jax.Array
    energies: jax.Array
    energy_difference: jax.Array
    unit_differences: Tree
    bound: jax.Array

    def __str__(self) -> str:
        if jnp.ndim(self.agreed):
            return repr(self)
        outcome = "agree" if self.agreed else "do NOT agree"
        first, second = map(float, self.energies)
        worst = max(float(jnp.max(x)) for x in jax.tree.leaves(self.unit_differences))
        return (
            f"The two starts {outcome} after {int(self.steps)} steps: mean energies {first:.6g} and {second:.6g}, "
            f"{float(self.energy_difference):.1f} standard errors apart; the means of the worst unit {worst:.1f} "
            f"(agreement: all below {float(self.bound):.1f})"
        )


def compare_starts(
    model: EnergyModel, params: Params, starts: tuple[Batch, Batch], key: jax.Array, steps: ArrayLike = 10_000
) -> StartComparison:
    """Run chains from two starts, for example data and independent units, until their energies and means agree.

        |mean₁ - mean₂| / √(s₁² / chains₁ + s₂² / chains₂)  below a bound, for the energy and for every unit

    The means are over the chains and over the second half of all transitions so far; s² is the variance between the
    time averages of the chains (Welch, 1947). If the distributions are equal, the probability that any statistic
    exceeds the bound is at most 1 % (Bonferroni). The starts are compared after 1, 2, 4, 8, ... transitions. They agree
    when all differences are below the bound in two consecutive comparisons, because drifting energies may cross once.

    If the starts do not agree, either one start has modes that the other does not reach, or the chains have not
    equilibrated. Agreement does not prove that chains mix: a mode that neither start reaches goes unnoticed, and so
    does a difference below the bound. Use a few hundred chains. Memory: about 3 numbers per unit and chain.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        params: its parameters.
        starts: two sets of states, each of at least 2; their sizes may differ. For example, rows of the data or the
            chains of training, and independent states from `machine.annealing(params, None, num_chains, key).start`.
            If the data do not contain hidden units, `model.sample_hidden(params, rows, key)` adds them.
        key: a PRNG key.
        steps: the maximum number of transitions, a positive integer. Changing it does not recompile.

    Raises:
        TypeError, ValueError: for invalid energies or states, or if `starts` is not a pair of states.
    """
    check_count("compare_starts: steps", steps)
    model = as_model("compare_starts: model", model)
    if not isinstance(starts, tuple | list) or len(starts) != 2:
        raise TypeError(f"compare_starts: starts must be a pair of states, (data, independent), got {starts!r}")
    first, second = (as_samples(f"compare_starts: starts[{i}]", v, params, model) for i, v in enumerate(starts))
    with hints(first, model.integer_states, whole=model.sample_hidden is not None):
        return _compare_starts(model, params, (first, second), key, steps)


@jax.jit
def _compare_starts(
    model: EnergyModel, params: Params, starts: tuple[Batch, Batch], key: jax.Array, steps: ArrayLike
) -> StartComparison:
    keys, steps = jax.random.split(key), jnp.asarray(steps, jnp.int32)

    def statistics(v: Batch) -> tuple[jax.Array, Batch]:
        energies = energies_of(model.energy, params, "starts", v)
        return energies.astype(moment_dtype(energies.dtype)), as_numbers(v)

    def window(v: Batch, key: jax.Array, start: jax.Array, length: jax.Array) -> tuple[Batch, Tree]:
        """The states after `length` transitions, and the time averages of each chain."""

        def step(i: jax.Array, carry: Tree) -> Tree:
            v, means = carry
            v = model.transition(params, v, jax.random.fold_in(unrolled(key), start + i))
            return v, jax.tree.map(lambda m, x: m + (x - m) / (i + 1).astype(m.dtype), means, statistics(v))

        return jax.lax.fori_loop(0, length, step, (v, jax.tree.map(jnp.zeros_like, statistics(v))))

    def look(state: tuple[Tree, jax.Array, StartComparison]) -> tuple[Tree, jax.Array, StartComparison]:
        vs, close_before, before = state
        done = before.steps
        length = jnp.clip(done, 1, steps - done)
        (first, of_first), (second, of_second) = (window(v, k, done, length) for v, k in zip(vs, keys, strict=True))
        energy_difference, unit_differences = jax.tree.map(_standardized_difference, of_first, of_second)
        differences = jax.tree.leaves((energy_difference, unit_differences))
        close = jnp.all(jnp.stack([jnp.all(x < before.bound) for x in differences]))
        energies = jnp.stack([jnp.mean(of_first[0]), jnp.mean(of_second[0])])
        agreed = close & close_before
        found = StartComparison(agreed, done + length, energies, energy_difference, unit_differences, before.bound)
        return (first, second), close, found

    vs = tuple(as_states(model.transition, params, v, key) for v in starts)
    zero, units = jax.tree.map(lambda x: jnp.zeros_like(jnp.mean(x, axis=0)), statistics(vs[0]))
    count = 1 + sum(x.size for x in jax.tree.leaves(units))
    bound = jnp.asarray(NormalDist().inv_cdf(1 - _LEVEL / 2 / count))
    no = jnp.array(False)
    none = StartComparison(no, jnp.zeros((), jnp.int32), jnp.stack([zero, zero]), zero, units, bound)
    return jax.lax.while_loop(lambda s: ~s[-1].agreed & (s[-1].steps < steps), look, (vs, no, none))[-1]


def _standardized_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """|mean x - mean y| in standard errors, over the leading axes."""
    difference = jnp.abs(jnp.mean(x, axis=0) - jnp.mean(y, axis=0))
    error = jnp.sqrt(jnp.var(x, axis=0, ddof=1) / len(x) + jnp.var(y, axis=0, ddof=1) / len(y))
    return jnp.where(difference == 0, 0, difference / error)
