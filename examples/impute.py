"""Complete the lower halves of held-out digits given the upper halves, with a restricted Boltzmann machine (RBM).

    python examples/impute.py

The RBM is trained on whole digits. `impute` samples the missing pixels given the known pixels by Gibbs sampling, here
200 times for every digit. The mean of these draws estimates the probability that a missing pixel is on. Prints the
squared error and the log-likelihood of this estimate and of two guesses without a model: the mean of each pixel over
all training images, and over the training images with the most similar upper halves. Draws digits, single draws, and
the means.
"""

from functools import partial

import digits
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

MACHINE = pj.rbm.RBM()
DRAWS = 200
NEIGHBOURS = 10  # the number with the smallest error on these images
SHOWN = 12


def train(images, hidden, epochs, key):
    """Train by centred SGD at a constant rate; return the averaged parameters."""
    init_key, key = jax.random.split(key)
    result = pj.fit(
        MACHINE.init(images, hidden, init_key),
        pj.chain(pj.center(), pj.sgd(0.5), pj.average_parameters()),
        pj.persistent_contrastive_divergence(MACHINE, num_chains=100),
        images,
        epochs=epochs,
        batch_size=digits.BATCH,
        key=key,
    )
    return pj.averaged_parameters(result)


@partial(jax.jit, static_argnames="count")
def draw(params, images, missing, key, count):
    """Complete every image `count` times; return (count, images, pixels)."""
    known = jnp.where(missing, jnp.nan, images)
    return jax.vmap(lambda key: MACHINE.impute(params, known, missing, key))(jax.random.split(key, count))


def mean_of_nearest(train, images, missing):
    """For every image, the mean of the training images that differ least from its known pixels."""
    different = (train[None] != images[:, None]) & ~missing[:, None]
    order = np.argsort(different.sum(axis=2), axis=1, kind="stable")
    return train[order[:, :NEIGHBOURS]].mean(axis=1)


def errors(p, images, missing):
    """The mean squared error and the mean log-likelihood of the missing pixels, predicted with probabilities p."""
    p, v = p[missing], images[missing]
    uncertain = np.clip(p, 1 / DRAWS, 1 - 1 / DRAWS)  # a value that no draw has shown is still possible
    return np.mean((p - v) ** 2), np.mean(np.log(np.where(v == 1, uncertain, 1 - uncertain)))


def main(argv=None):
    """Train, impute, print the results, and draw the picture."""
    parser = shared.make_parser(__doc__, 60, "impute.png")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units")
    options = shared.parse(parser, argv, hidden=(1, 1000))
    images = digits.load()
    v = images.validation
    missing = np.tile(np.arange(v.shape[1]) >= v.shape[1] // 2, (len(v), 1))
    train_key, draw_key = jax.random.split(jax.random.key(options.seed))
    params = train(images.train, options.hidden, options.epochs, train_key)
    draws = np.asarray(draw(params, v, missing, draw_key, DRAWS))

    guesses = {
        "mean of the pixel": np.tile(images.train.mean(axis=0), (len(v), 1)),
        f"mean of {NEIGHBOURS} nearest": mean_of_nearest(images.train, v, missing),
        f"mean of {DRAWS} draws": draws.mean(axis=0),
    }
    print(f"lower halves of {len(v)} held-out digits, mean per pixel:")
    print(f"{'':20}squared error   log-likelihood in nats")
    for name, p in guesses.items():
        error, nats = errors(p, v, missing)
        print(f"{name:20}{error:13.4f}   {nats:22.4f}")

    known = np.where(missing, np.nan, v)
    both = {"held-out digits": v, "what is known": known} | {f"draw {i + 1}": draws[i] for i in range(3)} | guesses
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    rows = figure.subplots(len(both), SHOWN)
    colors = matplotlib.colormaps["binary"].with_extremes(bad="C0")
    for axes, (name, pictures) in zip(rows, both.items(), strict=True):
        for ax, pixels, digit in zip(axes, pictures, v, strict=False):
            ax.imshow(np.where(missing[0], pixels, digit).reshape(images.shape), colors, vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
