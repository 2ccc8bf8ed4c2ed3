"""Train on digits and on the same digits inverted, with the plain gradient and with the centred one.

    python examples/centering.py

A machine can describe both equally well: flipping its visible units turns one into the other. The plain gradient
is another in each case, and worse where most pixels are 1; the centred gradient (`paysage_jax.center`) is the same.
Prints a table of exact log-likelihoods and writes a picture of them by epoch.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import digits
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rbm_digits import Parser, mosaic, number

import paysage_jax
from paysage_jax import rbm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HIDDEN = 16
COLORS = {"plain": "C1", "centred": "C0"}
ESTIMATOR = paysage_jax.persistent_contrastive_divergence(rbm.free_energy, rbm.gibbs)


# --- training ----------------------------------------------------------------------------------------


def make_optimizer(gradient, learning_rate):
    """SGD, its rate falling as 1 / (1 + epoch / 10), on the plain or the centred gradient."""
    sgd = paysage_jax.sgd(paysage_jax.per_epoch(paysage_jax.power_law_decay(learning_rate, 0.1)))
    return paysage_jax.chain(paysage_jax.center(), sgd) if gradient == "centred" else sgd


def log_likelihood(params, images):
    """Exact, in nats per image."""
    return rbm.log_likelihood(params, images, rbm.log_partition(params))


@partial(jax.jit, static_argnames="epochs")
@partial(jax.vmap, in_axes=(None, None, 0, None))
def train(optimizer, images, key, epochs):
    """Epochs, and the log-likelihood then: a row for each of the keys."""
    init_key, key = jax.random.split(key)
    start = rbm.init_bernoulli(images, HIDDEN, init_key)
    result = paysage_jax.fit(
        start,
        optimizer,
        ESTIMATOR,
        images,
        epochs=epochs,
        batch_size=digits.BATCH,
        shuffle=False,  # the same batches in every epoch, as in 2017
        key=key,
        metrics={"log-likelihood": lambda params, key: log_likelihood(params, images)},
        metrics_every=max(1, epochs // 10),
    )
    history = result.history
    return jnp.append(0, history["epoch"]), jnp.append(log_likelihood(start, images), history["log-likelihood"])


# --- the picture -------------------------------------------------------------------------------------


def save_picture(path, curves, images, seeds):
    """The two kinds of data, and for each learning rate the mean and the range over seeds of the log-likelihood."""
    rates = list(curves)
    figure = plt.figure(figsize=(2.4 + 4.6 * len(rates), 4.8), layout="constrained")
    panels = figure.subplot_mosaic(
        [["digits", *rates], ["inverted", *rates]], width_ratios=(2.4, *[4.6] * len(rates)), empty_sentinel=None
    )
    for name, rows in {"digits": images, "inverted": 1 - images}.items():
        axes = panels[name]
        axes.imshow(mosaic(rows[:9], (8, 8)), matplotlib.colormaps["binary"].with_extremes(bad="C7"), vmin=0, vmax=1)
        axes.set_title(name, fontsize=11)
        axes.set_axis_off()

    first = panels[rates[0]]
    for learning_rate, histories in curves.items():
        axes = panels[learning_rate]
        for (gradient, data), (epochs, history) in histories.items():
            style = "-" if data == "digits" else "--"
            axes.plot(epochs[0], history.mean(axis=0), style, color=COLORS[gradient], label=f"{gradient}, {data}")
            low, high = history.min(axis=0), history.max(axis=0)
            axes.fill_between(epochs[0], low, high, color=COLORS[gradient], alpha=0.15, linewidth=0)
        axes.set_title(f"SGD, learning rate {learning_rate:g}", fontsize=11)
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.sharey(first)
    first.set_ylabel("log-likelihood, nats per image (exact)")
    first.legend(loc="lower right", title=f"mean of {seeds} seeds; shaded: worst to best")
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


# --- the command -------------------------------------------------------------------------------------


def picture(text):
    """A path to write a picture to, checked before the work begins."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {path}")
    return path


def main(argv=None):
    """Parse the command line, train, print, draw."""
    parser = Parser(description="Plain against centred gradient, on digits and on inverted digits.")
    parser.add_argument(
        "--learning-rates", type=number(float, 1e-9, 1e3), nargs="+", default=[0.3, 1.0], metavar="RATE"
    )
    parser.add_argument("--epochs", type=number(int, 1, 100_000), default=30, help="passes over the data (%(default)s)")
    parser.add_argument("--seeds", type=number(int, 2, 1000), default=5, help="runs of each kind (%(default)s)")
    parser.add_argument("--output", type=picture, default=Path("centering.png"), help="the picture (%(default)s)")
    options = parser.parse_args(argv)

    images = digits.load().train
    keys = jax.random.split(jax.random.key(0), options.seeds)
    print(f"exact log-likelihood after {options.epochs} epochs, nats per image: mean ± sd of {options.seeds} seeds")
    print(f"learning rate  gradient  {'digits':>14}  {'inverted':>14}")
    curves = {}
    for learning_rate in options.learning_rates:
        curves[learning_rate] = {}
        for gradient in COLORS:
            optimizer = make_optimizer(gradient, learning_rate)
            cells = []
            for data, v in {"digits": images, "inverted": 1 - images}.items():
                epochs, history = jax.tree.map(np.asarray, train(optimizer, v, keys, options.epochs))
                curves[learning_rate][gradient, data] = epochs, history
                cells.append(f"{history[:, -1].mean():7.2f} ± {history[:, -1].std(ddof=1):.2f}")
            print(f"{learning_rate:13g}  {gradient:8}  {cells[0]:>14}  {cells[1]:>14}")
    save_picture(options.output, curves, images, options.seeds)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
