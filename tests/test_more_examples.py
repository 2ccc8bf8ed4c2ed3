"""The examples of centring, sweeps, Gaussian units and thrml: what they reach, what they draw, what they refuse."""

import itertools
import re

import centering
import digits
import gaussian_rbm
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sweep
from matplotlib.image import imread
from scipy.stats import multivariate_normal
from sklearn.datasets import load_sample_image

import paysage_jax
from paysage_jax import rbm

UNTRAINED = -25.04  # independent pixels, for the digits


def run(example, folder, capsys, *arguments):
    """What the example prints; its picture must be one, with something to see in each quarter."""
    path = folder / "picture.png"
    example.main([*map(str, arguments), "--output", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")
    for part in np.array_split(imread(path)[..., :3], 4, axis=1):
        assert min(part.shape[:2]) > 200
        assert part.std() > 0.03
    return capsys.readouterr().out


# --- centering ---------------------------------------------------------------------------------------


def test_only_the_centred_gradient_learns_digits_and_inverted_digits_alike(tmp_path, capsys):
    printed = run(centering, tmp_path, capsys, "--learning-rates", 0.3)
    row = r"0\.3 +{} +(\S+) ± (\S+) +(\S+) ± (\S+)"
    table = {name: re.search(row.format(name), printed) for name in ("plain", "centred")}
    plain, plain_sd, plain_inverted, plain_inverted_sd = map(float, table["plain"].groups())
    centred, centred_sd, centred_inverted, centred_inverted_sd = map(float, table["centred"].groups())

    assert centred == pytest.approx(-19.43, abs=0.12)
    assert abs(centred - centred_inverted) < 0.15
    assert plain < centred
    assert plain_inverted < centred_inverted - 1
    assert plain_sd > centred_sd
    assert plain_inverted_sd > centred_inverted_sd


def test_measurements_are_of_the_epochs_they_name():
    images = digits.load().train
    keys = jax.random.split(jax.random.key(0), 2)
    epochs, history = centering.train(centering.make_optimizer("centred", 1.0), images, keys, 20)
    np.testing.assert_array_equal(epochs, [np.arange(0, 21, 2)] * 2)
    np.testing.assert_allclose(history[:, 0], UNTRAINED, atol=0.02)
    assert (history[:, -1] > UNTRAINED + 4).all()


# --- sweep -------------------------------------------------------------------------------------------


def test_a_sweep_finds_the_rates_that_learn(tmp_path, capsys):
    printed = run(sweep, tmp_path, capsys, "--rates", 3, "--from", 5e-4, "--to", 0.5, "--seeds", 2, "--epochs", 10)
    assert "6 trainings of 10 epochs" in printed
    rows = np.array([[float(x) for x in line.split()] for line in re.findall(r"^ +0\.\d+ .*$", printed, re.M)])
    np.testing.assert_allclose(rows[:, 0], [5e-4, 0.016, 0.5])
    _, mean, worst, best = rows.T
    assert (worst <= mean).all()
    assert (mean <= best).all()
    assert mean[0] == pytest.approx(UNTRAINED, abs=0.05)
    assert worst[1] > UNTRAINED + 2
    assert mean[2] < mean[1] - 2


def test_other_rates_do_not_compile_again():
    images = digits.load().train[:100]
    keys = jax.random.split(jax.random.key(0), 2)
    sweep.sweep.clear_cache()
    first, _ = sweep.sweep(images, 1, jnp.array([0.01, 0.1]), keys)
    second, _ = sweep.sweep(images, 1, jnp.array([0.1, 0.01]), keys)
    assert sweep.sweep._cache_size() == 1
    np.testing.assert_allclose(first, second[::-1], rtol=1e-5)
    assert (first[0] != first[1]).all()


def test_a_sweep_measures_only_when_it_is_time():
    measured = []

    def metric(params, key):
        jax.debug.callback(lambda: measured.append(None))
        return params

    def train(learning_rate):
        return paysage_jax.fit(
            jnp.zeros(()),
            paysage_jax.sgd(learning_rate),
            paysage_jax.loss_gradient(lambda p, batch: jnp.mean((batch - p) ** 2)),
            jnp.ones(4),
            epochs=6,
            batch_size=2,
            key=jax.random.key(0),
            metrics={"p": metric},
            metrics_every=3,
        ).history["p"]

    assert jax.vmap(train)(jnp.array([0.1, 0.2])).shape == (2, 2)
    jax.effects_barrier()
    assert len(measured) == 2


# --- Gaussian units ----------------------------------------------------------------------------------


def test_gaussian_units_beat_a_gaussian(tmp_path, capsys):
    printed = run(gaussian_rbm, tmp_path, capsys, "--epochs", 8)
    reached, gaussian, difference = map(
        float, re.search(r"RBM (\S+) +Gaussian (\S+) +difference (\S+)", printed).groups()
    )
    assert gaussian == pytest.approx(-4.24, abs=0.01)
    assert difference == pytest.approx(reached - gaussian, abs=0.002)
    assert difference > 0.5


def test_colours_are_whitened_and_can_be_brought_back():
    photograph = load_sample_image("flower.jpg")
    colors = gaussian_rbm.load(photograph)
    np.testing.assert_allclose(np.cov(colors.train.T, bias=True), np.eye(3), atol=1e-4)
    rgb = colors.held_out @ colors.unwhiten + colors.mean
    assert rgb.min() > -1e-6
    assert rgb.max() < 1 + 1e-6
    np.testing.assert_allclose(rgb.mean(axis=0), photograph.mean(axis=(0, 1)) / 256, atol=0.02)
    np.testing.assert_allclose(rgb.std(axis=0), photograph.std(axis=(0, 1)) / 256, rtol=0.05)


def test_the_best_gaussian():
    colors = gaussian_rbm.load(load_sample_image("flower.jpg"))
    best = multivariate_normal(colors.train.mean(axis=0), np.cov(colors.train.T, bias=True))
    expected = best.logpdf(colors.held_out).mean()
    assert gaussian_rbm.gaussian_log_likelihood(colors.held_out) == pytest.approx(expected, abs=1e-3)


def test_samples_have_the_moments_that_the_partition_function_says():
    normal = jax.random.normal
    keys = jax.random.split(jax.random.key(3), 4)
    params = {
        "layers": [
            {"loc": normal(keys[0], (3,)), "log_var": jnp.array([0.5, 0.0, -0.5])},
            {"loc": normal(keys[1], (4,))},
        ],
        "weights": [{"matrix": normal(keys[2], (3, 4))}],
    }
    v = np.asarray(gaussian_rbm.sample(params, 20_000, keys[3]))
    visible = params["layers"][0]
    scaled = (v - visible["loc"][None]) / np.exp(visible["log_var"])[None]
    # ∂ log Z / ∂b is the mean of -∂E/∂b = (v - b) / s².
    expected = jax.grad(rbm.log_partition)(params)["layers"][0]["loc"]
    errors = scaled.std(axis=0) / np.sqrt(len(scaled))
    assert (np.abs(scaled.mean(axis=0) - expected) < 4 * errors).all()


# --- thrml -------------------------------------------------------------------------------------------


def test_couplings_are_recovered_almost_as_well_as_possible(tmp_path, capsys):
    import thrml_ising

    printed = run(thrml_ising, tmp_path, capsys, "--side", 4, "--samples", 2000)
    assert "2000 samples of 16 spins and 24 couplings" in printed
    assert float(re.search(r"true couplings: (\S+)", printed)[1]) > 0.98
    error, bound = map(float, re.search(r"error: (\S+) \(smallest possible: (\S+)\)", printed).groups())
    assert 0.5 * bound < error < 1.8 * bound


def test_energy_and_samples_are_those_of_the_ising_model():
    import thrml_ising

    lattice = thrml_ising.Lattice(2)
    assert sorted(map(tuple, lattice.pairs.tolist())) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    params = lattice.random_params(jax.random.key(0))
    b, j = np.asarray(params["fields"]), np.asarray(params["couplings"])

    def to_spins(v):
        spins = np.empty((len(v[0]), 4))
        for numbers, values in zip(lattice.colors, v, strict=True):
            spins[:, numbers] = 2.0 * np.asarray(values) - 1
        return spins

    states = np.array(list(itertools.product([False, True], repeat=4)))
    v = tuple(jnp.asarray(states[:, numbers]) for numbers in lattice.colors)
    spins = to_spins(v)
    products = spins[:, lattice.pairs].prod(axis=2)
    energy = -spins @ b - products @ j
    np.testing.assert_allclose(lattice.energy(params, v), energy, rtol=1e-5, atol=1e-5)

    p = np.exp(-energy) / np.exp(-energy).sum()
    drawn = to_spins(thrml_ising.draw(lattice, params, 10_000, jax.random.key(1)))
    means = np.hstack([drawn, drawn[:, lattice.pairs].prod(axis=2)])
    exact = np.hstack([p @ spins, p @ products])
    assert (np.abs(means.mean(axis=0) - exact) < 4 * means.std(axis=0) / np.sqrt(len(means))).all()

    statistics = np.hstack([products, spins])  # couplings, fields: in the order of the parameters' names
    covariance = (statistics * p[:, None]).T @ statistics - np.outer(p @ statistics, p @ statistics)
    smallest = np.sqrt(np.diag(np.linalg.inv(covariance)) / len(drawn))
    found = thrml_ising.smallest_errors(lattice, params, thrml_ising.draw(lattice, params, 10_000, jax.random.key(1)))
    np.testing.assert_allclose(np.hstack([found["couplings"], found["fields"]]), smallest, rtol=0.05)


# --- wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["centering", "sweep", "gaussian_rbm", "thrml_ising"])
@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--output", "no/such/folder/picture.png"], ["--nonsense"]])
def test_wrong_input_ends_in_one_line(name, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        __import__(name).main(arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert arguments[0] in message
