"""`mixing`: against closed forms, NumPy in float64, and a machine of two modes with a known barrier."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import paysage_jax as pj
from paysage_jax._ebm.mixing import integrated_autocorrelation_time

KEY = jax.random.key(0)
MACHINE = pj.rbm.RBM()

# --- closed forms ------------------------------------------------------------------------------------


def autoregressive(params, v, key):
    """v <- a v + √(1 - a²) noise, with τ = (1 + a) / (1 - a)."""
    a = params["a"][None]
    return a * v + jnp.sqrt(1 - a**2) * jax.random.normal(key, v.shape)


def linear(params, v):
    return v @ params["b"]


AR = pj.Model(linear, autoregressive)


@pytest.mark.parametrize(("a", "steps"), [(0.5, 2000), pytest.param(0.9, 8000, marks=pytest.mark.slow)])
def test_the_autocorrelation_time_of_ar1_is_the_closed_form_within_5_percent(a, steps):
    """In 38 of 40 seeds, with 128 chains: the standard deviation is 1.2 and 1.5 %."""
    time = jax.jit(integrated_autocorrelation_time)
    found = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=(steps, 128)).astype(np.float32)
        noise[1:] *= np.sqrt(1 - a**2)
        for i in range(1, steps):
            noise[i] += a * noise[i - 1]
        found.append(time(noise))
    error = np.array(found) / ((1 + a) / (1 - a)) - 1
    assert (abs(error) < 0.05).mean() >= 0.95
    assert abs(error.mean()) < 0.01


@pytest.mark.slow
def test_of_independent_units_the_slow_direction_is_the_slowest():
    """Their τ are closed forms: 39 for a = 0.95; the energy depends on a unit with a = 0.5. No history is kept.

    The states of 1,000 steps would take 64 MB.
    """
    a = jnp.repeat(jnp.array([0.0, 0.3, 0.5, 0.7, 0.95]), 4)
    params = {"a": a, "b": jnp.zeros(20).at[8].set(1.0)}
    starts, keys = jax.random.normal(KEY, (4, 200, 20)), jax.random.split(KEY, 4)
    program = jax.jit(jax.vmap(lambda v, key: pj.mixing(AR, params, v, key, 1000))).lower(starts, keys).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4e7
    found = program(starts, keys)
    np.testing.assert_allclose(found.energy.autocorrelation_time, 3, rtol=0.05)
    np.testing.assert_allclose(found.energy.effective_sample_size, 200_000 / 3, rtol=0.05)
    np.testing.assert_allclose(found.slow_direction.autocorrelation_time, 39, rtol=0.15)
    # From the spread of 400 means: a standard deviation of 7 %, which 4 runs and 4 units make 2 %.
    means = found.units.effective_sample_size.reshape(4, 5, 4).mean((0, 2)) / 200_000 * (1 + a[::4]) / (1 - a[::4])
    np.testing.assert_allclose(means, 1, atol=0.09)


# --- NumPy in float64 --------------------------------------------------------------------------------

MODULUS, CHAINS, STEPS = 1009, 6, 60
STATES = {"x": np.arange(3 * CHAINS, dtype=np.int32).reshape(CHAINS, 3) * 37, "y": np.arange(CHAINS, dtype=np.int32)}


def congruential(params, v, key):
    """Deterministic, in integers, so that NumPy can compute every state; x mixes, y grows."""
    return {"x": (v["x"] * 29 + 7) % MODULUS, "y": v["y"] + 1}


def sum_of_states(params, v):
    """A number up to 1,500, exact in half precision."""
    return params["s"] * (v["x"][:, 0] + v["y"]).astype(params["s"].dtype)


COUNTER = pj.Model(sum_of_states, congruential, integer_states=True)


def history(v, steps, skip=0):
    """The states after each of the steps, (steps, chains, ...)."""
    states = []
    for _ in range(skip + steps):
        v = congruential(None, v, None)
        states.append(v)
    return {name: np.stack([state[name] for state in states[skip:]]).astype(np.float64) for name in v}


def r_hat_of(x):
    """Split R-hat of x (steps, chains) as in Gelman et al. (2013), chapter 11.4, and m n var⁺ / B."""
    n = len(x) // 2
    sequences = np.concatenate([x[:n], x[n:]], axis=1)
    m = sequences.shape[1]
    means = sequences.sum(0) / n
    between = n / (m - 1) * ((means - means.mean()) ** 2).sum()
    within = ((sequences - means) ** 2).sum() / (m * (n - 1))
    variance = (n - 1) / n * within + between / n
    return np.sqrt(variance / within), m * n * variance / between


def time_of(x):
    """The sum of autocorrelations, each written as a mean over all pairs, with the window of Sokal."""
    x = x - x.mean()
    time = 1.0
    for lag in range(1, len(x)):
        time += 2 * np.mean(x[lag:] * x[:-lag]) / np.mean(x**2)
        if lag >= 5 * time:
            break
    return time


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float16, marks=pytest.mark.slow)])
def test_all_numbers_are_those_of_the_formulas(dtype):
    """Also for a tree of integers and energies of half precision; warm-up takes 15 of 60 steps."""
    found = pj.mixing(COUNTER, {"s": dtype(1)}, STATES, KEY, STEPS)
    states = history(STATES, STEPS, skip=15)
    energy = states["x"][:, :, 0] + states["y"]
    for statistic in (found.energy, found.slow_direction):  # with one parameter, there is one direction
        np.testing.assert_allclose(statistic.autocorrelation_time, time_of(energy), rtol=1e-4)
        np.testing.assert_allclose(statistic.r_hat, r_hat_of(energy)[0], rtol=1e-5)
        np.testing.assert_allclose(statistic.effective_sample_size, CHAINS * STEPS / time_of(energy), rtol=1e-4)
    units = {"x": [r_hat_of(states["x"][:, :, i]) for i in range(3)], "y": r_hat_of(states["y"])}
    for name, expected in units.items():
        r_hat, size = np.transpose(expected)
        np.testing.assert_allclose(found.units.r_hat[name], r_hat, rtol=1e-5)
        np.testing.assert_allclose(found.units.effective_sample_size[name], size, rtol=1e-4)
        np.testing.assert_allclose(found.units.autocorrelation_time[name], CHAINS * STEPS / size, rtol=1e-4)
    assert {x.dtype for x in jax.tree.leaves(found[:3])} == {np.dtype(np.float32)}
    assert float(found.worst.r_hat) == max(float(np.max(x)) for x in jax.tree.leaves((found.energy[1], found.units[1])))
    assert (int(found.num_chains), int(found.steps)) == (CHAINS, STEPS)


def test_differences_of_starts_are_those_of_welch():
    """In the last window, the states 33 to 63 of 63: windows end after 1, 2, 4, ... 32 transitions and at the limit."""
    other = {"x": STATES["x"][:4] + 500, "y": STATES["y"][:4] + 1000}
    found = pj.compare_starts(COUNTER, {"s": np.float32(1)}, (STATES, other), KEY, steps=63)
    assert not found.agreed
    assert int(found.steps) == 63

    def means(v):
        window = {name: x[32:].mean(0) for name, x in history(v, 63).items()}
        return window | {"energy": window["x"][:, 0] + window["y"]}

    def difference(x, y):
        variances = [((z - z.mean(0)) ** 2).sum(0) / (len(z) - 1) / len(z) for z in (x, y)]
        return abs(x.mean(0) - y.mean(0)) / np.sqrt(sum(variances))

    first, second = means(STATES), means(other)
    np.testing.assert_allclose(found.energies, [first["energy"].mean(), second["energy"].mean()], rtol=1e-5)
    np.testing.assert_allclose(found.energy_difference, difference(first["energy"], second["energy"]), rtol=1e-4)
    for name in "xy":
        np.testing.assert_allclose(found.unit_differences[name], difference(first[name], second[name]), rtol=1e-4)
    np.testing.assert_allclose(found.bound, 3.0902, rtol=1e-4)  # 1 % / (1 energy + 4 units), both tails: a table


def test_chains_that_never_move_are_not_called_mixed():
    still = jax.tree.map(lambda x: np.repeat(x[1:2], CHAINS, axis=0), STATES)
    model = pj.Model(
        lambda params, v: params["s"] * 0.1 + 0 * v["x"][:, 0].astype(float), congruential, integer_states=True
    )
    found = pj.mixing(model, {"s": np.float32(1.7)}, still, KEY, STEPS)
    assert all(np.isnan(x) for x in found.energy)
    assert "have not mixed" in str(found)


# --- two modes ---------------------------------------------------------------------------------------

VISIBLE, HIDDEN = 20, 5
RUNS = np.arange(20)


def two_modes(w):
    """Every visible unit is connected to every hidden unit; the energy is lowest with all units off or all units on."""
    b, c = -w * HIDDEN / 2 * jnp.ones(VISIBLE), -w * VISIBLE / 2 * jnp.ones(HIDDEN)
    return {"layers": [{"loc": b}, {"loc": c}], "weights": [{"matrix": w * jnp.ones((VISIBLE, HIDDEN))}]}


HEALTHY, LOST = two_modes(0.4), two_modes(1.5)
BOTH = np.repeat(np.float32([0, 1]), 25)[:, None] * np.ones((1, VISIBLE), np.float32)
ONE = np.ones((100, VISIBLE), np.float32)


@jax.jit
def largest_r_hat(params, chains):
    return jax.vmap(lambda seed: pj.mixing(MACHINE, params, chains, jax.random.key(seed), 400).worst.r_hat)(RUNS)


@jax.jit
def agreements(params, chains):
    def of(seed):
        start, run = jax.random.split(jax.random.key(seed))
        independent = jax.random.bernoulli(start, 0.5, (100, VISIBLE)).astype(float)
        return pj.compare_starts(MACHINE, params, (chains, independent), run, steps=200).agreed

    return jax.vmap(of)(RUNS)


@pytest.mark.slow
def test_r_hat_flags_runs_whose_chains_have_lost_a_mode_and_not_healthy_ones():
    """50 chains of 400 steps, half of them in each mode, which chains leave never or every few steps."""
    assert (largest_r_hat(LOST, BOTH) >= 1.05).mean() >= 0.95
    assert (largest_r_hat(HEALTHY, BOTH) >= 1.05).mean() <= 0.05


@pytest.mark.slow
def test_a_mode_that_no_chain_visits_leaves_no_trace_but_another_start_finds_it():
    chains = ONE[:50]
    assert (largest_r_hat(LOST, chains) < 1.05).all()
    assert agreements(LOST, ONE).mean() <= 0.05
    assert agreements(HEALTHY, ONE).mean() >= 0.95


# --- where it runs -----------------------------------------------------------------------------------


def test_other_numbers_compile_nothing():
    """Even another number of steps does not recompile `compare_starts`."""
    traced = []

    def energy(params, v):
        traced.append(v)
        return sum_of_states(params, v)

    model, counts = pj.Model(energy, congruential, integer_states=True), []
    for n in (4, 6):
        params, v, key = {"s": np.float32(n)}, jax.tree.map(lambda x, n=n: x + n, STATES), jax.random.key(n)
        pj.mixing(model, params, v, key, 8)
        pj.compare_starts(model, params, (v, v), key, steps=n)
        counts.append(len(traced))
        np.testing.assert_array_equal(v["y"], STATES["y"] + n)  # and no argument is modified
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices("cpu")) < 2, reason="two virtual devices of the CPU are needed")
def test_chains_over_devices_give_the_numbers_of_one():
    cpus = jax.devices("cpu")
    with jax.default_device(cpus[0]):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=cpus[:2])
        params, key = jax.device_put(({"s": np.float32(1)}, KEY), NamedSharding(mesh, P()))
        spread = jax.device_put(STATES, NamedSharding(mesh, P("data")))
        found = pj.mixing(COUNTER, params, spread, key, STEPS)
        compared = pj.compare_starts(COUNTER, params, (spread, spread), key)
        expected = pj.mixing(COUNTER, {"s": np.float32(1)}, STATES, KEY, STEPS)
    chex.assert_trees_all_close(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected), rtol=1e-4)
    assert compared.agreed


# --- what is printed, and what is refused ------------------------------------------------------------


def test_reports_are_read_at_a_glance():
    found = pj.mixing(COUNTER, {"s": np.float32(1)}, STATES, KEY, STEPS)
    lines = str(found).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["energy", "slow direction", "worst unit"]
    assert lines[1].split()[-2] == f"{float(found.energy.r_hat):.3f}"
    assert lines[4].startswith("6 chains, 60 steps: the chains have not mixed")
    good = pj.states.MixingStatistic(np.float32(2), np.float32(1.01), np.float32(90))
    assert str(pj.states.Mixing(good, good, good, np.int32(6), np.int32(60))).endswith("no sign of slow mixing")
    lost = good._replace(r_hat=np.float32(np.nan))
    assert "have not mixed" in str(pj.states.Mixing(lost, good, good, np.int32(6), np.int32(60)))

    found = pj.compare_starts(COUNTER, {"s": np.float32(1)}, (STATES, STATES), KEY)
    assert str(found).startswith("The two starts agree after 2 steps: mean energies ")
    assert str(found._replace(agreed=np.array(False))).startswith("The two starts do NOT agree after 2 steps")


CASES = {
    "one chain": (lambda: pj.mixing(MACHINE, HEALTHY, ONE[:1], KEY), ValueError, "chains: expected at least 2 states"),
    "three steps": (lambda: pj.mixing(MACHINE, HEALTHY, ONE, KEY, 3), ValueError, "steps must be at least 4"),
    "no steps": (lambda: pj.mixing(MACHINE, HEALTHY, ONE, KEY, 0), ValueError, "steps must be a positive integer"),
    "no model": (lambda: pj.mixing(linear, HEALTHY, ONE, KEY), TypeError, "mixing: model must be a model"),
    "NaN": (lambda: pj.mixing(MACHINE, HEALTHY, ONE * np.nan, KEY), ValueError, "chains: expected finite .* row 0"),
    "weights": (
        lambda: pj.mixing(MACHINE, HEALTHY, pj.Weighted(ONE, np.ones(100)), KEY),
        TypeError,
        "chains: expected states without weights, got Weighted; draw rows",
    ),
    "one start": (lambda: pj.compare_starts(MACHINE, HEALTHY, ONE, KEY), TypeError, "starts must be a pair of states"),
    "a start of one": (
        lambda: pj.compare_starts(MACHINE, HEALTHY, (ONE, ONE[:1]), KEY),
        ValueError,
        r"starts\[1\]: expected at least 2 states",
    ),
    "other columns": (
        lambda: pj.compare_starts(MACHINE, HEALTHY, (ONE, ONE[:, :3]), KEY),
        ValueError,
        r"expected states \(rows, 20\) as in params, got shape \(100, 3\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_named(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()
