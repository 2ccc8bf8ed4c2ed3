"""The Potts model against sums over all states in float64, the laws of its gauge; weights of sequences, contacts."""

from functools import partial
from itertools import combinations, product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import paysage_jax as pj
from paysage_jax import rbm
from paysage_jax.rbm import potts

SITES, STATES = 3, 3
MODEL, KEY = rbm.PottsModel(STATES), jax.random.key(0)
energy, transition, zero_sum, contact_scores = map(
    jax.jit, (MODEL.energy, MODEL.transition, MODEL.zero_sum, rbm.contact_scores)
)
EVERY = np.array(list(product(range(STATES), repeat=SITES)))  # (27, 3)


def random_params(sites=SITES, states=STATES, scale=0.7, seed=0):
    rng, pairs = np.random.default_rng(seed), sites * (sites - 1) // 2
    fields, couplings = rng.normal(size=(sites, states)), rng.normal(size=(pairs, states, states))
    return {"fields": scale * fields, "couplings": scale * couplings}


def cast(params, dtype=np.float32):
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def energies(params, v):
    """-Σᵢ hᵢ(vᵢ) - Σ_{i<j} Jᵢⱼ(vᵢ, vⱼ), term by term."""
    found = -sum(params["fields"][i][v[:, i]] for i in range(v.shape[1]))
    for pair, (i, j) in enumerate(combinations(range(v.shape[1]), 2)):
        found = found - params["couplings"][pair][v[:, i], v[:, j]]
    return found


def probabilities(params):
    minus = -energies(params, EVERY)
    return np.exp(minus - logsumexp(minus))


def loss(params, v, weights):
    """Minus the weighted mean of Σᵢ log p(vᵢ | the others), from the energies with each state there."""
    total = 0.0
    for i in range(v.shape[1]):
        others = np.repeat(v[None], STATES, axis=0)
        others[:, :, i] = np.arange(STATES)[:, None]
        minus = -np.stack([energies(params, x) for x in others])
        total = total + -energies(params, v) - logsumexp(minus, axis=0)
    return -np.mean(weights * total)


PARAMS = random_params()
NARROW = cast(PARAMS)
WEIGHTS = np.random.default_rng(1).dirichlet(np.ones(27)) * 27


# --- the energy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [EVERY, np.eye(STATES, dtype=np.float32)[EVERY]], ids=["integers", "one-hot"])
def test_energies_and_log_z_are_those_of_the_definition(v):
    np.testing.assert_allclose(energy(NARROW, jnp.asarray(v)), energies(PARAMS, EVERY), rtol=1e-5, atol=1e-5)
    expected = np.average(np.log(probabilities(PARAMS)), weights=WEIGHTS)
    np.testing.assert_allclose(MODEL.log_likelihood(NARROW, pj.Weighted(v, WEIGHTS)), expected, rtol=1e-5)


def assert_gradient(gradient, function, rtol):
    for name, derivatives in gradient.items():
        for index in np.ndindex(derivatives.shape):
            up, down = ({k: p.copy() for k, p in PARAMS.items()} for _ in range(2))
            up[name][index] += 1e-5
            down[name][index] -= 1e-5
            expected = (function(up) - function(down)) / 2e-5
            np.testing.assert_allclose(derivatives[index], expected, rtol=rtol, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    v = jnp.asarray(EVERY)
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(weights * MODEL.energy(p, v))))(NARROW)
    assert_gradient(gradient, lambda p: np.mean(WEIGHTS * energies(p, EVERY)), 1e-4)
    value, gradient = jax.jit(jax.value_and_grad(MODEL.pseudo_likelihood_loss))(NARROW, pj.Weighted(v, weights))
    np.testing.assert_allclose(value, loss(PARAMS, EVERY, WEIGHTS), rtol=1e-5)
    assert_gradient(gradient, lambda p: loss(p, EVERY, WEIGHTS), 1e-4)


def test_the_metric_pseudo_log_likelihood_is_in_the_mean_that_of_the_loss():
    metric = pj.pseudo_log_likelihood(MODEL, jnp.tile(jnp.asarray(EVERY), (2000, 1)))
    actual = jax.jit(lambda p: metric(pj.TrainState(p, (), ()), KEY))(NARROW)
    np.testing.assert_allclose(actual, -loss(PARAMS, EVERY, 1.0), rtol=0.01)


