"""Train a restricted Boltzmann machine on images of digits by persistent contrastive divergence.

    python examples/rbm_digits.py
    python examples/rbm_digits.py --convention 2017 --optimizer adam --learning-rate 0.01
    python examples/rbm_digits.py --data train-images-idx3-ubyte.gz --hidden 100 --learning-rate 0.001 --epochs 5

prints the log-likelihood as training goes on and writes a picture of it, of the filters and of samples.
"""

import argparse
import math
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import digits
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import paysage_jax
from paysage_jax import rbm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = 36  # filters, digits and samples in the picture
GIBBS_STEPS = 500  # from random pixels to a sample
LEARNING_RATES = {
    "textbook": {"sgd": 0.1, "momentum": 0.02, "rmsprop": 0.01, "adam": 0.01},
    "2017": {"sgd": 0.1, "momentum": 0.1, "rmsprop": 0.01, "adam": 0.01},
}


# --- training ----------------------------------------------------------------------------------------


def make_optimizer(convention, name, learning_rate):
    """The optimizer of that name, its rate falling as 1 / (1 + epoch / 10)."""
    library = paysage_jax if convention == "textbook" else paysage_jax.classic
    return getattr(library, name)(paysage_jax.per_epoch(paysage_jax.power_law_decay(learning_rate, 0.1)))


ESTIMATOR = paysage_jax.persistent_contrastive_divergence(rbm.free_energy, rbm.gibbs)


def train(optimizer, params, images, key, epochs, **options):
    """A run of PCD-1 over the training images, in their fixed order: a `paysage_jax.FitResult`."""
    return paysage_jax.fit(
        params,
        optimizer,
        ESTIMATOR,
        images.train,
        epochs=epochs,
        batch_size=digits.BATCH,
        shuffle=False,
        key=key,
        **options,
    )


# --- watching it -------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """Mean log-likelihoods in nats per image, and their standard error if they are estimates (else 0)."""

    epoch: int
    train: float
    validation: float
    error: float


def likelihoods(images, params, key):
    """[train, validation, error], exact up to `rbm.MOST_HIDDEN` hidden units and estimated by AIS beyond."""
    if len(params["layers"][1]["loc"]) <= rbm.MOST_HIDDEN:
        log_z, error = rbm.log_partition(params), jnp.zeros(())
    else:
        log_z, error = rbm.estimate_log_partition(params, key)
    return jnp.stack([*(rbm.log_likelihood(params, v, log_z) for v in (images.train, images.validation)), error])


def describe(evaluation):
    """The line to print."""
    kind = "exact" if not evaluation.error else f"AIS estimate, ± {evaluation.error:.2f}"
    return (
        f"epoch {evaluation.epoch:3d}   log-likelihood in nats per image ({kind}):"
        f"   train {evaluation.train:.2f}   validation {evaluation.validation:.2f}"
    )


@partial(jax.jit, static_argnames=("count", "steps"))
def sample(params, key, count, steps):
    """The states of `count` chains after `steps` Gibbs steps from random pixels."""
    start_key, key = jax.random.split(key)
    start = jax.random.bernoulli(start_key, shape=(count, len(params["layers"][0]["loc"]))).astype(float)
    keys = jax.random.split(key, steps)
    v, _ = jax.lax.scan(lambda v, key: (rbm.gibbs(params, v, key), None), start, keys)
    return v


def mosaic(rows, shape):
    """The rows as images side by side in a square, NaN between them."""
    side = math.ceil(math.sqrt(len(rows)))
    tiles = np.full((side**2, *(n + 1 for n in shape)), np.nan)
    tiles[: len(rows), :-1, :-1] = np.asarray(rows).reshape(-1, *shape)
    tiles = tiles.reshape(side, side, *tiles.shape[1:]).swapaxes(1, 2)
    return tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)[:-1, :-1]


