"""The examples, run as their readers run them: what they reach, what they draw, what they say of wrong input."""

import gzip
import re
import struct
import subprocess
import sys
from pathlib import Path

import digits
import jax
import migrate_from_paysage
import numpy as np
import pytest
import rbm_digits
from matplotlib.image import imread

from paysage_jax import rbm

ROOT = Path(__file__).parent.parent


def run_as_command(name, *arguments, folder):
    """The finished process of an example, warnings being errors as in the rest of the suite."""
    command = [sys.executable, "-W", "error", ROOT / "examples" / name, *arguments]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def likelihoods(printed):
    """[(epoch, kind, train, validation), ...] of the lines that rbm_digits printed."""
    line = r"epoch +(\d+) .*\((.*)\): +train (\S+) +validation (\S+)"
    return [(int(e), kind, float(t), float(v)) for e, kind, t, v in re.findall(line, printed)]


def assert_is_picture(path):
    """A PNG whose four panels all show something."""
    assert path.read_bytes().startswith(b"\x89PNG")
    panels = np.array_split(imread(path)[..., :3], 4, axis=1)
    for panel in panels:
        assert min(panel.shape[:2]) > 300
        assert panel.std() > 0.05


# --- the main job ------------------------------------------------------------------------------------


def test_the_command_of_the_readme(tmp_path):
    done = run_as_command("rbm_digits.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = likelihoods(done.stdout)
    assert [row[0] for row in rows] == list(range(0, 31, 3))
    assert {row[1] for row in rows} == {"exact"}
    assert rows[0][2:] == pytest.approx((-25.04, -25.71), abs=0.02)
    # Over seeds -20.43 with standard deviation 0.18; the validation images are worth about 0.15 less.
    assert rows[-1][2:] == pytest.approx((-20.43, -20.58), abs=0.8)
    assert_is_picture(tmp_path / "rbm_digits.png")


@pytest.mark.parametrize(
    ("convention", "name", "learning_rate", "reached"),
    [("2017", "adam", 0.01, -21.85), ("textbook", "adam", 0.01, -20.36), ("textbook", "sgd", 0.1, -21.65)],
)
def test_each_convention_reaches_what_was_measured_on_the_original(convention, name, learning_rate, reached):
    images = digits.load()
    optimizer = rbm_digits.make_optimizer(convention, name, learning_rate)

    def train_likelihood(seed):
        init_key, train_key = jax.random.split(jax.random.key(seed))
        params = rbm.init_bernoulli(images.train, 16, init_key)
        result = rbm_digits.train(optimizer, params, images, train_key, epochs=30)
        return rbm_digits.likelihoods(images, result.params, None)[0]

    # Three standard errors of a mean over ten seeds; the two Adams are six such tolerances apart.
    assert np.mean([train_likelihood(seed) for seed in range(10)]) == pytest.approx(reached, abs=0.25)


def test_a_large_model_of_a_file_gets_an_estimate_that_is_called_one(tmp_path, capsys):
    from sklearn.datasets import load_digits

    data, picture = tmp_path / "images.gz", tmp_path / "picture"
    data.write_bytes(gzip.compress(idx(np.uint8(255) * (load_digits().images >= 8))))
    options = ["--data", str(data), "--optimizer", "sgd", "--learning-rate", "0.3", "--hidden", "21", "--epochs", "4"]
    rbm_digits.main([*options, "--output", str(picture)])
    rows = likelihoods(capsys.readouterr().out)
    assert all(re.fullmatch(r"AIS estimate, ± 0\.0\d", row[1]) for row in rows)
    # At the start the pixels are independent but for weights of 0.01.
    assert rows[0][2:] == pytest.approx((-25.04, -25.71), abs=0.05)
    assert rows[-1][2] > rows[0][2] + 0.5
    assert_is_picture(picture)


def test_every_optimizer_has_a_learning_rate_in_every_convention():
    for convention, rates in rbm_digits.LEARNING_RATES.items():
        for name, learning_rate in rates.items():
            optimizer = rbm_digits.make_optimizer(convention, name, learning_rate)
            expected = "paysage_jax.classic" if convention == "2017" else "paysage_jax._textbook"
            assert (type(optimizer).__module__, type(optimizer).__name__) == (expected, name)


# --- data --------------------------------------------------------------------------------------------


def test_digits_are_split_as_for_the_original():
    from sklearn.datasets import load_digits

    binary = load_digits().data >= 8
    order = np.random.RandomState(137).permutation(1797)
    images = digits.load()
    assert images.batches.shape == (32, 50, 64)
    np.testing.assert_array_equal(images.train, binary[order[:1600]])
    np.testing.assert_array_equal(images.validation, binary[order[1600:]])
    assert images.shape == (8, 8)


def idx(array, magic=b"\x00\x00\x08\x03"):
    return magic + struct.pack(">3I", *array.shape) + array.tobytes()


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
    "--optimizer lbfgs": "invalid choice: 'lbfgs'",
    "--convention 2018": "invalid choice: '2018'",
    "--learning-rate 0": "argument --learning-rate: expected a number from",
    "--learning-rate nan": "argument --learning-rate: expected a number from",
    "--learning-rate fast": "argument --learning-rate: expected a number from",
    "--hidden 0": "argument --hidden: expected a whole number from 1 to 10000, got '0'",
    "--hidden 1.5": "argument --hidden: expected a whole number from 1 to 10000, got '1.5'",
    "--epochs 0": "argument --epochs: expected a whole number from 1",
    "--seed -1": "argument --seed: expected a whole number from 0 to 4294967295, got '-1'",
    "--output no_such_folder/a.png": "argument --output: cannot write no_such_folder/a.png",
    "--output .": "argument --output: cannot write",
    "--batch 3": "unrecognized arguments: --batch 3",
}


