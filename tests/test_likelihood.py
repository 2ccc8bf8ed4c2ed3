"""log Z by annealing and along a run: against sums over all states in float64, on machines small enough for that."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

import paysage_jax as pj
from paysage_jax import rbm
from paysage_jax._ebm.annealing import variance_of_log_mean
from tests.helpers.problems import first_update, rbm_tree, row, scaled
from tests.helpers.runs import assert_identical, compilations

MODEL = rbm.RBM()
STATES = np.array(list(product((0.0, 1.0), repeat=8)))
DATA = np.float32(np.random.default_rng(0).integers(0, 2, size=(60, 8)) | np.eye(8, dtype=int)[np.arange(60) % 8])


def machine(seed, size=1.0, visible=8, hidden=5):
    """In NumPy, so that making the cases compiles nothing."""
    return scaled(jax.tree.map(np.asarray, rbm_tree(visible, hidden, seed)), size)


def minus_energies(params, v):
    """-F(v) in float64."""
    (b, c), W = [np.asarray(x["loc"], np.float64) for x in params["layers"]], params["weights"][0]["matrix"]
    return v @ b + np.logaddexp(0, c + v @ np.asarray(W, np.float64)).sum(axis=1)


def exact(params):
    return logsumexp(minus_energies(params, STATES))


def draw(params, count, seed=0):
    """Samples of the model, from the probabilities of all states."""
    log_p = minus_energies(params, STATES)
    chosen = np.random.default_rng(seed).choice(len(STATES), size=count, p=np.exp(log_p - logsumexp(log_p)))
    return np.float32(STATES[chosen])


# --- annealing ---------------------------------------------------------------------------------------

# Compiled as a whole: step by step, each of these has dozens of small programs.
annealing = jax.jit(MODEL.annealing, static_argnums=2)
on_path = jax.jit(lambda path, beta: path(beta))


@jax.jit
def annealed(annealing, key, steps, samples=None):
    """Annealed forward, or back from samples."""
    if samples is None:
        return pj.annealed_importance_sampling(MODEL, annealing, key, steps)
    return pj.reverse_annealed_importance_sampling(MODEL, annealing._replace(start=None), samples, key, steps)


@partial(jax.jit, static_argnames="runs")
def many_annealed(annealing, key, runs, steps, samples=None):
    """Several runs, each with an equal part of the states."""

    def estimate(start, samples, key):
        return annealed(annealing._replace(start=start), key, steps, samples)._replace(chains=None)

    shares = jax.tree.map(lambda v: v.reshape(runs, -1, v.shape[1]), (annealing.start, samples))
    return jax.vmap(estimate)(*shares, jax.random.split(key, runs))


log_prob = jax.jit(partial(pj.reverse_ais_log_prob, MODEL), static_argnames="num_chains")


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_annealing_agrees_with_the_sum_within_its_error(reverse):
    params, chains, runs = machine(1, 1.5), 100, 40
    forward = annealing(params, DATA, chains * runs, jax.random.key(0))
    samples = draw(params, chains * runs) if reverse else None
    estimates = jax.tree.map(np.asarray, many_annealed(forward, jax.random.key(1), runs, 30, samples))
    log_z, error, size = estimates.log_z, estimates.error, estimates.effective_sample_size
    deviations = (log_z - exact(params)) / error
    assert np.all(error > 1e-3)
    assert np.abs(deviations).max() < 4
    assert abs(deviations.mean()) < 4 / np.sqrt(runs)
    # The stated error equals the spread of the estimates, which 40 runs determine to 11 percent.
    assert 0.65 < log_z.std(ddof=1) / error.mean() < 1.5
    # At least the variance of the mean weight.
    assert np.all(error**2 * chains > 0.95 * (chains / size - 1))


def test_the_error_holds_also_if_few_weights_dominate():
    """Log weights are normal, or a fifth of the chains is stuck far below."""
    random, variance = np.random.default_rng(0), jax.jit(jax.vmap(variance_of_log_mean))
    for n in (20, 100, 1000):
        for s2, far in ((0.01, 0), (1, 0), (3, 0), (8, 0), (0.01, 30), (1, 30), (3, 30)):
            stuck = random.random((2000, n)) < (0.2 if far else 0)
            log_weights = random.normal(size=(2000, n)) * np.sqrt(s2) - far * stuck
            errors = logsumexp(log_weights, axis=1) - np.log(n) - (s2 / 2 + np.log(0.8 if far else 1))
            deviations = np.abs(errors) / np.sqrt(variance(log_weights.astype(np.float32)))
            # 4.6 and 0.006 percent if the logarithm were normal; a sample of 20 weights does not show their tail.
            assert np.mean(deviations > 2) < (0.15 if n == 20 else 0.08)
            assert np.mean(deviations > 4) < (0.04 if n == 20 else 0.006)
            if s2 < 2:  # Not exaggerated either.
                assert np.sqrt(np.mean(deviations**2)) > (0.6 if n == 20 else 0.8)


def test_the_error_of_extreme_weights():
    variance = jax.jit(variance_of_log_mean)
    assert variance(jnp.zeros(7)) == 0
    np.testing.assert_allclose(variance(jnp.array([-1e-4, 0.0, 1e-4])), 1e-8 * 2 / 9, rtol=1e-3)
    assert 5 < variance(jnp.array([-1000.0, 0.0, 1000.0])) < 100
    assert np.isnan(variance(jnp.zeros(1)))


@pytest.mark.slow
def test_annealing_of_gaussian_units():
    params = machine(2, 1.0, visible=4)
    params["layers"][0]["log_var"] = np.linspace(-1, 0.5, 4, dtype=np.float32)
    data = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    model = rbm.RBM(visible=rbm.Gaussian())
    path = model.annealing(params, data, 1000, jax.random.key(0))
    estimate = pj.annealed_importance_sampling(model, path, jax.random.key(1), steps=200)
    assert estimate.error < 0.05
    assert abs(estimate.log_z - model.log_partition(params)) < 4 * estimate.error


def test_the_path_starts_at_the_means_of_the_data_with_their_partition_function():
    path, start, log_z = annealing(machine(3), DATA, 20_000, jax.random.key(0))
    np.testing.assert_allclose(log_z, exact(on_path(path, 0.0)), rtol=1e-6)
    mean = DATA.mean(axis=0)
    assert np.all(np.abs(np.mean(start, axis=0) - mean) <= 4 * np.sqrt(mean * (1 - mean) / len(start)))
    jax.tree.map(np.testing.assert_array_equal, on_path(path, 1.0), machine(3))


@pytest.mark.slow
def test_forward_tends_to_be_low_and_reverse_high():
    """With one step from independent pixels, the weights spread so far that every machine shows it."""
    for seed in range(4):
        params = machine(seed, 2.0)
        forward = annealing(params, DATA, 2000, jax.random.key(seed))
        low, high = (
            np.asarray(many_annealed(forward, jax.random.key(1), 200, 1, samples).log_z)
            for samples in (None, draw(params, 2000, seed))
        )
        assert low.mean() + 2 * low.std() / np.sqrt(200) < exact(params) < high.mean() - 2 * high.std() / np.sqrt(200)


@pytest.mark.slow
def test_log_z_is_between_the_bounds():
    """Such accurate estimates are on either side of log Z because of noise; the bounds are not."""
    sides = set()
    for seed in range(8):
        params = machine(seed, 1.5)
        path = annealing(params, DATA, 2000, jax.random.key(seed))
        keys = jax.random.split(jax.random.key(seed + 100))
        forward, back = annealed(path, keys[0], 100), annealed(path, keys[1], 100, draw(params, 2000, seed))
        assert forward.bound < exact(params) < back.bound < forward.bound + 0.5
        assert forward.bound < forward.log_z
        assert back.log_z < back.bound
        sides |= {("forward", bool(forward.log_z < exact(params))), ("back", bool(back.log_z < exact(params)))}
    assert len(sides) == 4


def test_reverse_ais_is_below_log_p_and_comes_close_with_steps_and_chains():
    for seed in range(4):
        params = machine(seed, 1.5)
        path = annealing(params, DATA, 2000, jax.random.key(0))._replace(start=None)
        v = draw(params, 400)
        log_p = minus_energies(params, v) - exact(params)
        few, many, chains = (
            np.asarray(log_prob(path, v, jax.random.key(2), **options)) - log_p
            for options in (dict(steps=5), dict(steps=300), dict(steps=5, num_chains=50))
        )
        error = few.std() / np.sqrt(len(v))
        assert few.mean() < -4 * error
        assert abs(many.mean()) < 0.03 < -few.mean()
        assert few.mean() + 4 * error < chains.mean() < 0.03


def test_chains_of_the_estimate_are_samples_of_the_end():
    params = machine(4, 1.5)
    chains = []
    for start_key, key in jax.random.split(jax.random.key(0), (10, 2)):
        chains.extend(np.asarray(annealed(annealing(params, DATA, 2000, start_key), key, steps=20).chains))
    log_p = minus_energies(params, STATES)
    mean = np.exp(log_p - logsumexp(log_p)) @ STATES
    assert np.abs(np.mean(chains, axis=0) - mean).max() < 5 * 0.5 / np.sqrt(10_000)


def test_other_parameters_and_more_steps_do_not_recompile():
    def estimate(seed, steps):
        return pj.annealed_importance_sampling(MODEL, start_of[seed], jax.random.key(1), steps)

    start_of = [annealing(machine(seed), DATA, 2000, jax.random.key(0)) for seed in range(2)]
    estimate(0, 3)
    with compilations() as programs:
        estimate(1, 4)
    assert programs == []


@pytest.mark.slow
def test_other_parameters_do_not_recompile_paths_and_bounds():
    def estimate(seed, steps):
        annealing = MODEL.annealing(machine(seed), DATA, 50, jax.random.key(0))
        MODEL.log_partition(machine(seed))
        return pj.reverse_ais_log_prob(MODEL, annealing, DATA, jax.random.key(1), steps)

    estimate(0, 3)
    with compilations() as programs:
        estimate(1, 4)
    assert programs == []


# --- along a run -------------------------------------------------------------------------------------


def tracker(params, count=400, key=0, log_z=None, chains=None, **options):
    log_z = exact(params) if log_z is None else log_z
    chains = draw(params, count) if chains is None else chains
    return pj.track_log_partition(MODEL, pj.AnnealedEstimate(log_z, chains), jax.random.key(key), **options)


@jax.jit
def follow(track, params, updates):
    """The states and parameters after every update."""

    def step(carry, update):
        params, state = carry
        update, state = track.update(update, state, params)
        params = pj.apply_updates(params, update)
        return (params, state), (params, state)

    return jax.lax.scan(step, (params, track.init(params)), updates)[1]


once = jax.jit(lambda track, updates, params: track.update(updates, track.init(params), params))
at_start = jax.jit(lambda track, params: track.init(params))
log_partition = jax.jit(pj.tracked_log_partition)
STEPS = 100  # of all walks: one program


def walk(steps=STEPS, size=0.05, seed=5):
    """Updates that lead from machine(0) to machine(1, 2) with a detour, in so many steps, and then zero updates."""
    rng = np.random.default_rng(seed)

    def drift(a, b):
        noise = size * rng.normal(size=(steps, *a.shape))
        updates = (b - a)[None] / steps + noise - noise.mean(axis=0)
        return np.concatenate([updates, np.zeros((STEPS - steps, *a.shape))]).astype(a.dtype)

    return jax.tree.map(drift, machine(0), machine(1, 2.0))


@pytest.mark.slow_unless("{'reanneal_every': 40, 'reanneal_steps': 60, 'every': 7}")
@pytest.mark.parametrize(
    "options",
    [
        {"resample_below": 0.9},
        {"steps_per_update": 3, "every": 5},
        {"reanneal_every": 40, "reanneal_steps": 60, "every": 7},
    ],
    ids=str,
)
def test_log_z_is_followed_within_its_error(options):
    updates, deviations = walk(), []
    for seed in range(10):
        track = tracker(machine(0), chains=draw(machine(0), 400, seed), key=seed, **options)
        params, states = jax.tree.map(np.asarray, follow(track, machine(0), updates))
        for t in (49, 99) if "reanneal_every" not in options else (39, 79):
            at = log_partition(row(states, t))
            truth = exact(row(params, t))
            deviations.append((at.log_z - truth) / at.error)
            assert 0.005 < at.error < 0.3
            assert abs(at.log_z - truth) < 0.5
    assert "resample_below" not in options or states.resamplings[-1] >= 3
    # Chains that forget slowly make the error larger than it is said to be, but not many times.
    assert np.sqrt(np.mean(np.square(deviations))) < 2.5
    assert abs(np.mean(deviations)) < 4 / np.sqrt(10)


def test_a_run_starts_from_the_estimate_of_annealing():
    key, params = jax.random.key(0), machine(1)
    estimate = annealed(annealing(params, DATA, 2000, key), key, steps=20)
    known = pj.AnnealedEstimate(estimate.log_z, estimate.chains)
    whole, parts = (at_start(pj.track_log_partition(MODEL, start, key), params) for start in (estimate, known))
    assert_identical(whole, parts)
    assert log_partition(whole).log_z == estimate.log_z


def test_between_times_nothing_moves_but_the_count():
    params, states = jax.tree.map(np.asarray, follow(tracker(machine(0), every=3), machine(0), walk()))
    due = np.arange(2, STEPS + 1) % 3 == 0  # from each update to the next
    for leaf in jax.tree.leaves(states._replace(step=(), start=())):
        assert not np.any((leaf[1:] != leaf[:-1])[~due])
    assert (states.chains[1:] != states.chains[:-1]).any(axis=(1, 2)).tolist() == due.tolist()
    for t, of in ((0, None), (1, None), (2, 2), (4, 2), (5, 5), (6, 5)):
        assert_identical(row(states.params, t), machine(0) if of is None else row(params, of))
    np.testing.assert_array_equal(states.step, np.arange(1, STEPS + 1))


def test_reannealing_mends_what_was_lost():
    updates, one_state = walk(60), np.zeros((400, 8), np.float32)
    params, lost = follow(tracker(machine(0), chains=one_state), machine(0), updates)
    _, mended = follow(tracker(machine(0), reanneal_every=60, reanneal_steps=200), machine(0), updates)
    params, lost, mended = (row(jax.tree.map(np.asarray, x), 59) for x in (params, lost, mended))
    truth = exact(params)
    lost, mended = (log_partition(states) for states in (lost, mended))
    assert abs(lost.log_z - truth) > 4 * mended.error > abs(mended.log_z - truth)
    assert mended.resamplings <= 1


def test_zero_updates_leave_log_z_and_weights_alone():
    zeros = jax.tree.map(lambda x: np.zeros((STEPS, *x.shape), x.dtype), machine(1))
    _, states = jax.tree.map(np.asarray, follow(tracker(machine(1)), machine(1), zeros))
    assert np.abs(states.log_weights[:20]).max() < 2e-5  # rounding of 20 differences of energies of about 10
    np.testing.assert_array_equal(states.log_z, np.float32(exact(machine(1))))
    assert not states.resamplings.any()
    assert (states.chains[0] != states.chains[-1]).any()


def test_updates_pass_and_the_gradients_chains_are_another_matter():
    gradient = jax.tree.map(lambda x: 0.1 * x, machine(1))
    plain, tracked = (pj.chain(pj.sgd(0.1), *last) for last in ((), (tracker(machine(0)),)))
    assert_identical(*(first_update(optimizer, gradient, machine(0)) for optimizer in (tracked, plain)))


def test_a_shift_of_the_energy_moves_log_z_the_other_way():
    """The energy gets a parameter that only shifts it."""

    def energy(params, v):
        return MODEL.energy(params["model"], v) + params["shift"]

    def transition(params, v, key):
        return MODEL.transition(params["model"], v, key)

    params, start = {"model": machine(0), "shift": np.float32(0)}, pj.AnnealedEstimate(1.5, draw(machine(0), 50))
    track = pj.track_log_partition(pj.Model(energy, transition), start, jax.random.key(0))
    updates = {"model": jax.tree.map(np.zeros_like, machine(0)), "shift": np.float32(3.0)}
    _, state = once(track, updates, params)
    np.testing.assert_allclose(log_partition(state).log_z, 1.5 - 3, rtol=1e-6)
    assert log_partition(state).effective_sample_size == pytest.approx(50, rel=1e-5)


def test_resampling_keeps_log_z_and_takes_each_chain_by_its_weight():
    params = machine(0)
    big = jax.tree.map(lambda x: 1.5 * x, machine(7))
    never, always = (tracker(params, 1000, resample_below=share) for share in (0.0, 1.0))
    (_, kept), (_, drawn) = (jax.tree.map(np.asarray, once(track, big, params)) for track in (never, always))
    np.testing.assert_allclose(log_partition(kept).log_z, log_partition(drawn).log_z, rtol=1e-6)
    np.testing.assert_allclose(log_partition(kept).error, log_partition(drawn).error, rtol=1e-3)
    assert (kept.resamplings, drawn.resamplings) == (0, 1)
    assert not drawn.log_weights.any()
    weights = softmax(kept.log_weights)
    # Systematic: of every state as many as its share of the weights, but for one at each end of a run of equal chains.
    np.testing.assert_allclose(drawn.chains.mean(axis=0), weights @ kept.chains, atol=0.03)


def test_under_vmap_every_run_is_tracked_as_if_alone():
    """One resamples, the other does not; their keys and updates differ."""
    start, direction = machine(0), machine(7)
    seeds, shares, sizes = np.arange(2), np.float32([0.0, 1.0]), np.float32([0.5, 1.5])

    def tracked(seed, share, size):
        track = tracker(start, 1000, key=seed, resample_below=share)
        return once(track, jax.tree.map(lambda x: size * x, direction), start)[1]

    mapped = jax.tree.map(np.asarray, jax.jit(jax.vmap(tracked))(seeds, shares, sizes))
    for i in range(2):
        alone, of_mapped = tracked(int(seeds[i]), float(shares[i]), sizes[i]), row(mapped, i)
        assert (alone.resamplings, of_mapped.resamplings) == (i, i)
        np.testing.assert_allclose(log_partition(of_mapped)[:3], log_partition(alone)[:3], rtol=1e-4)
        assert np.mean(of_mapped.chains == np.asarray(alone.chains)) > 0.999


# --- under fit ---------------------------------------------------------------------------------------

METRICS = {
    "likelihood": pj.tracked_log_likelihood(MODEL, DATA),
    "log Z": lambda state, key: pj.tracked_log_partition(state),
    "exact": lambda state, key: MODEL.log_likelihood(state.params, DATA, MODEL.log_partition(state.params)),
}


def run(key=0, rate=0.1, epochs=6, metrics=METRICS, **more):
    track = tracker(machine(0, 0.1), reanneal_every=35, reanneal_steps=50, key=key)
    optimizer = pj.chain(pj.center(), pj.sgd(rate), pj.average_parameters(), track, pj.track_convergence(0.0))
    estimator = pj.persistent_contrastive_divergence(MODEL)
    options = {"epochs": epochs, "batch_size": 10, "key": jax.random.key(1), "metrics": metrics} | more
    return pj.fit(machine(0, 0.1), optimizer, estimator, DATA, **options)


stopping = pj.early_stopping("likelihood", patience=10, maximize=True)
run_to_the_stop = cache(partial(run, rate=0.3, epochs=60, early_stopping=stopping))


@pytest.mark.slow
def test_fit_tracks_the_likelihood_and_stops_by_it():
    result = run_to_the_stop()
    history = result.history
    error = np.abs(history["likelihood"] - history["exact"])
    assert error.max() < 0.3
    assert np.all(error < 4 * history["log Z"].error + 1e-4)
    assert history["exact"].max() > history["exact"][0] + 0.05
    assert result.best.value == history["likelihood"].max()


def test_a_resumed_run_ends_like_an_uninterrupted_one():
    options = {"rate": 0.3, "early_stopping": stopping}
    assert_identical(run(epochs=60, resume=run(epochs=3, **options), **options), run_to_the_stop())


@pytest.mark.slow
def test_a_run_from_a_checkpoint_ends_like_an_uninterrupted_one(tmp_path):
    run(epochs=3, checkpoints=tmp_path)
    assert_identical(run(checkpoints=tmp_path), run())


@pytest.mark.slow
def test_vmap_is_a_loop():
    rates = (0.1, 0.2)
    mapped = jax.vmap(partial(run, metrics={"likelihood": METRICS["likelihood"]}))(jnp.arange(2), jnp.array(rates))
    for i, rate in enumerate(rates):
        alone = run(i, rate).history["likelihood"]
        np.testing.assert_allclose(mapped.history["likelihood"][i], alone, atol=0.02)


@jax.jit
def measured(metric, params, optimizer_state):
    return metric(pj.TrainState(params, optimizer_state, ()), jax.random.key(1))


@jax.jit
def guard(metric, params):
    return metric.guard(params, jax.random.key(0))


def test_the_guard_holds_where_chains_are_lost():
    """The probabilities of the 8 states with one unit on, each seen many times, sum to at most 1."""
    params = machine(3, 2.0)
    v = np.repeat(np.eye(8, dtype=np.float32), 5, axis=0)
    metric = pj.tracked_log_likelihood(MODEL, v)
    bound = logsumexp(minus_energies(params, np.eye(8)))
    np.testing.assert_allclose(guard(metric, params), bound, rtol=1e-5)
    mean = minus_energies(params, np.eye(8)).mean()
    for log_z, expected in ((-30.0, bound), (30.0, 30.0)):
        state = at_start(tracker(params, log_z=log_z), params)
        np.testing.assert_allclose(measured(metric, params, state), mean - expected, rtol=1e-5)


def from_fair_coins(params, key):
    start_key, key = jax.random.split(key)
    return pj.annealed_importance_sampling(MODEL, MODEL.annealing(params, None, 200, start_key), key, steps=100).log_z


@pytest.mark.slow
def test_annealing_from_elsewhere_finds_what_data_and_chains_do_not_visit():
    """A second mode, of ones where the data have zeros: e¹⁰ times the weight of the first."""
    ones = np.ones(8, np.float32)
    params = machine(0, 0.0)
    params["weights"][0]["matrix"] = np.tile(np.float32([8, -8, 0, 0]), (8, 1))
    params["layers"][1]["loc"] = np.float32([-40, 10, 0, 0])
    data = np.zeros((50, 8), np.float32)
    track = tracker(params, log_z=float(minus_energies(params, data[:1])[0]), chains=data)
    state = at_start(track, params)
    lost, guarded = (pj.tracked_log_likelihood(MODEL, data, at_least=a) for a in (None, from_fair_coins))
    expected = minus_energies(params, np.zeros((1, 8)))[0] - exact(params)
    assert minus_energies(params, ones[None])[0] - minus_energies(params, np.zeros((1, 8)))[0] > 5
    assert measured(lost, params, state) > expected + 5
    assert measured(guarded, params, state) == pytest.approx(expected, abs=0.5)


def test_a_density_has_no_guard():
    params = machine(3, visible=2)
    params["layers"][0]["log_var"] = np.full(2, -10.0, np.float32)
    metric = partial(pj.tracked_log_likelihood, rbm.RBM(rbm.Gaussian()))
    for v, options in (([[0.5, 0.2]], {}), ([[1.0, 0.0]], {"discrete": False})):
        assert guard(metric(np.float32(v), **options), params) == -np.inf
    bounded = metric(np.float32([[1.0, 0.0]]), at_least=lambda params, key: jnp.float32(-2.0), discrete=False)
    assert guard(bounded, params) == -2


# --- mistakes ----------------------------------------------------------------------------------------


def test_mistakes_are_named():
    good = dict(estimate=pj.AnnealedEstimate(0.0, DATA), key=jax.random.key(0))
    for name, value, message in [
        ("estimate", pj.AnnealedEstimate(float("nan"), DATA), "estimate.log_z must be in"),
        ("estimate", pj.AnnealedEstimate(0.0, np.zeros((0, 8), np.float32)), "estimate.chains: expected states"),
        ("estimate", 0.0, r"estimate must be an AnnealedEstimate\(log_z, chains\), got float"),
        ("key", 3, r"key must be a key, jax.random.key\(0\), got 3"),
        ("steps_per_update", 0, "steps_per_update must be a positive integer"),
        ("every", 0, "every must be a positive integer"),
        ("resample_below", 1.1, r"resample_below must be in \[0, 1\]"),
        ("reanneal_every", 0, "reanneal_every must be a positive integer"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            pj.track_log_partition(MODEL, **(good | {name: value}))

    gaussian = machine(0, visible=2)
    gaussian["layers"][0]["log_var"] = jnp.zeros(2)
    track = pj.track_log_partition(MODEL, **good)
    with pytest.raises(ValueError, match="track_log_partition belongs last"):
        pj.chain(track, pj.sgd(0.1))
    with pytest.raises(ValueError, match="needs the parameters"):
        track.update(machine(0), track.init(machine(0)))
    with pytest.raises(TypeError, match="expected a state of type LogPartitionState"):
        track.update(machine(0), (), machine(0))
    with pytest.raises(ValueError, match="expected one track_log_partition in the state, found 0"):
        pj.tracked_log_partition(pj.sgd(0.1).init(machine(0)))
    many = jax.tree.map(lambda x: np.stack([x, x]), at_start(track, machine(0)))
    with pytest.raises(ValueError, match="the state of one run, got many"):
        pj.tracked_log_partition(many)
    assert jax.vmap(log_partition)(many).log_z.shape == (2,)
    with pytest.raises(TypeError, match=r"track_log_partition: estimate.chains\[0\]: expected an array, got float"):
        pj.track_log_partition(MODEL, **(good | {"estimate": pj.AnnealedEstimate(0.0, [0.0])}))
    with pytest.raises(TypeError, match=r"tracked_log_likelihood: v\[0\]: expected an array, got float"):
        pj.tracked_log_likelihood(MODEL, [0.0])
    with pytest.raises(ValueError, match=r"annealing: data\[:, 1\] is constant"):
        rbm.RBM(rbm.Gaussian()).annealing(gaussian, jnp.array([[0.0, 1.0], [2.0, 1.0]]), 5, jax.random.key(0))
    forward, key = annealing(machine(0), DATA, 5, jax.random.key(0)), jax.random.key(0)
    empty, narrow = np.zeros((0, 8), np.float32), np.zeros((5, 7), np.float32)
    for name, call in {
        "annealing.start": lambda v: pj.annealed_importance_sampling(MODEL, forward._replace(start=v), key),
        "samples": lambda v: pj.reverse_annealed_importance_sampling(MODEL, forward, v, key),
        "v": lambda v: pj.reverse_ais_log_prob(MODEL, forward, v, key),
        "estimate.chains": lambda v: pj.track_log_partition(MODEL, pj.AnnealedEstimate(0.0, v), key).init(machine(0)),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: expected states, got 0 rows"):
            call(empty)
        with pytest.raises(ValueError, match=r"expected states \(rows, 8\)") as caught:
            call(narrow)
        assert f"These states are {name}." in caught.value.__notes__
    with pytest.raises(ValueError, match=r"annealing: data: expected shape \(rows, 8\) as in params, got \(5, 7\)"):
        MODEL.annealing(machine(0), narrow, 5, key)
    one_log_z = forward._replace(log_z_start=jnp.zeros(1))
    for call in (
        lambda: pj.annealed_importance_sampling(MODEL, one_log_z, key),
        lambda: pj.reverse_annealed_importance_sampling(MODEL, one_log_z, forward.start, key),
        lambda: pj.reverse_ais_log_prob(MODEL, one_log_z, forward.start, key),
    ):
        with pytest.raises(ValueError, match=r"log_z_start: expected a scalar, got shape \(1,\)"):
            call()
    with pytest.raises(ValueError, match=r"^annealed_importance_sampling: steps must be a positive integer"):
        pj.annealed_importance_sampling(MODEL, forward, key, steps=0)
    with pytest.raises(ValueError, match=r"^reverse_annealed_importance_sampling: steps must be a positive integer"):
        pj.reverse_annealed_importance_sampling(MODEL, forward, forward.start, key, steps=0)
    of_all = pj.Model(lambda p, v: jnp.sum(v), MODEL.transition)
    with pytest.raises(ValueError, match=r"expected shape \(5,\), one for each state, got \(\)"):
        pj.annealed_importance_sampling(of_all, forward, key)
    with pytest.raises(ValueError, match=r"end\['layers'\]\[0\]\['loc'\]: expected shape"):
        pj.linear_path(machine(0), machine(0, visible=7))