def save_picture(path, title, evaluations, params, images, samples):
    """Log-likelihood against epoch, the strongest filters, real digits and samples."""
    figure, (curve, *squares) = plt.subplots(1, 4, figsize=(13.5, 4.4), layout="constrained")
    cast(Any, figure.get_layout_engine()).set(wspace=0.04)
    figure.suptitle(title)

    epochs = [e.epoch for e in evaluations]
    errors = [e.error for e in evaluations] if evaluations[0].error else None
    for name, color in (("train", "C0"), ("validation", "C1")):
        values = [getattr(e, name) for e in evaluations]
        curve.errorbar(epochs, values, errors, color=color, marker="o", markersize=4, label=name)
        curve.axhline(values[0], color=color, linestyle="--", linewidth=1)
    kind = "exact" if errors is None else "AIS estimate"
    curve.set_title(f"log-likelihood, nats per image\n{kind}; dashed: at the start", fontsize=11)
    curve.set(xlabel="epoch", box_aspect=1)
    curve.legend()

    matrix = np.asarray(params["weights"][0]["matrix"]).T
    strongest = matrix[np.argsort(-np.abs(matrix).sum(axis=1))[:SHOWN]]
    limit = np.abs(strongest).max()
    contents = (
        (f"{len(strongest)} learned filters\nred positive, blue negative", strongest, ("RdBu_r", -limit, limit)),
        ("real digits\nvalidation images", images.validation[:SHOWN], ("binary", 0, 1)),
        (f"samples of the model\n{GIBBS_STEPS} Gibbs steps from random pixels", samples, ("binary", 0, 1)),
    )
    for axes, (name, rows, (colors, low, high)) in zip(squares, contents, strict=True):
        axes.imshow(
            mosaic(rows, images.shape), matplotlib.colormaps[colors].with_extremes(bad="0.8"), vmin=low, vmax=high
        )
        axes.set_title(name, fontsize=11)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


# --- the command -------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """One line and exit status 2 for wrong input, without the usage."""

    def error(self, message) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind, low, high):
    """A converter of an option's text to an int or float from low to high."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {name} from {low:g} to {high:.10g}, got {text!r}")
        return value

    return convert


def main(argv=None):
    """Parse the command line, train, print, draw."""
    parser = Parser(description="Train a restricted Boltzmann machine on images of digits.")
    parser.add_argument("--optimizer", choices=LEARNING_RATES["textbook"], default="adam")
    parser.add_argument(
        "--learning-rate", type=number(float, 1e-9, 1e3), help="in the first epoch (default: depends on the optimizer)"
    )
    parser.add_argument("--convention", choices=LEARNING_RATES, default="textbook", help="whose numerics")
    parser.add_argument("--hidden", type=number(int, 1, 10_000), default=16, help="hidden units (%(default)s)")
    parser.add_argument("--epochs", type=number(int, 1, 100_000), default=30, help="passes over the data (%(default)s)")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0)
    parser.add_argument("--data", help="images as NPZ or MNIST IDX, gzip or not (default: scikit-learn's digits)")
    parser.add_argument("--output", type=Path, default=Path("rbm_digits.png"), help="the picture (%(default)s)")
    options = parser.parse_args(argv)
    folder = options.output.parent
    if options.output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        parser.error(f"argument --output: cannot write {options.output}")
    try:
        images = digits.load(options.data)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")

    learning_rate = options.learning_rate or LEARNING_RATES[options.convention][options.optimizer]
    optimizer = make_optimizer(options.convention, options.optimizer, learning_rate)
    init_key, train_key, ais_key, sample_key = jax.random.split(jax.random.key(options.seed), 4)
    params = rbm.init_bernoulli(images.train, options.hidden, init_key)

    measure = jax.jit(partial(likelihoods, images))
    evaluations = [Evaluation(0, *measure(params, ais_key).tolist())]
    print(describe(evaluations[0]))
    every = math.ceil(options.epochs / 10)
    result = train(
        optimizer,
        params,
        images,
        train_key,
        options.epochs,
        metrics={"likelihoods": measure},
        metrics_every=every,
        progress=True,
    )
    params = result.params
    measured = zip(result.history["epoch"].tolist(), result.history["likelihoods"].tolist(), strict=True)
    evaluations += [Evaluation(epoch, *values) for epoch, values in measured if epoch > 0]
    if evaluations[-1].epoch < options.epochs:
        evaluations.append(Evaluation(options.epochs, *measure(params, ais_key).tolist()))
    print(*map(describe, evaluations[1:]), sep="\n")

    title = (
        f"Bernoulli RBM, {images.batches.shape[-1]} × {options.hidden}: "
        f"{options.optimizer} ({options.convention}), learning rate {learning_rate:g}, PCD-1"
    )
    samples = sample(params, sample_key, count=SHOWN, steps=GIBBS_STEPS)
    save_picture(options.output, title, evaluations, params, images, samples)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
