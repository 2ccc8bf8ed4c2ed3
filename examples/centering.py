"""The centred gradient learns digits and inverted digits equally well; the plain gradient does not.

    python examples/centering.py
    python examples/centering.py --learning-rate 1

Inverting the data changes nothing for a Boltzmann machine: flipping its visible units turns a model of the digits into
an equally good model of the inverted digits. The plain gradient is not invariant under this flip and learns worse where
most pixels are 1; the centred gradient (`pj.center`; Melchior, Fischer & Wiskott, 2016) is invariant.

Prints exact log-likelihoods after training, over several runs, and plots them by epoch.
"""

from functools import partial
from typing import Any

import digits
import jax
import jax.numpy as jnp
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

MODEL = pj.rbm.RBM()

HIDDEN = 16


def make_optimizers(learning_rate):
    """SGD on the plain and on the centred gradient, with the rate falling as 1 / (1 + epoch / 10)."""
    sgd = pj.sgd(pj.per_epoch(pj.power_law_decay(learning_rate, 0.1)))
    return {"plain": sgd, "centred": pj.chain(pj.center(), sgd)}


@partial(jax.jit, static_argnames="epochs")
@partial(jax.vmap, in_axes=(None, None, None, 0))  # a run for each key, all in one program
def train(optimizer, images, epochs, key):
    """The epochs at which the log-likelihood was measured, and its values."""
    init_key, key = jax.random.split(key)
    start = MODEL.init(images, HIDDEN, init_key)
    history = pj.fit(
        start,
        optimizer,
        pj.persistent_contrastive_divergence(MODEL),
        images,
        epochs=epochs,
        batch_size=digits.BATCH,
        shuffle=False,  # as in paysage; with shuffled batches the plain gradient loses less
        key=key,
        metrics={"log-likelihood": lambda state, key: MODEL.log_likelihood(state.params, images)},
        metrics_every=max(1, epochs // 6),
    ).history
    return jnp.append(0, history["epoch"]), jnp.append(MODEL.log_likelihood(start, images), history["log-likelihood"])


def main(argv=None):
    """Train with both gradients on both kinds of image, print and plot."""
    parser = shared.make_parser(__doc__, 30, "centering.png")
    parser.add_argument("--learning-rate", type=float, default=0.3, help="in the first epoch")
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind")
    options = shared.parse(parser, argv, learning_rate=(1e-9, 1e3), runs=(2, 1000))

    images = digits.load().train
    kinds = {"digits": images, "inverted": 1 - images}
    keys = jax.random.split(jax.random.key(options.seed), options.runs)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    layout: list[Any] = [["digits", "plain", "centred"], ["inverted", "plain", "centred"]]
    panels = figure.subplot_mosaic(layout, width_ratios=(2.4, 4.6, 4.6))
    figure.suptitle(f"SGD, learning rate {options.learning_rate:g}: exact log-likelihood in nats per image")

    print(f"exact log-likelihood after {options.epochs} epochs, nats per image: mean ± sd of {options.runs} runs")
    for gradient, optimizer in make_optimizers(options.learning_rate).items():
        axes = panels[gradient]
        for style, (kind, v) in zip(("C0-", "C1--"), kinds.items(), strict=True):
            epochs, values = train(optimizer, v, options.epochs, keys)
            last = values[:, -1]
            print(f"{gradient:7} gradient, {kind:8}  {last.mean():7.2f} ± {last.std(ddof=1):.2f}")
            axes.plot(epochs[0], values.mean(axis=0), style, label=kind)
            axes.fill_between(epochs[0], values.min(axis=0), values.max(axis=0), color=style[:2], alpha=0.2)
        axes.set(title=f"{gradient} gradient", xlabel="epoch")
        axes.sharey(panels["plain"])
        axes.grid(alpha=0.3)
    panels["centred"].legend(loc="lower right", title=f"mean of {options.runs} runs; shaded: worst to best")
    for kind, v in kinds.items():
        shared.show(panels[kind], kind, v[:9], (8, 8))
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
