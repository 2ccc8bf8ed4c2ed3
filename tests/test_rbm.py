"""The reference RBM of the examples: against sums over all states in float64, and exact distributions."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logsumexp

from paysage_jax import rbm
from paysage_jax.extend import phase_gradient
from tests.helpers.problems import GOLDEN, each_golden, golden, rbm_tree, row

VISIBLE, HIDDEN = 4, 3


def binary_states(units):
    return np.array(list(product((0.0, 1.0), repeat=units)))


def bernoulli(visible=VISIBLE, hidden=HIDDEN, seed=0):
    return rbm_tree(visible, hidden, seed)


def gaussian(visible=2, hidden=HIDDEN, seed=0):
    params = rbm_tree(visible, hidden, seed)
    params["layers"][0]["log_var"] = jnp.linspace(-1, 0.5, visible)
    return params


def energy(params, v, h):
    """E(v, h) term by term in float64; the elements of v may be arrays."""
    visible, hidden = jax.tree.map(lambda x: np.asarray(x, np.float64), params["layers"])
    matrix = np.asarray(params["weights"][0]["matrix"], np.float64)
    total = -np.dot(hidden["loc"], h)
    for i in range(len(v)):
        variance = np.exp(visible["log_var"][i]) if "log_var" in visible else 1.0
        if "log_var" in visible:
            total += (v[i] - visible["loc"][i]) ** 2 / (2 * variance)
        else:
            total -= visible["loc"][i] * v[i]
        for j in range(len(h)):
            total -= v[i] * matrix[i, j] * h[j] / variance
    return total


def brute_free_energy(params, v):
    states = binary_states(len(params["layers"][1]["loc"]))
    return np.array([-logsumexp([-energy(params, row, h) for h in states]) for row in v])


def bernoulli_log_partition(params):
    return logsumexp(-brute_free_energy(params, binary_states(len(params["layers"][0]["loc"]))))


def gaussian_log_partition(params, points=401):
    """log of the integral of exp(-F) over a grid far wider than the distribution (two visible units)."""
    axis, spacing = np.linspace(-25, 25, points, retstep=True)
    v = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    states = binary_states(len(params["layers"][1]["loc"]))
    log_weights = np.stack([-energy(params, v.T, h) for h in states])
    return logsumexp(log_weights) + 2 * np.log(spacing)


BINARY, GAUSSIAN = rbm.RBM(), rbm.RBM(visible=rbm.Gaussian())
MACHINES = {"bernoulli": (BINARY, bernoulli()), "gaussian": (GAUSSIAN, gaussian(3))}
each_machine = pytest.mark.parametrize(("machine", "params"), MACHINES.values(), ids=MACHINES.keys())
binary_gradient = jax.jit(phase_gradient(BINARY.energy))
gaussian_gradient = jax.jit(phase_gradient(GAUSSIAN.energy))


# --- energies ----------------------------------------------------------------------------------------


@each_machine
def test_free_energy_is_a_sum_over_the_hidden_states(machine, params):
    v = np.random.default_rng(1).normal(size=(5, len(params["layers"][0]["loc"])))
    actual = machine.energy(params, jnp.asarray(v, float))
    assert actual.shape == (5,)
    np.testing.assert_allclose(actual, brute_free_energy(params, np.float32(v)), rtol=2e-6, atol=1e-6)


@each_golden("rbm_replay")
@pytest.mark.parametrize("t", [0, 1])
def test_gradient_is_the_recorded_one(case, t):
    v_data, v_model = (
        jnp.asarray(np.unpackbits(GOLDEN["rbm_replay"][f"{case['id']}/{name}"][t], axis=-1), jnp.float32)
        for name in ("v_data", "v_model")
    )
    params = row(golden("rbm_replay", case["id"], "param"), t)
    expected = row(golden("rbm_replay", case["id"], "grad_first2"), t)
    actual = binary_gradient(params, v_data, v_model)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-6), actual, expected)


def test_gradient_of_a_gaussian_model_by_finite_differences():
    params = gaussian(3)
    rng = np.random.default_rng(2)
    v_data, v_model = np.float32(rng.normal(size=(2, 6, 3)))
    actual = gaussian_gradient(params, jnp.asarray(v_data), jnp.asarray(v_model))
    leaves, structure = jax.tree.flatten(params)
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]

    def loss(leaves):
        params = structure.unflatten(leaves)
        return brute_free_energy(params, v_data).mean() - brute_free_energy(params, v_model).mean()

    actual = jax.tree.map(np.asarray, actual)
    for k, derivatives in enumerate(jax.tree.leaves(actual)):
        for index in np.ndindex(derivatives.shape):
            up, down = ([leaf.copy() for leaf in leaves] for _ in range(2))
            up[k][index] += 1e-5
            down[k][index] -= 1e-5
            np.testing.assert_allclose(derivatives[index], (loss(up) - loss(down)) / 2e-5, rtol=2e-5, atol=2e-6)


# --- likelihood --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [1, 3, 5])
def test_log_partition_is_a_sum_over_all_states(hidden):
    params = bernoulli(hidden=hidden)
    np.testing.assert_allclose(BINARY.log_partition(params), bernoulli_log_partition(params), rtol=1e-6)


def test_log_partition_in_blocks_is_that_of_independent_hidden_units():
    # Without weights and with 14 hidden units there are four blocks of states.
    params = bernoulli(hidden=14)
    params["weights"][0]["matrix"] = jnp.zeros((VISIBLE, 14))
    loc = np.concatenate([np.asarray(layer["loc"], np.float64) for layer in params["layers"]])
    np.testing.assert_allclose(BINARY.log_partition(params), np.logaddexp(0, loc).sum(), rtol=1e-6)


def test_log_partition_of_a_gaussian_model_is_an_integral():
    params = gaussian()
    np.testing.assert_allclose(GAUSSIAN.log_partition(params), gaussian_log_partition(params), rtol=1e-6)


def test_log_partition_refuses_what_it_cannot_enumerate():
    with pytest.raises(ValueError, match="got 21 visible and 22 hidden units, which are too many"):
        BINARY.log_partition(bernoulli(21, hidden=22))
    with pytest.raises(ValueError, match="got 2 visible and 21 hidden units, which are too many"):
        GAUSSIAN.log_partition(gaussian(hidden=21))


def test_log_likelihood_is_the_mean_log_probability():
    params = bernoulli()
    v = binary_states(VISIBLE)[[1, 5, 5, 12]]
    expected = (-brute_free_energy(params, v) - bernoulli_log_partition(params)).mean()
    actual = BINARY.log_likelihood(params, jnp.asarray(v, float), BINARY.log_partition(params))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- sampling ----------------------------------------------------------------------------------------


@each_machine
def test_the_machine_is_a_model_without_leaves(machine, params):
    assert (machine.sample_hidden, machine.integer_states) == (None, False)
    assert machine == rbm.RBM(machine.visible)
    assert jax.tree.leaves(machine) == []


def test_parameters_of_other_units_are_refused():
    v = np.zeros((3, VISIBLE), np.float32)
    with pytest.raises(ValueError, match=r"params\['layers'\]\[0\]: Binary units have loc, got loc, log_var; create"):
        BINARY.energy(gaussian(VISIBLE), v)
    with pytest.raises(ValueError, match=r"params\['layers'\]\[1\]: ReLU units have loc, log_var, got loc; create"):
        rbm.RBM(hidden=rbm.ReLU()).energy(bernoulli(), v)


def test_gibbs_has_the_transition_probabilities_of_a_sum_over_hidden_states():
    # As many hidden as visible units: random numbers used twice would be seen.
    params, draws = bernoulli(hidden=VISIBLE), 20_000
    visible = hidden = binary_states(VISIBLE)
    joint = np.exp([[-energy(params, v, h) for h in hidden] for v in visible])
    expected = (joint / joint.sum(1, keepdims=True)) @ (joint / joint.sum(0)).T
    np.testing.assert_allclose(joint.sum(1) @ expected, joint.sum(1))  # the law the kernel must keep

    start = jnp.asarray(np.repeat(visible, draws, axis=0), jnp.float32)
    v = jax.jit(BINARY.transition)(params, start, jax.random.key(4))
    assert v.dtype == start.dtype
    numbers = (np.asarray(v, int) @ 2 ** np.arange(VISIBLE)[::-1]).reshape(len(visible), draws)
    counts = np.stack([np.bincount(row, minlength=len(visible)) for row in numbers])
    # Every row is a multinomial: the sum of the 16 chi-squares has 16 * 15 degrees of freedom.
    chi_square = ((counts - draws * expected) ** 2 / (draws * expected)).sum()
    assert stats.chi2.sf(chi_square, 16 * 15) > 1e-3


def test_gibbs_leaves_the_gaussian_distribution_as_it_is_and_moves():
    params, draws = gaussian(), 100_000
    matrix, loc = np.asarray(params["weights"][0]["matrix"]), np.asarray(params["layers"][0]["loc"])
    variance = np.exp(np.asarray(params["layers"][0]["log_var"]))
    states = binary_states(HIDDEN)
    # p(h) from the integral over v of each component on its own.
    means = loc + states @ matrix.T
    peaks = np.array([-energy(params, mean, h) for mean, h in zip(means, states, strict=True)])
    weights = np.exp(peaks - logsumexp(peaks))

    rng = np.random.default_rng(5)
    v = means[rng.choice(len(states), size=draws, p=weights)] + np.sqrt(variance) * rng.normal(size=(draws, 2))
    moved = np.asarray(jax.jit(GAUSSIAN.transition)(params, jnp.asarray(v, jnp.float32), jax.random.key(6)))

    assert np.abs(np.corrcoef(v[:, 0], moved[:, 0])[0, 1]) < 0.99
    for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
        scale = np.sqrt(np.square(direction) @ variance)

        def cdf(x, centers=means @ direction, scale=scale):
            return stats.norm.cdf((x[:, None] - centers) / scale) @ weights

        assert stats.kstest(v @ direction, cdf).pvalue > 1e-3  # the draws to start from
        assert stats.kstest(moved @ direction, cdf).pvalue > 1e-3


def test_means_are_those_of_the_conditional_distributions():
    params = gaussian(3)
    visible, hidden = params["layers"]
    matrix = np.asarray(params["weights"][0]["matrix"])
    v, h = np.float32(np.random.default_rng(7).normal(size=(5, 3))), binary_states(HIDDEN).astype(np.float32)
    scaled = v / np.exp(np.asarray(visible["log_var"]))
    np.testing.assert_allclose(
        GAUSSIAN.hidden_mean(params, v), expit(scaled @ matrix + np.asarray(hidden["loc"])), 1e-5
    )
    np.testing.assert_allclose(GAUSSIAN.visible_mean(params, h), h @ matrix.T + np.asarray(visible["loc"]), 1e-5, 1e-6)
    del visible["log_var"]
    np.testing.assert_allclose(BINARY.visible_mean(params, h), expit(h @ matrix.T + np.asarray(visible["loc"])), 1e-5)


# --- parameters to start from ------------------------------------------------------------------------


def test_bernoulli_start():
    data = jnp.asarray([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    params = BINARY.init(data, 2000, jax.random.key(0))
    np.testing.assert_allclose(params["layers"][0]["loc"], [-15.942385, 15.942385, -np.log(3)], rtol=1e-6)
    assert not params["layers"][1]["loc"].any()
    assert params["layers"][1]["loc"].shape == (2000,)
    assert params["weights"][0]["matrix"].shape == (3, 2000)
    np.testing.assert_allclose(np.std(params["weights"][0]["matrix"]), 0.01, rtol=0.05)


def test_gaussian_start_is_the_normal_distribution_of_the_data():
    data = np.random.default_rng(8).normal([1, -2], [0.5, 3], size=(300, 2))
    params = GAUSSIAN.init(jnp.asarray(data, float), 2, jax.random.key(0))
    params["weights"][0]["matrix"] *= 0
    actual = GAUSSIAN.log_likelihood(params, jnp.asarray(data, float), GAUSSIAN.log_partition(params))
    np.testing.assert_allclose(actual, stats.norm.logpdf(data, data.mean(0), data.std(0)).sum(1).mean(), rtol=1e-5)


def test_gaussian_start_refuses_a_constant_component():
    with pytest.raises(ValueError, match=r"data\[:, 1\] is constant"):
        GAUSSIAN.init(jnp.asarray([[1.0, 2.0], [3.0, 2.0]]), 2, jax.random.key(0))
