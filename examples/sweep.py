"""Which learning rate? 48 trainings, 3 runs at each of 16 rates, in one compiled program.

    python examples/sweep.py
    python examples/sweep.py --lowest 0.5 --highest 5 --runs 10

An optimizer is a pytree whose hyperparameters are leaves. So `jax.vmap` maps `pj.fit` over learning rates as it does
over random keys, and new learning rates do not recompile it.

Prints and plots the exact log-likelihood at every rate, with the filters (columns of the weight matrix) at three rates.
"""

import time
from functools import partial

import digits
import jax
import jax.numpy as jnp
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

MODEL = pj.rbm.RBM()

HIDDEN = 16


@partial(jax.jit, static_argnames="epochs")
@partial(jax.vmap, in_axes=(None, None, 0, None))  # rows: learning rates
@partial(jax.vmap, in_axes=(None, None, None, 0))  # columns: keys
def sweep(images, epochs, learning_rate, key):
    """The log-likelihood and the filters after one training."""
    init_key, key = jax.random.split(key)
    result = pj.fit(
        MODEL.init(images, HIDDEN, init_key),
        pj.chain(pj.center(), pj.sgd(learning_rate), pj.average_parameters()),
        pj.persistent_contrastive_divergence(MODEL),
        images,
        epochs=epochs,
        batch_size=digits.BATCH,
        key=key,
    )
    params = pj.averaged_parameters(result)
    return MODEL.log_likelihood(params, images), params["weights"][0]["matrix"].T


def main(argv=None):
    """Sweep, print and plot."""
    parser = shared.make_parser(__doc__, 30, "sweep.png")
    parser.add_argument("--lowest", type=float, default=0.03, help="learning rate")
    parser.add_argument("--highest", type=float, default=10.0, help="learning rate")
    parser.add_argument("--rates", type=int, default=16, help="learning rates, evenly spaced in their logarithm")
    parser.add_argument("--runs", type=int, default=3, help="runs at each learning rate")
    rates, counts = (1e-9, 1e3), (1, 1000)
    options = shared.parse(parser, argv, lowest=rates, highest=rates, rates=counts, runs=counts)

    images = digits.load().train
    learning_rates = np.geomspace(options.lowest, options.highest, options.rates)
    keys = jax.random.split(jax.random.key(options.seed), options.runs)
    start = time.perf_counter()
    values, filters = map(np.asarray, sweep(images, options.epochs, jnp.asarray(learning_rates, float), keys))
    seconds = time.perf_counter() - start
    untrained = MODEL.log_likelihood(MODEL.init(images, HIDDEN, keys[0]), images)

    print(f"{values.size} trainings of {options.epochs} epochs in {seconds:.1f} s, compilation included")
    print("learning rate  log-likelihood, nats per image: mean, worst and best run")
    for learning_rate, row in zip(learning_rates, values, strict=True):
        print(f"{learning_rate:13.2g}  {row.mean():7.2f}  {row.min():7.2f}  {row.max():7.2f}")

    figure = Figure(figsize=(14.5, 4.3), layout="constrained")
    figure.suptitle(
        f"Centred SGD, averaged: {options.rates} learning rates × {options.runs} runs, {options.epochs} epochs each"
    )
    curve, *squares = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    curve.plot(learning_rates, values.mean(axis=1), label="mean")
    curve.plot(learning_rates, values, "k.", markersize=4, label=["one run", *[None] * (options.runs - 1)])
    curve.axhline(untrained, linestyle="--", linewidth=1, color="C7", label="before training")
    curve.set(title="exact log-likelihood", xscale="log", xlabel="learning rate")
    curve.set(ylabel="nats per image")
    curve.grid(alpha=0.3)
    curve.legend()
    best = np.nan_to_num(values.mean(axis=1), nan=-np.inf).argmax()
    for axes, i in zip(squares, (0, best, -1), strict=True):
        largest = np.abs(filters[i, 0]).max()
        title = f"filters at learning rate {learning_rates[i]:.2g}\nweights up to ±{largest:.2g}"
        shared.show(axes, title, filters[i, 0], (8, 8), largest)
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
