"""The examples of other models, run as readers run them: their results, and their errors for wrong input."""

import importlib
import itertools
import re

import deep_boltzmann
import jax
import jax.numpy as jnp
import neural_energy
import numpy as np
import potts
import pytest

from tests.helpers.programs import assert_is_picture, assert_one_line, numbers, run, run_as_command

# --- a neural energy ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_neural_energy_learns_a_density(tmp_path):
    printed = run(neural_energy, tmp_path, "--epochs", 20)
    reached, kernels = numbers(r"neural energy (\S+) +kernel estimate (\S+)", printed)
    assert kernels == pytest.approx(0.07, abs=0.01)
    assert 0 < reached < 0.25  # 0.11 to 0.14 with seeds 0 to 4, 0.05 after the full run; 0.8 in the first epoch


def test_the_pinwheel_has_the_density_that_is_said():
    log_p = neural_energy.true_log_density(neural_energy.GRID)
    p = np.exp(log_p) * neural_energy.AREA
    assert p.sum() == pytest.approx(1, abs=1e-4)
    points = neural_energy.draw(20_000, np.random.default_rng(5))
    log_q = neural_energy.true_log_density(points)
    assert log_q.mean() == pytest.approx(p @ log_p, abs=4 * log_q.std() / np.sqrt(len(points)))
    np.testing.assert_allclose(
        points.T @ points / len(points), neural_energy.GRID.T * p @ neural_energy.GRID, atol=0.03
    )


@pytest.mark.slow
def test_langevin_steps_keep_the_density_of_the_model():
    keys = jax.random.split(jax.random.key(0), 4)
    params = neural_energy.init(keys[0])
    params["out"]["weights"] = 0.3 * jax.random.normal(keys[1], params["out"]["weights"].shape)
    log_q = neural_energy.log_density(params)
    grid = jnp.asarray(neural_energy.GRID)
    start = grid[jax.random.categorical(keys[2], log_q, shape=(5000,))]

    @jax.jit
    def run_chains(x, key):
        return jax.lax.fori_loop(0, 20, lambda i, x: neural_energy.langevin(params, x, jax.random.fold_in(key, i)), x)

    end = run_chains(start, keys[3])
    assert jnp.mean(jnp.abs(end - start)) > 0.1
    e = neural_energy.energy(params, end)
    expected = jnp.sum(jnp.exp(log_q) * neural_energy.energy(params, grid)) * neural_energy.AREA
    assert jnp.mean(e) == pytest.approx(float(expected), abs=4 * float(e.std()) / 5000**0.5)


# --- a Potts model -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_contacts_are_recovered_and_the_weights_of_sequences_matter(tmp_path):
    printed = run(potts, tmp_path, "--epochs", 15)
    assert "2300 sequences of 35 sites, worth 800 independent ones; 24 contacts" in printed
    found = dict(re.findall(r"^(\S+ +with\S* weights) +(\d+)%$", printed, re.MULTILINE))
    right = {" ".join(name.split()): int(part) for name, part in found.items()}
    # By chance 4 % would be. 100 with seeds 0, 5 and 10 to 13; PCD without weights 88.
    assert right["pseudo-likelihood with weights"] >= 95
    assert right["PCD with weights"] >= 95
    assert right["PCD without weights"] < right["PCD with weights"] - 8


# --- a deep Boltzmann machine ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_deep_boltzmann_machine_learns_digits(tmp_path):
    printed = run(deep_boltzmann, tmp_path, "--epochs", 12)
    rows = re.findall(r"^(\S.*\S) +(-\d+\.\d\d) +(-\d+\.\d\d)$", printed, re.MULTILINE)
    validation = {name: float(value) for name, _, value in rows}
    assert validation["none"] == pytest.approx(-25.71, abs=0.02)
    # -19.65 to -19.81 with six seeds.
    assert validation["DBM, 12 + 8"] > validation["none"] + 5
    assert validation["DBM, 12 + 8"] == pytest.approx(validation["RBM, 12"], abs=0.8)


@pytest.fixture
def small_dbm():
    """Parameters of 3 + 2 + 2 units, all their states, and the probabilities of these."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    params = {
        "layers": [{"loc": jax.random.normal(next(keys), (n,))} for n in (3, 2, 2)],
        "weights": [{"matrix": jax.random.normal(next(keys), shape)} for shape in ((3, 2), (2, 2))],
    }
    states = tuple(jnp.split(jnp.array(list(itertools.product([0.0, 1.0], repeat=7))), [3, 5], axis=1))
    return params, states, jax.nn.softmax(-deep_boltzmann.energy(params, states))


@pytest.mark.slow
def test_the_likelihood_is_the_sum_over_all_hidden_states(small_dbm):
    params, (v, _, _), p = small_dbm
    p_of_v = p.reshape(8, 16).sum(axis=1)
    for row, expected in zip(v[::16], p_of_v, strict=True):
        actual = deep_boltzmann.log_likelihood(params, row[None])
        assert actual == pytest.approx(float(jnp.log(expected)), abs=1e-4)


def frequencies(states):
    numbers = np.concatenate(states, axis=1) @ 2 ** np.arange(6, -1, -1)
    return np.bincount(numbers.astype(int), minlength=128) / len(numbers)


@pytest.mark.slow
def test_gibbs_steps_keep_the_distribution_of_complete_states(small_dbm):
    params, states, p = small_dbm
    chosen = jax.random.categorical(jax.random.key(1), jnp.log(p), shape=(50_000,))
    after = deep_boltzmann.gibbs(params, tuple(x[chosen] for x in states), jax.random.key(2))
    assert (np.abs(frequencies(after) - p) < 5 * np.sqrt(p / 50_000)).all()


@pytest.mark.slow
def test_data_are_completed_by_hidden_units_given_the_data(small_dbm):
    params, states, p = small_dbm
    v = jnp.tile(states[0][37], (50_000, 1))
    completed = deep_boltzmann.complete(params, v, jax.random.key(3))
    assert (completed[0] == v).all()
    given_v = np.where((states[0] == v[:1]).all(axis=1), p, 0)
    given_v /= given_v.sum()
    assert (np.abs(frequencies(completed) - given_v) <= 5 * np.sqrt(given_v / 50_000)).all()


# --- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["neural_energy", "potts", "deep_boltzmann"])
@pytest.mark.parametrize("arguments", ["--epochs 0", "--seed -1", "--nonsense", "--output no/such/folder/a.png"])
def test_wrong_input_is_one_line(capsys, name, arguments):
    assert_one_line(capsys, arguments.split(), arguments.split()[0], importlib.import_module(name))


@pytest.mark.slow
def test_eight_devices_share_the_work_of_one(tmp_path):
    """In a separate process, because JAX creates its devices when it starts."""
    options = ["--devices", 8, "--epochs", 2, "--output", tmp_path / "picture"]
    done = run_as_command("data_parallel.py", *options, folder=tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    one, eight = map(float, re.findall(r"a step on a device: (\d+) Mflop", done.stdout))
    assert eight < one / 7.5
    held = re.findall(r"optimizer's state: .* MB, (.*) MB on a device", done.stdout)
    assert list(map(float, held)) == [3.15, 0.40]
    assert_is_picture(tmp_path / "picture")