def test_energies_and_sweeps_in_blocks_of_rows_are_the_same(monkeypatch):
    v, key = jnp.asarray(EVERY), jax.random.key(3)

    def results():
        value = jax.value_and_grad(lambda p: jnp.mean(MODEL.energy(p, v) ** 2))(NARROW)
        return *value, MODEL.transition(NARROW, v, key)

    whole = jax.jit(results)()
    monkeypatch.setattr(potts, "_most_numbers", lambda: 5 * NARROW["fields"].size)  # five blocks and two rows
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.jit(lambda: results())(), whole)


def test_half_precision_is_computed_in_float32():
    half, v = cast(PARAMS, jnp.bfloat16), jnp.asarray(EVERY)
    rounded = cast(half)
    np.testing.assert_array_equal(energy(half, v), energy(rounded, v))


def test_a_single_site_has_no_couplings():
    model, v = rbm.PottsModel(2), np.array([[0], [1], [1], [1]])
    params = model.init(v)
    np.testing.assert_allclose(model.log_likelihood(params, v), np.log(0.25) / 4 + np.log(0.75) * 3 / 4, rtol=1e-5)


# --- sampling ----------------------------------------------------------------------------------------


def test_a_sweep_keeps_the_distribution_and_is_reversible():
    """From exact samples, each with a key: pairs (before, after) are as frequent as (after, before)."""
    rng, n = np.random.default_rng(0), 40_000
    before = rng.choice(27, size=n, p=probabilities(PARAMS))
    sweep = jax.jit(jax.vmap(lambda v, key: MODEL.transition(NARROW, v[None], key)[0]))
    after = np.asarray(sweep(jnp.asarray(EVERY[before]), jax.random.split(KEY, n))) @ STATES ** np.arange(2, -1, -1)
    assert np.mean(before != after) > 0.3
    assert stats.chisquare(np.bincount(after, minlength=27), probabilities(PARAMS) * n).pvalue > 1e-3
    pairs = np.zeros((27, 27))
    np.add.at(pairs, (before, after), 1)
    there, back = pairs[np.triu_indices(27, 1)], pairs.T[np.triu_indices(27, 1)]
    many = there + back > 10
    squares = (there - back)[many] ** 2 / (there + back)[many]
    assert stats.chi2.sf(squares.sum(), many.sum()) > 1e-3


def test_states_keep_their_form_and_dtype():
    moved = transition(NARROW, EVERY.astype(np.uint8), KEY)
    one_hot = transition(NARROW, np.eye(STATES, dtype=np.float32)[EVERY], KEY)
    assert (moved.dtype, one_hot.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(one_hot, np.eye(STATES)[np.asarray(moved)])


def test_a_sweep_is_one_loop_whatever_the_number_of_sites():
    def operations(sites):
        params = cast(random_params(sites))
        return len(jax.make_jaxpr(MODEL.transition)(params, np.zeros((2, sites), np.int32), KEY).eqns)

    assert operations(40) == operations(4)


def test_imputed_sites_have_the_conditional_distribution_and_any_number_of_sweeps_is_compiled_once():
    v = jnp.tile(jnp.asarray([[1, -7, 99]]), (20_000, 1))  # what is missing is not looked at
    before, missing = potts._clamped_sweeps._cache_size(), jnp.broadcast_to(jnp.array([False, True, True]), v.shape)
    for steps in (1, 2, 20):
        drawn = MODEL.impute(NARROW, v, missing, KEY, steps=steps)
    assert potts._clamped_sweeps._cache_size() == before + 1
    np.testing.assert_array_equal(drawn[:, 0], 1)
    p = probabilities(PARAMS)[EVERY[:, 0] == 1]
    counts = np.bincount(np.asarray(3 * drawn[:, 1] + drawn[:, 2]), minlength=9)
    assert stats.chisquare(counts, p / p.sum() * 20_000).pvalue > 1e-3


# --- the gauge ---------------------------------------------------------------------------------------


def test_the_zero_sum_gauge_changes_no_probability_and_is_reached_at_once():
    model, params = rbm.PottsModel(5), cast(random_params(6, 5, scale=0.5))
    v = np.random.default_rng(0).integers(0, 5, size=(1000, 6))
    gauged = jax.jit(model.zero_sum)(params)
    log_p = jax.jit(lambda p: -model.energy(p, v) - model.log_partition(p))
    plain, changed = log_p(params), log_p(gauged)
    np.testing.assert_allclose(changed, plain, atol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), jax.jit(model.zero_sum)(gauged), gauged)
    for sums in (gauged["fields"].sum(axis=1), *(gauged["couplings"].sum(axis=axis) for axis in (1, 2))):
        np.testing.assert_allclose(sums, 0, atol=1e-5)


