"""The examples that need other libraries: `pip install -e '.[integrations]'`; without these their tests are skipped."""

import importlib
import importlib.util
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.programs import assert_is_picture, assert_one_line, numbers, run, run_and_record, run_as_command

pytestmark = pytest.mark.slow


NEEDS = {
    "flax_equinox": ["equinox", "flax"],
    "long_run": ["tensorboardX"],
    "netket_ising": ["netket"],
    "thrml_ising": ["thrml"],
}


def require(name):
    """Skip the test if a library that the example needs is not installed."""
    missing = [library for library in NEEDS[name] if importlib.util.find_spec(library) is None]
    if missing:
        pytest.skip(f"examples/{name}.py needs {', '.join(missing)}: pip install -e '.[integrations]'")


def load(name):
    """The example as a module."""
    require(name)
    return importlib.import_module(name)


# --- flax and equinox --------------------------------------------------------------------------------


LIBRARIES = ("equinox", "flax")


@pytest.fixture(scope="module")
def flax_equinox():
    return load("flax_equinox")


def test_flax_and_equinox_end_where_optax_does(flax_equinox, tmp_path):
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
        printed = run(flax_equinox, tmp_path, "--epochs", 5)
    for name in LIBRARIES:
        last, averaged, difference = numbers(rf"{name} +last (\S+)%   averaged (\S+)%   difference (\S+)", printed)
        assert last > 80  # by chance 10
        assert averaged > 70
        assert difference < 1e-5


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_average_is_that_of_the_course(flax_equinox, library):
    random = np.random.default_rng(0)
    batches = [(random.random((10, 64), np.float32), random.integers(0, 10, 10)) for _ in range(4)]
    models = zip(*flax_equinox.LIBRARIES[library](flax_equinox.OURS, batches, seed=0), strict=True)
    course, averages = ([jax.tree.leaves(model) for model in each] for each in models)
    weights = [1, 5, 15, 35]  # those of average_parameters(0.2), C(s + 3, 4)
    for steps, of_step in enumerate(averages, start=1):
        for arrays, average in zip(zip(*course[:steps], strict=True), of_step, strict=True):
            expected = np.average(arrays, axis=0, weights=weights[:steps])
            np.testing.assert_allclose(average, expected, atol=1e-6)


# --- NetKet ------------------------------------------------------------------------------------------


def test_netket_reaches_the_ground_state_as_with_its_own_optimizers(tmp_path):
    """In a separate process, because NetKet enables 64 bits globally."""
    require("netket_ising")
    done = run_as_command("netket_ising.py", "--spins", 6, "--epochs", 60, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    # On the critical ring of N spins E = -2 Σ sin(π (2k + 1) / 2N) over k < N / 2, doubled.
    (exact,) = numbers(r"exact energy of 6 spins: (-\S+)\.", done.stdout)
    assert exact == pytest.approx(-4 * np.sin(np.pi * np.array([1, 3, 5]) / 12).sum(), abs=1e-6)
    # With seeds from 0 to 2 and either precision: 0.004 to 0.014, and 2e-5 to 6e-5.
    for name, accuracy in {"Adam": 0.02, "SGD with SR": 2e-4}.items():
        line = rf"{name} +ours (\S+) +NetKet's (\S+) +parameters differ by (\S+)"
        ours, theirs, difference = numbers(line, done.stdout)
        assert -1e-9 < ours < accuracy
        assert ours == pytest.approx(theirs, rel=0.011)  # a unit in the last of the three digits printed
        assert difference < 1e-12
    assert_is_picture(tmp_path / "netket_ising.png")


# --- thrml -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thrml_ising():
    return load("thrml_ising")


@pytest.fixture(scope="module")
def thrml_run(thrml_ising, tmp_path_factory):
    options = ["--side", 4, "--samples", 10_000, "--epochs", 10]
    return run_and_record(thrml_ising, "draw", tmp_path_factory.mktemp("thrml"), *options)


def test_couplings_are_recovered_almost_as_well_as_possible(thrml_run):
    printed, _ = thrml_run
    assert "10000 samples of 16 spins and 24 couplings" in printed
    assert float(re.search(r"true couplings: (\S+)", printed)[1]) > 0.98
    error, bound = map(float, re.search(r"error: (\S+) \(smallest possible: (\S+)\)", printed).groups())
    assert 0.5 * bound < error < 1.8 * bound


def test_energy_and_samples_are_those_of_the_ising_model(thrml_ising, thrml_run):
    _, [((lattice, params, *_), drawn)] = thrml_run
    neighbours = {(i, i + 1) for i in range(16) if i % 4 < 3} | {(i, i + 4) for i in range(12)}
    assert len(lattice.pairs) == 24
    assert set(map(tuple, lattice.pairs.tolist())) == neighbours

    def statistics(v):
        """Couplings, fields: in the order of the parameters' names."""
        spins = np.empty((len(v[0]), 16))
        for sites, values in zip(lattice.colors, v, strict=True):
            spins[:, sites] = 2.0 * np.asarray(values) - 1
        return np.hstack([spins[:, lattice.pairs].prod(axis=2), spins])

    states = np.array(list(itertools.product([False, True], repeat=16)))
    v = tuple(jnp.asarray(states[:, numbers]) for numbers in lattice.colors)
    s = statistics(v)
    energy = -s @ np.concatenate([params["couplings"], params["fields"]], dtype=float)
    np.testing.assert_allclose(jax.jit(lattice.energy)(params, v), energy, rtol=1e-5, atol=1e-5)

    p = np.exp(-energy) / np.exp(-energy).sum()
    mean = p @ s
    sampled = statistics(drawn)
    assert (np.abs(sampled.mean(axis=0) - mean) < 4 * sampled.std(axis=0) / np.sqrt(len(sampled))).all()

    covariance = (s * p[:, None]).T @ s - np.outer(mean, mean)
    smallest = np.sqrt(np.diag(np.linalg.inv(covariance)) / len(sampled))
    found = thrml_ising.smallest_errors(lattice, params, drawn)  # compiled in the run
    np.testing.assert_allclose(np.hstack([found["couplings"], found["fields"]]), smallest, rtol=0.05)


# --- a long run --------------------------------------------------------------------------------------


def test_an_interrupted_long_run_ends_like_an_uninterrupted_one(tmp_path, capsys):
    """Repeating the command resumes from the latest checkpoint; tests/test_checkpoints.py kills runs at any moment."""
    long_run = load("long_run")
    for folder, epochs in (("cut", 10), ("cut", 20), ("uncut", 20)):
        result = long_run.main(["--folder", str(tmp_path / folder), "--epochs", str(epochs)])
    assert "EPOCHS_EXHAUSTED after 20 epochs" in capsys.readouterr().out
    cut, uncut = ((tmp_path / folder / "history.csv").read_text() for folder in ("cut", "uncut"))
    assert cut == uncut
    assert len(cut.splitlines()) == 21
    assert result.best.value > -25.04 + 5  # independent pixels have -25.04; a pseudo-log-likelihood is larger
    for folder in ("cut", "uncut"):
        assert (tmp_path / folder / "progress.png").read_bytes().startswith(b"\x89PNG")
        assert list((tmp_path / folder).glob("events.out.tfevents.*"))


# --- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flax_equinox", "thrml_ising"])
@pytest.mark.parametrize("arguments", ["--epochs 0", "--epochs none", "--nonsense", "--output no/such/folder/a.png"])
def test_wrong_input_is_one_line(capsys, name, arguments):
    assert_one_line(capsys, arguments.split(), arguments.split()[0], load(name))
