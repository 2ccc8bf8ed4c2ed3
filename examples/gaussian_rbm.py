"""The colours of a photograph, learned by a restricted Boltzmann machine with Gaussian visible units.

    python examples/gaussian_rbm.py

The visible units are the red, green and blue of one pixel of scikit-learn's flower; half of the pixels are held out.
Prints the exact log-likelihood of those beside that of a Gaussian with the mean and covariance of the training pixels,
and writes a picture of it and of samples.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from centering import picture
from rbm_digits import Parser, number
from sklearn.datasets import load_sample_image

import paysage_jax
from paysage_jax import rbm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PIXELS = 10_000  # to train on, and as many held out
SHOWN = 4000  # colours in each scatter plot


# --- data --------------------------------------------------------------------------------------------


class Colors(NamedTuple):
    """Rows of red, green and blue, whitened: the training rows have mean 0 and covariance 1.

    red, green, blue = row @ unwhiten + mean, from 0 to 1.
    """

    train: np.ndarray
    held_out: np.ndarray
    unwhiten: np.ndarray
    mean: np.ndarray


def load(photograph):
    """The colours of random pixels."""
    random = np.random.default_rng(0)
    levels = random.permutation(photograph.reshape(-1, 3))[: 2 * PIXELS]
    # A density needs continuous values: each level is spread over the interval that was rounded to it.
    rgb = (levels + random.random(levels.shape)) / 256
    mean = rgb[:PIXELS].mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(rgb[:PIXELS].T, bias=True))
    white = ((rgb - mean) @ axes / np.sqrt(variances)).astype(np.float32)
    return Colors(white[:PIXELS], white[PIXELS:], (axes * np.sqrt(variances)).T, mean)


# --- the model ---------------------------------------------------------------------------------------


def start(data, hidden, key):
    """Large weights, and hidden units that are mostly off.

    The gradient of small weights follows the covariances of the data, of which whitened data have none.
    """
    params = rbm.init_gaussian(data, hidden, key)
    params["weights"][0]["matrix"] *= 50
    params["layers"][1]["loc"] -= 2
    return params


def train(data, hidden, epochs, metrics, key):
    """The result of `fit`."""
    init_key, key = jax.random.split(key)
    return paysage_jax.fit(
        start(data, hidden, init_key),
        paysage_jax.rmsprop(paysage_jax.per_epoch(paysage_jax.power_law_decay(0.01, 0.1))),
        paysage_jax.persistent_contrastive_divergence(rbm.free_energy, rbm.gibbs, steps=10, chains=500),
        data,
        epochs=epochs,
        batch_size=200,
        key=key,
        metrics=metrics,
    )


def log_likelihood(v):
    """A metric for `fit`: exact, in nats per pixel."""
    return lambda params, key: rbm.log_likelihood(params, v, rbm.log_partition(params))


def gaussian_log_likelihood(white):
    """That of a Gaussian of mean 0 and covariance 1: the best Gaussian for the training pixels."""
    return -np.mean(np.sum(white**2 + np.log(2 * np.pi), axis=1)) / 2


@partial(jax.jit, static_argnames="count")
def sample(params, count, key):
    """Exact, independent draws from p(v): from p(h), which is known for every state h, then from p(v | h)."""
    hidden = len(params["layers"][1]["loc"])
    states = ((jnp.arange(2**hidden)[:, None] >> jnp.arange(hidden)[None]) & 1).astype(float)
    hidden_key, visible_key = jax.random.split(key)
    drawn = jax.random.categorical(hidden_key, -rbm.hidden_free_energy(params, states), shape=(count,))
    return rbm.sample_visible(params, states[drawn], visible_key)


# --- the picture -------------------------------------------------------------------------------------


def save_picture(path, title, photograph, clouds, history, gaussian):
    """The photograph; its colours, and those of the two models, in the plane of red and blue; the log-likelihood."""
    figure, (photo, *planes, curve) = plt.subplots(
        1, 5, figsize=(17, 4), width_ratios=(1.3, 1, 1, 1, 1), layout="constrained"
    )
    figure.suptitle(title)
    photo.imshow(photograph)
    photo.set_title("the photograph", fontsize=11)
    photo.set_axis_off()
    for axes, (name, rgb) in zip(planes, clouds.items(), strict=True):
        axes.scatter(rgb[:, 0], rgb[:, 2], c=np.clip(rgb, 0, 1), s=4)
        axes.set_title(name, fontsize=11)
        axes.set(xlabel="red", ylabel="blue", xlim=(-0.5, 1.4), ylim=(-0.3, 0.9), box_aspect=1)

    epochs = history["epoch"]
    for name, style in (("RBM, training", "C0-"), ("RBM, held out", "C1--")):
        curve.plot(epochs, history[name], style, label=name)
    curve.axhline(gaussian, color="C7", linestyle=":", label="Gaussian, held out")
    curve.set_title("exact log-likelihood", fontsize=11)
    curve.set(xlabel="epoch", ylabel="nats per pixel", box_aspect=1)
    curve.legend(loc="center right")
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


# --- the command -------------------------------------------------------------------------------------


def main(argv=None):
    """Parse the command line, train, print, draw."""
    parser = Parser(description="Learn the colours of a photograph with Gaussian visible units.")
    parser.add_argument("--hidden", type=number(int, 1, 16), default=8, help="hidden units (%(default)s)")
    parser.add_argument("--epochs", type=number(int, 1, 100_000), default=60, help="passes over the data (%(default)s)")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0)
    parser.add_argument("--output", type=picture, default=Path("gaussian_rbm.png"), help="the picture (%(default)s)")
    options = parser.parse_args(argv)

    photograph = load_sample_image("flower.jpg")
    colors = load(photograph)
    train_key, sample_key, gaussian_key = jax.random.split(jax.random.key(options.seed), 3)
    metrics = {"RBM, training": log_likelihood(colors.train), "RBM, held out": log_likelihood(colors.held_out)}
    result = train(colors.train, options.hidden, options.epochs, metrics, train_key)

    gaussian = gaussian_log_likelihood(colors.held_out)
    reached = result.history["RBM, held out"][-1]
    print(f"exact log-likelihood of {PIXELS} held-out pixels, whitened, in nats per pixel:")
    print(f"RBM {reached:.3f}   Gaussian {gaussian:.3f}   difference {reached - gaussian:.3f}")
    whites = {
        "colours of held-out pixels": colors.held_out[:SHOWN],
        "samples of the RBM": sample(result.params, SHOWN, sample_key),
        "samples of the best Gaussian": jax.random.normal(gaussian_key, (SHOWN, 3)),
    }
    clouds = {name: np.asarray(white) @ colors.unwhiten + colors.mean for name, white in whites.items()}
    title = f"Gaussian-Bernoulli RBM, 3 × {options.hidden}, PCD-10: the colours of a photograph"
    save_picture(options.output, title, photograph, clouds, result.history, gaussian)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