def test_what_the_gauge_leaves_free_does_not_matter():
    """Fields of one site given the other, moved to couplings: the same projection and contacts, a larger Σ J²."""
    rng, moved = np.random.default_rng(2), {name: p.copy() for name, p in PARAMS.items()}
    for pair, (i, j) in enumerate(combinations(range(SITES), 2)):
        a, b = rng.normal(size=(2, STATES))
        moved["couplings"][pair] += a[:, None] + b[None]
        moved["fields"][i] -= a
        moved["fields"][j] -= b
    expected, actual = (zero_sum(cast(p)) for p in (PARAMS, moved))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)
    np.testing.assert_allclose(contact_scores(cast(moved)), contact_scores(NARROW), rtol=1e-4, atol=1e-5)
    for params in (PARAMS, moved):
        assert np.sum(params["couplings"] ** 2) > np.sum(expected["couplings"] ** 2)


# --- likelihood and training -------------------------------------------------------------------------


def test_annealing_finds_log_z_and_is_traced_once_for_any_number_of_steps():
    data = np.random.default_rng(3).integers(0, STATES, size=(50, SITES))
    annealing = MODEL.annealing(NARROW, data, 1000, jax.random.key(1))
    traced = chex.assert_max_traces(
        lambda params, v, key: MODEL.transition(params, v, key), n=2
    )  # shapes, then the loop
    model = pj.Model(MODEL.energy, traced, integer_states=True)
    for steps in (2, 5, 10):
        estimate = pj.annealed_importance_sampling(model, annealing, jax.random.key(2), steps=steps)
    assert 1e-4 < estimate.error < 0.1
    assert abs(estimate.log_z - logsumexp(-energies(PARAMS, EVERY))) < 4 * estimate.error


@pytest.mark.slow  # mostly compiles: a run with a tracker, and `mixing`
def test_training_with_weights_regularization_and_a_tracked_likelihood_makes_data_likely():
    rng = np.random.default_rng(0)
    rows = rng.choice(27, size=200, p=probabilities(random_params(scale=1.5)))
    data = pj.Weighted(EVERY[rows], rng.random(200).astype(np.float32))
    start = MODEL.init(data)
    estimate = pj.AnnealedEstimate(MODEL.log_partition(start), MODEL.annealing(start, data, 200, KEY).start)
    optimizer = pj.chain(
        pj.add_decayed_weights(1e-3, where=lambda path: path == "couplings"),
        pj.adam(0.02),
        pj.project(MODEL.zero_sum),
        pj.track_log_partition(MODEL, estimate, KEY),
    )
    pcd = pj.persistent_contrastive_divergence(MODEL, num_chains=200)
    result = pj.fit(start, optimizer, pcd, data, epochs=20, batch_size=40, key=KEY)
    before, after = (MODEL.log_likelihood(p, data) for p in (start, result.params))
    assert after > before + 0.1
    np.testing.assert_allclose(pj.tracked_log_partition(result).log_z, MODEL.log_partition(result.params), atol=0.1)
    np.testing.assert_allclose(result.params["couplings"].sum(axis=1), 0, atol=1e-5)
    assert pj.mixing(MODEL, result.params, result.estimator_state, KEY, steps=40).worst.r_hat < 1.2


