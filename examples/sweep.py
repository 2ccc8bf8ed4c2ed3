"""Which learning rate? Whole trainings for 16 of them and 3 seeds each, in one compiled program.

    python examples/sweep.py
    python examples/sweep.py --from 0.005 --to 0.05 --seeds 10

An optimizer is a pytree whose numbers are leaves, so `jax.vmap` maps `fit` over its learning rate as over the seed.
Prints the exact log-likelihood at every rate and writes a picture of it, and of filters at three of the rates.
"""

import time
from functools import partial
from pathlib import Path

import digits
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from centering import picture
from rbm_digits import Parser, mosaic, number

import paysage_jax
from paysage_jax import rbm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HIDDEN = 16
ESTIMATOR = paysage_jax.persistent_contrastive_divergence(rbm.free_energy, rbm.gibbs)


def train(images, epochs, learning_rate, key):
    """One training: the log-likelihood of the images after it, in nats per image, and the filters."""
    init_key, key = jax.random.split(key)
    result = paysage_jax.fit(
        rbm.init_bernoulli(images, HIDDEN, init_key),
        paysage_jax.adam(paysage_jax.per_epoch(paysage_jax.power_law_decay(learning_rate, 0.1))),
        ESTIMATOR,
        images,
        epochs=epochs,
        batch_size=digits.BATCH,
        key=key,
    )
    log_likelihood = rbm.log_likelihood(result.params, images, rbm.log_partition(result.params))
    return log_likelihood, result.params["weights"][0]["matrix"].T


@partial(jax.jit, static_argnames="epochs")
def sweep(images, epochs, learning_rates, keys):
    """`train` for every learning rate (rows) and every key (columns)."""
    one = partial(train, images, epochs)
    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(learning_rates, keys)


def save_picture(path, title, learning_rates, log_likelihoods, untrained, filters):
    """Log-likelihood against learning rate; the filters at the lowest, the best and the highest rate."""
    figure, (curve, *squares) = plt.subplots(
        1, 4, figsize=(14.5, 4.1), width_ratios=(1.5, 1, 1, 1), layout="constrained"
    )
    figure.suptitle(title)
    mean = log_likelihoods.mean(axis=1)
    best = np.nan_to_num(mean, nan=-np.inf).argmax()
    curve.fill_between(learning_rates, log_likelihoods.min(axis=1), log_likelihoods.max(axis=1), alpha=0.2, linewidth=0)
    curve.plot(learning_rates, mean, label="mean")
    for seed, column in enumerate(log_likelihoods.T):
        curve.plot(learning_rates, column, ".", color="black", markersize=4, label="one run" if seed == 0 else None)
    curve.axhline(untrained, linestyle="--", linewidth=1, color="C7", label="before training")
    curve.set(xscale="log", xlabel="learning rate in the first epoch", ylabel="nats per image")
    curve.set_title("exact log-likelihood\nmean, and worst to best seed", fontsize=11)
    curve.grid(alpha=0.3)
    curve.legend()
    for axes, i, name in zip(squares, (0, best, -1), ("lowest", "best", "highest"), strict=True):
        rows = filters[i, 0]
        limit = np.abs(rows).max()
        axes.imshow(
            mosaic(rows, (8, 8)), matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.8"), vmin=-limit, vmax=limit
        )
        axes.set_title(f"filters at the {name} rate, {learning_rates[i]:.2g}\nweights up to ±{limit:.2g}", fontsize=11)
        axes.set_axis_off()
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


def main(argv=None):
    """Parse the command line, train, print, draw."""
    parser = Parser(description="Train for many learning rates and seeds in one compiled program.")
    parser.add_argument("--from", type=number(float, 1e-9, 1e3), default=5e-4, dest="low", help="lowest (%(default)s)")
    parser.add_argument("--to", type=number(float, 1e-9, 1e3), default=0.1, dest="high", help="highest (%(default)s)")
    parser.add_argument("--rates", type=number(int, 2, 1000), default=16, help="learning rates (%(default)s)")
    parser.add_argument("--seeds", type=number(int, 1, 1000), default=3, help="runs at each (%(default)s)")
    parser.add_argument("--epochs", type=number(int, 1, 100_000), default=30, help="passes over the data (%(default)s)")
    parser.add_argument("--output", type=picture, default=Path("sweep.png"), help="the picture (%(default)s)")
    options = parser.parse_args(argv)

    images = digits.load().train
    learning_rates = jnp.geomspace(options.low, options.high, options.rates)
    keys = jax.random.split(jax.random.key(0), options.seeds)
    start = time.perf_counter()
    log_likelihoods, filters = jax.tree.map(np.asarray, sweep(images, options.epochs, learning_rates, keys))
    seconds = time.perf_counter() - start

    print(f"{log_likelihoods.size} trainings of {options.epochs} epochs in {seconds:.1f} s, compilation included")
    print("learning rate  log-likelihood, nats per image: mean, worst and best seed")
    for learning_rate, row in zip(learning_rates, log_likelihoods, strict=True):
        print(f"{learning_rate:13.2g}  {row.mean():7.2f}  {row.min():7.2f}  {row.max():7.2f}")
    start = rbm.init_bernoulli(images, HIDDEN, keys[0])
    untrained = rbm.log_likelihood(start, images, rbm.log_partition(start))
    title = (
        f"Adam, {options.rates} learning rates × {options.seeds} seeds, {options.epochs} epochs each: "
        f"one compiled program, {seconds:.0f} s"
    )
    save_picture(options.output, title, learning_rates, log_likelihoods, untrained, filters)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
