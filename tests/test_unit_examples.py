"""The examples of the kinds of units, run as their readers run them: what they reach, what they say of wrong input."""

import importlib
import itertools
import re

import impute
import ising
import jax
import motifs
import numpy as np
import patches
import pytest
from sklearn.datasets import load_sample_images

from tests.helpers.programs import assert_one_line, numbers, run

# --- spins -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_spins_learn_the_couplings_of_an_ising_model(tmp_path):
    printed = run(ising, tmp_path, "--epochs", 30)
    mean_field, error_of_it = numbers(r"mean-field inversion +(\S+) +(\S+)", printed)
    reached, error = numbers(r"RBM, 16 × 32 +(\S+) +(\S+)", printed)
    # With three seeds 0.013 to 0.017 against 0.10 to 0.46; errors of 0.02 to 0.04 against 0.06 to 0.15.
    assert reached < mean_field / 3
    assert error < error_of_it / 2
    assert reached > numbers(r"expected +(\S+)", printed)[0] / 2


def test_effective_couplings_are_those_of_two_spins_on_a_hidden_one():
    """A hidden spin that couples to spins 2 and 7 by a and b: F has the pair -log(cosh(a + b) / cosh(a - b)) / 2."""
    a, b = 0.8, -0.5
    matrix = np.zeros((ising.SPINS, 1), np.float32)
    matrix[[2, 7], 0] = a, b
    params = {
        "layers": [{"loc": np.linspace(-0.5, 0.5, ising.SPINS, dtype=np.float32)}, {"loc": np.zeros(1, np.float32)}],
        "weights": [{"matrix": matrix}],
    }
    found = ising.matrix(ising.effective_couplings(params))
    expected = np.log(np.cosh(a + b) / np.cosh(a - b)) / 2
    assert found[2, 7] == pytest.approx(expected, abs=1e-5)
    found[[2, 7], [7, 2]] = 0
    assert np.abs(found).max() < 1e-5


def test_every_spin_of_the_torus_has_four_neighbours():
    assert (ising.matrix(ising.NEIGHBOURS).sum(axis=0) == 4).all()


# --- motifs ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_double_rectified_units_find_the_coins_that_components_mix(tmp_path):
    printed = run(motifs, tmp_path)
    found = {name: sorted(numbers(rf"{name} +(\S+) (\S+) (\S+)", printed)) for name in ("components", *motifs.KINDS)}
    # The worst DReLU is at 0.97 to 0.99 with two seeds, the components from 0.64 to 0.86.
    assert found["DReLU"][0] > max(0.95, found["components"][-1] + 0.05)
    gaussian, drelu, truth = (
        numbers(rf"{name} .* (-\d+\.\d+)\n", printed)[0] for name in ("Gaussian", "DReLU", "the truth")
    )
    assert gaussian < drelu < truth + 0.1
    assert drelu > truth - 0.6


def test_the_likelihood_of_the_family_is_the_sum_over_all_coins():
    family = motifs.Family(np.random.default_rng(0))
    v, _ = family.draw(3, np.random.default_rng(1))
    expected = 0
    for row in v:
        p = 0
        for coins in itertools.product((0, 1), repeat=motifs.GROUPS):
            term = 0.5**motifs.GROUPS
            for site, letter in enumerate(row):
                background = family.background[site, letter]
                group, i = divmod(site, motifs.SIZE)
                if group < motifs.GROUPS:
                    hit = letter == family.motifs[group, coins[group], i]
                    term *= motifs.KEPT * hit + (1 - motifs.KEPT) * background
                else:
                    term *= background
            p += term
        expected += np.log(p) / len(v)
    assert family.log_likelihood(v) == pytest.approx(expected, rel=1e-9)


# --- patches -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs():
    return load_sample_images().images


@pytest.mark.slow
def test_relu_units_beat_a_gaussian(tmp_path):
    printed = run(patches, tmp_path, "--epochs", 15)
    forward, back, gaussian = numbers(r"forward (\S+) +in reverse (\S+) +Gaussian (\S+)", printed)
    assert forward == pytest.approx(back, abs=0.05)
    assert min(forward, back) > gaussian + 0.05
    assert "no sign of slow mixing" in printed


def test_patches_are_whitened_and_come_back(photographs):
    training, held_out, axes = patches.load(photographs)
    assert (len(training), len(held_out)) == (patches.PATCHES, patches.PATCHES // 3)
    np.testing.assert_allclose(np.cov(training.T, bias=True), np.eye(patches.COMPONENTS), atol=1e-3)
    # What is lost of the covariance is small; the axes are orthogonal, and the mean of every patch is zero.
    products = axes @ axes.T
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-9)
    np.testing.assert_allclose((held_out @ axes).mean(axis=1), 0, atol=1e-5)


def test_limited_weights_leave_a_distribution_and_small_ones_stay():
    """Far out, along any direction, the free energy grows; without the limit it falls along the first filter."""
    keys = jax.random.split(jax.random.key(0), 2)
    data = np.asarray(jax.random.normal(keys[0], (50, 6)))
    small = patches.MACHINE.init(data, 4, keys[1])
    kept = patches.limit(small)["weights"][0]["matrix"]
    np.testing.assert_allclose(kept, small["weights"][0]["matrix"], rtol=0, atol=1e-7)
    large = small | {"weights": [{"matrix": 150 * small["weights"][0]["matrix"]}]}
    far = 1000 * np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    assert patches.MACHINE.energy(large, far).min() < -1000
    assert patches.MACHINE.energy(patches.limit(large), far).min() > 1000


# --- missing halves ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_of_lower_halves_beat_the_mean_pixel(tmp_path):
    printed = run(impute, tmp_path)
    rows = re.findall(r"^(mean of .*\S) +(0\.\d+) +(-0\.\d+)$", printed, re.MULTILINE)
    (pixel, pixel_nats), (_, nearest_nats), (error, nats) = ([float(x) for x in row[1:]] for row in rows)
    # 0.139 and -0.411 by the mean pixel; with two seeds 0.088 to 0.089 and -0.278 to -0.282 by the draws.
    assert error < 0.7 * pixel
    assert nats > pixel_nats + 0.1
    assert nats > nearest_nats - 0.01


def test_the_nearest_are_those_that_agree_where_pixels_are_known():
    train = np.array([[0, 0, 1, 1]] * impute.NEIGHBOURS + [[1, 1, 0, 0]] * impute.NEIGHBOURS, float)
    images, missing = np.array([[1, 1, 1, 1], [0, 0, 0, 0.0]]), np.array([[False, False, True, True]] * 2)
    np.testing.assert_array_equal(impute.mean_of_nearest(train, images, missing), [[1, 1, 0, 0], [0, 0, 1, 1]])


# --- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ising", "motifs", "patches", "impute"])
@pytest.mark.parametrize("arguments", ["--epochs 0", "--nonsense", "--output no/such/folder/a.png"])
def test_wrong_input_is_one_line(capsys, name, arguments):
    assert_one_line(capsys, arguments.split(), arguments.split()[0], importlib.import_module(name))