# --- sequences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [0.8, 0.5, 1.0])
def test_sequence_weights_count_similar_sequences(identity):
    rng = np.random.default_rng(0)
    v = rng.integers(0, 4, size=(40, 10), dtype=np.uint8)
    v[20:] = np.where(rng.random((20, 10)) < 0.2, 3 - v[:20], v[:20])
    same = sum(v[:, None, i] == v[None, :, i] for i in range(10))
    weights = rbm.sequence_weights(v, identity)
    np.testing.assert_allclose(weights, 1 / (same >= 10 * identity).sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(rbm.sequence_weights(np.eye(4)[v].astype(np.float32), identity), weights)
    assert weights.min() < 1 or identity == 1


def test_contact_scores_are_corrected_norms_of_zero_sum_couplings():
    params, n = random_params(5, 4), 5
    norms = np.zeros((n, n))
    for pair, (i, j) in enumerate(combinations(range(n), 2)):
        block = params["couplings"][pair]
        block = block - block.mean(axis=0) - block.mean(axis=1)[:, None] + block.mean()
        norms[i, j] = norms[j, i] = np.sqrt(np.sum(block**2))
    scores, off = contact_scores(cast(params)), ~np.eye(n, dtype=bool)
    mean = {i: norms[i][off[i]].mean() for i in range(n)}
    for i, j in product(range(n), repeat=2):
        expected = 0 if i == j else norms[i, j] - mean[i] * mean[j] / norms[off].mean()
        np.testing.assert_allclose(scores[i, j], expected, rtol=1e-4, atol=1e-5)


# --- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODEL.init(EVERY + 1), "init: data: expected integers from 0 to 2, got 3 in row 2, column 2; count"),
        (lambda: MODEL.energy(NARROW, EVERY[:, :2]), r"energy: expected states \(rows, 3\) as in params, got shape"),
        (
            lambda: rbm.PottsModel(4).energy(NARROW, EVERY),
            r"energy: params: expected fields \(n, 4\) and couplings \(n \(n - 1\) / 2, 4, 4\), got \(3, 3\)",
        ),
        (lambda: MODEL.log_partition(cast(random_params(13))), "13 sites of 3 states are too many; expected at most"),
        (lambda: MODEL.impute(NARROW, EVERY, np.zeros(3, bool), KEY), r"missing: expected bools of shape \(27, 3\)"),
        (lambda: MODEL.annealing(NARROW, EVERY[:, :2], 5, KEY), r"annealing: data: expected states \(rows, 3\)"),
        (lambda: rbm.sequence_weights(EVERY[0]), r"sequence_weights: v: expected sequences \(rows, sites\), got shape"),
        (lambda: rbm.sequence_weights(EVERY * np.nan), "sequence_weights: v: expected finite numbers, got nan"),
        (lambda: contact_scores({"layers": [], "weights": []}), r"contact_scores: params: expected .* got \['layers'"),
        (lambda: rbm.sequence_weights(EVERY, 80), r"sequence_weights: identity must be in \[0, 1\], got 80"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_training_on_wrong_states_by_pseudo_likelihood_does_not_end_well():
    """A loss is traced, so it cannot name the row; `loss_gradient` accepts any data."""
    estimator = pj.loss_gradient(MODEL.pseudo_likelihood_loss)
    result = pj.fit(cast(PARAMS), pj.sgd(0.1), estimator, EVERY + 1, epochs=2, batch_size=len(EVERY), key=KEY)
    assert pj.Outcome(result.outcome) is pj.Outcome.NON_FINITE


def test_two_states_may_be_bools_and_a_mask_may_be_a_list():
    model, v = rbm.PottsModel(2), np.array([[0, 1, 1], [1, 0, 1]])
    params = model.init(v) | {"couplings": jnp.ones((3, 2, 2)).at[0, 1, 1].set(2)}
    np.testing.assert_array_equal(model.energy(params, v > 0), model.energy(params, v))
    completed = model.impute(params, v > 0, [[True, False, False]] * 2, KEY, steps=1)
    assert completed.dtype == bool
    np.testing.assert_array_equal(completed[:, 1:], v[:, 1:] > 0)


def test_without_couplings_all_scores_are_zero():
    np.testing.assert_array_equal(contact_scores(MODEL.init(EVERY)), np.zeros((3, 3)))