def assert_one_line(capsys, arguments, expected, main=rbm_digits.main):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert expected in err


@pytest.mark.parametrize(("write", "expected"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, capsys, write, expected):
    monkeypatch.chdir(tmp_path)
    write(Path("images"))
    assert_one_line(capsys, ["--data", "images"], expected)
    assert not Path("rbm_digits.png").exists()


@pytest.mark.parametrize(("options", "expected"), WRONG_OPTIONS.items(), ids=WRONG_OPTIONS.keys())
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    assert_one_line(capsys, options.split(), expected)


def test_a_wrong_file_as_a_command(tmp_path):
    done = run_as_command("rbm_digits.py", "--data", "nowhere.npz", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"rbm_digits.py: error: argument --data: .*'nowhere.npz'\n", done.stderr)


# --- moving from paysage -----------------------------------------------------------------------------


def test_migrating_reaches_the_same_likelihood_both_ways(capsys):
    migrate_from_paysage.main([])
    rows = dict(re.findall(r"^(start|class shim|functional) +(-\d+\.\d\d)$", capsys.readouterr().out, re.MULTILINE))
    assert float(rows["start"]) == pytest.approx(-25.04, abs=0.02)
    # Over seeds -21.82 with standard deviation 0.24, with one generator of random numbers as with the other.
    assert float(rows["class shim"]) == pytest.approx(-21.82, abs=1)
    assert float(rows["functional"]) == pytest.approx(-21.82, abs=1)


def test_the_numpy_model_has_the_gradient_of_the_reference():
    images = digits.load()
    v_data, v_model = images.batches[:2]
    params = rbm.init_bernoulli(images.train, 5, jax.random.key(0))
    params["weights"][0]["matrix"] *= 50
    actual = migrate_from_paysage.NumpyRBM(params, seed=0).gradient(v_data, v_model)
    expected = rbm.gradient(params, v_data, v_model)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-6), actual, expected)


def test_migrating_with_a_wrong_option_is_one_line(capsys):
    assert_one_line(capsys, ["--epochs", "none"], "argument --epochs", migrate_from_paysage.main)
