"""Machines of all pairs of units: against sums and quadratures in float64, finite differences, and moments of draws.

Nothing is jitted here, and layers and batches have the same sizes: the pairs share the compiled operations. A program
for each would take seconds.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from paysage_jax import rbm
from tests.helpers import units
from tests.helpers.units import FINITE, KINDS

SIZES, ROWS = (2, 2), 1000
each_pair = pytest.mark.parametrize(
    ("visible", "hidden"), [pytest.param(v, h, id=f"{v}-{h}") for v in KINDS for h in KINDS]
)
a_few = pytest.mark.slow_unless("spin-relu", "categorical-gaussian", "drelu-binary")


def machine_of(visible, hidden):
    return rbm.RBM(KINDS[visible], KINDS[hidden])


def as_states(kind, x, dtype):
    return jnp.asarray(x, jnp.int32 if kind == "categorical" else dtype)


@each_pair
@a_few
def test_free_energies_and_gradients_are_those_of_sums_and_quadratures(visible, hidden):
    kinds, machine = (visible, hidden), machine_of(visible, hidden)
    params = units.random_params(visible, hidden, SIZES)
    v, h = (units.random_states(kind, 8, n) for kind, n in zip(kinds, SIZES, strict=True))
    expected = units.free_energy(params, kinds, 0, v), units.free_energy(params, kinds, 1, h)

    with jax.enable_x64(True):
        wide, v64 = units.cast(params, float), as_states(visible, v, float)
        mean, gradient = jax.value_and_grad(lambda p: jnp.mean(machine.energy(p, v64)))(wide)
        hidden_energies = machine.hidden_free_energy(wide, as_states(hidden, h, float))
    np.testing.assert_allclose(mean, expected[0].mean(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(hidden_energies, expected[1], rtol=1e-10, atol=1e-10)

    leaves, structure = jax.tree.flatten(params)
    for k, derivatives in enumerate(map(np.asarray, jax.tree.leaves(gradient))):
        for index in np.ndindex(derivatives.shape):
            up, down = ([leaf.copy() for leaf in leaves] for _ in range(2))
            up[k][index] += 1e-5
            down[k][index] -= 1e-5
            energies = [units.free_energy(structure.unflatten(p), kinds, 0, v).mean() for p in (up, down)]
            np.testing.assert_allclose(derivatives[index], (energies[0] - energies[1]) / 2e-5, rtol=1e-6, atol=1e-8)


DRAWS = 100_000


@each_pair
@a_few
def test_float32_energies_means_and_draws_are_those_of_sums_and_quadratures(visible, hidden):
    kinds, machine = (visible, hidden), machine_of(visible, hidden)
    params = units.random_params(visible, hidden, SIZES, seed=2)
    x = [units.random_states(kind, ROWS, n, seed=3) for kind, n in zip(kinds, SIZES, strict=True)]
    v, h = (as_states(kind, states, jnp.float32) for kind, states in zip(kinds, x, strict=True))
    narrow, keys = units.cast(params, jnp.float32), jax.random.split(jax.random.key(0))
    many_v, many_h = (jnp.broadcast_to(states[:1], (DRAWS, states.shape[1])) for states in (v, h))
    free = machine.energy(narrow, v), machine.hidden_free_energy(narrow, h)
    means = machine.visible_mean(narrow, h), machine.hidden_mean(narrow, v)
    draws = machine.visible_sample(narrow, many_h, keys[0]), machine.hidden_sample(narrow, many_v, keys[1])
    for side in (0, 1):
        np.testing.assert_allclose(free[side], units.free_energy(params, kinds, side, x[side]), rtol=1e-5, atol=1e-5)
        kind, mean, drawn = kinds[1 - side], np.asarray(means[1 - side][0]), np.float64(draws[1 - side])
        for j, (values, p) in enumerate(units.conditionals(params, kinds, side, x[side][0])):
            expected = p if kind == "categorical" else p @ values
            np.testing.assert_allclose(mean[j], expected, rtol=1e-5, atol=1e-5)
            for power in (1, 2):
                variance = max(0, p @ values ** (2 * power) - (p @ values**power) ** 2)
                assert abs(np.mean(drawn[:, j] ** power) - p @ values**power) <= 4 * np.sqrt(variance / DRAWS) + 1e-12


@each_pair
@a_few
def test_log_z_is_that_of_a_sum_or_quadrature_by_annealing_and_exactly(visible, hidden):
    """Annealed in 8 steps from independent units to the machine, each with a transition."""
    kinds, machine = (visible, hidden), machine_of(visible, hidden)
    params = units.random_params(visible, hidden, SIZES, seed=4)
    expected, params = units.log_partition(params, kinds), units.cast(params, jnp.float32)
    data = as_states(visible, units.random_states(visible, ROWS, SIZES[0], seed=5), jnp.float32)
    annealing, key = machine.annealing(params, data, ROWS, jax.random.key(1)), jax.random.key(2)
    v, log_weights = annealing.start, 0.0
    path = [annealing.path(jnp.float32(k / 8)) for k in range(9)]
    for k, (old, new) in enumerate(pairwise(path)):
        log_weights = log_weights + np.float64(machine.energy(old, v) - machine.energy(new, v))
        v = machine.transition(new, v, jax.random.fold_in(key, k))
    log_ratio = logsumexp(log_weights) - np.log(ROWS)
    error = np.std(np.exp(log_weights - log_ratio)) / np.sqrt(ROWS)
    assert 1e-4 < error < 0.1
    assert abs(annealing.log_z_start + log_ratio - expected) < 4 * error
    if visible in FINITE or hidden in FINITE:
        np.testing.assert_allclose(machine.log_partition(params), expected, rtol=1e-5, atol=1e-5)


def test_log_z_is_exact_only_where_a_layer_can_be_enumerated():
    machine = machine_of("relu", "gaussian")
    params = units.cast(units.random_params("relu", "gaussian", SIZES), jnp.float32)
    with pytest.raises(ValueError, match="2 visible and 2 hidden units, which are too many or real-valued"):
        machine.log_partition(params)
    params = units.cast(units.random_params("gaussian", "categorical", (2, 13)), jnp.float32)
    with pytest.raises(ValueError, match=f"expected a layer of at most {2**20} states, got "):
        machine_of("gaussian", "categorical").log_partition(params)
