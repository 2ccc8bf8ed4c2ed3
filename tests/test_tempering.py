"""Parallel tempering on spins that all point up or all point down; plain Gibbs sampling stays in one mode."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paysage_jax as pj
from tests.helpers.problems import assert_trees_close

KEY = jax.random.key(0)
SPINS = 6
PARAMS = {"J": np.float32([1.0]), "h": np.float32([0.05])}
BETAS = (0.0, 0.1, 0.25, 0.5, 1.0)
EVERY_STATE = (2 * ((np.arange(2**SPINS)[:, None] >> np.arange(SPINS)) & 1) - 1).astype(np.float32)
CHAINS = 400


def energy(params, s, sum=jnp.sum):
    """E(s) = -J (Σ s)² / 2 - h Σ s."""
    total = sum(s, axis=1)
    return -params["J"] * total**2 / 2 - params["h"] * total


@jax.jit
def gibbs(params, s, key):
    """A sweep: every spin is drawn given all other spins."""
    uniform = jax.random.uniform(key, s.shape)

    def draw(i, s):
        others = jnp.sum(s, axis=1) - s[:, i]
        up = jax.nn.sigmoid(2 * (params["J"] * others + params["h"]))
        return s.at[:, i].set(jnp.where(uniform[:, i] < up, 1.0, -1.0))

    return jax.lax.fori_loop(0, SPINS, draw, s)


MODEL = pj.Model(energy, gibbs)
DOWN = -np.ones((CHAINS, SPINS), np.float32)


@jax.jit
def estimate(estimator, batch, chains, key=KEY):
    return estimator.estimate(PARAMS, batch, chains, key)


@jax.jit
def start(estimator, batch):
    return estimator.init(PARAMS, batch, KEY)


@cache
def sampled(estimator, seed):
    """(chains, statistics) after 60 transitions that start from all spins down."""
    return jax.tree.map(np.asarray, estimate(estimator, DOWN, start(estimator, DOWN), jax.random.key(seed))[1:])


def energy64(s):
    """In NumPy and float64."""
    return energy(jax.tree.map(np.float64, PARAMS), s.astype(np.float64), sum=np.sum)


def exact(beta):
    """The probability of every state, in float64."""
    total = EVERY_STATE.astype(np.float64).sum(1)
    weights = np.exp(beta * (float(PARAMS["J"][0]) * total**2 / 2 + float(PARAMS["h"][0]) * total))
    return weights / weights.sum()


tempered = pj.parallel_tempering(MODEL, steps=60, betas=BETAS)


@pytest.mark.slow
def test_every_temperature_has_its_exact_probabilities_where_plain_gibbs_stays_in_one_mode():
    """The probability of each number of spins up: each of 5 runs within 5 standard errors, their mean within 4."""
    up = (EVERY_STATE > 0).sum(1)
    expected = np.array([np.bincount(up, exact(beta), SPINS + 1) for beta in BETAS])
    error = np.sqrt(expected * (1 - expected) / CHAINS)
    found = []
    for seed in range(5):
        chains, _ = sampled(tempered, seed)
        assert chains.shape == (CHAINS, len(BETAS), SPINS)
        counts = (chains > 0).sum(2)
        found.append([np.bincount(counts[:, i], minlength=SPINS + 1) / CHAINS for i in range(len(BETAS))])
        assert (np.abs(found[-1] - expected) <= 5 * error + 1e-3).all()
    assert (np.abs(np.mean(found, axis=0) - expected) <= 4 * error / np.sqrt(5) + 1e-3).all()

    alone, _ = sampled(pj.persistent_contrastive_divergence(MODEL, steps=60), 0)
    assert (alone == -1).all()  # with probability above 0.99
    assert 0.6 < expected[-1][SPINS] < 0.7


def test_swap_rates_are_the_exact_ones():
    """The sum over all pairs of states of their probability times the probability of an exchange."""
    energies = energy64(EVERY_STATE)
    expected = []
    for hot, cold in itertools.pairwise(BETAS):
        ratio = np.exp((hot - cold) * (energies[:, None] - energies[None]))
        expected.append(exact(hot) @ np.minimum(1, ratio) @ exact(cold))
    rates = [sampled(tempered, seed)[1].swap_rates for seed in range(5)]
    np.testing.assert_allclose(np.mean(rates, axis=0), expected, atol=0.03)  # the first steps are in equilibrium too
    assert np.std(rates, axis=0).max() < 0.02
    statistics = sampled(tempered, 0)[1]
    assert float(statistics.lowest_swap_rate) == float(np.min(statistics.swap_rates))


def test_the_gradient_is_that_of_the_chains_at_beta_1():
    estimator = pj.parallel_tempering(MODEL, steps=20, betas=BETAS, energy_penalty=0.1)
    batch = EVERY_STATE[:20]
    chains = start(estimator, DOWN)
    gradient, chains, statistics = estimate(estimator, batch, chains)
    samples = chains[:, -1]
    expected = {"J": 0.0, "h": 0.0}
    for s, sign in ((batch, 1), (np.asarray(samples), -1)):
        total, e = s.sum(1, dtype=np.float64), energy64(s)
        expected["J"] -= np.mean((sign + 0.2 * e) * total**2 / 2)
        expected["h"] -= np.mean((sign + 0.2 * e) * total)
    for name, value in expected.items():
        np.testing.assert_allclose(gradient[name], [value], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.model_energy, np.mean(energy64(np.asarray(samples))), rtol=1e-5)


def test_an_exchange_loses_and_invents_no_state():
    """Under the identity as transition, each ladder keeps its states in some order; all states differ."""
    states = np.arange(CHAINS, dtype=np.float32)[:, None]

    def stand(params, v, key):
        return v

    def flat(params, v):  # at an energy that is equal everywhere, each exchange is accepted
        return 0 * params["J"] * v[:, 0]

    estimator = pj.parallel_tempering(pj.Model(flat, stand), chains=states, betas=BETAS, steps=7)
    ladders = states[:, None] + np.linspace(0, 0.5, len(BETAS), dtype=np.float32)[None, :, None]
    _, after, statistics = estimate(estimator, states, ladders)
    np.testing.assert_array_equal(np.sort(after, axis=1), ladders)
    assert not np.array_equal(after, ladders)
    np.testing.assert_allclose(statistics.swap_rates, 1, rtol=1e-6)


def test_states_may_be_trees_and_weights_and_hidden_units_go_as_in_pcd():
    """The initial state of a ladder is repeated at each temperature; the data phase equals that of PCD bit for bit."""

    def of_tree(params, state):
        return energy(params, state["s"])

    def gibbs_of_tree(params, state, key):
        return {"s": gibbs(params, state["s"], key)}

    model = pj.Model(of_tree, gibbs_of_tree, sample_hidden=lambda params, v, key: {"s": v})
    data = pj.Weighted(EVERY_STATE[:20], np.arange(20.0, dtype=np.float32))
    phases = []
    for make in (pj.persistent_contrastive_divergence, pj.parallel_tempering):
        estimator = make(model, num_chains=30)
        chains = start(estimator, data)
        phases.append(estimate(estimator, data, chains)[2].data_gradient)
    assert chains["s"].shape == (30, 6, SPINS)
    assert_trees_close(*phases, atol=0)


@pytest.mark.slow
def test_a_run_learns_how_likely_each_mode_is():
    """Seven of ten rows point up: in each of 3 runs tanh(6 h) is near 0.4, and the history has the swap rates."""
    data = np.concatenate([np.ones((70, SPINS)), -np.ones((30, SPINS))]).astype(np.float32)
    learner = pj.chain(pj.sgd(0.002), pj.scale_leaves({"J": 0.0, "h": 1.0}))
    estimator = pj.parallel_tempering(MODEL, betas=BETAS, steps=5, chains=EVERY_STATE)
    run = jax.jit(jax.vmap(lambda key: pj.fit(PARAMS, learner, estimator, data, batch_size=100, epochs=200, key=key)))
    result = run(jax.random.split(KEY, 3))
    np.testing.assert_allclose(result.params["h"][:, 0], np.arctanh(0.4) / SPINS, atol=0.03)
    assert (result.history["lowest_swap_rate"] > 0.1).all()


@pytest.mark.parametrize("betas", [(1.0,), (0.0, 0.5), (0.5, 0.2, 1.0), (-0.1, 1.0), (0.0, 0.0, 1.0), (np.nan, 1.0)])
def test_wrong_ladders_are_named(betas):
    with pytest.raises(ValueError, match="parallel_tempering: betas must increase from a nonnegative number to 1, got"):
        pj.parallel_tempering(MODEL, betas=betas)
