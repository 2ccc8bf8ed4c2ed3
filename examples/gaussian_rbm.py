"""The colours of a photograph, learned by a restricted Boltzmann machine (RBM) with Gaussian visible units.

    python examples/gaussian_rbm.py

The three visible units are the red, green and blue values of one pixel of scikit-learn's flower. Prints the exact
log-likelihood of held-out pixels, and for comparison the log-likelihood of a Gaussian with the mean and covariance of
the training pixels. Plots both by epoch, with the colours of the photograph and the colours that each model generates.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import shared
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

import paysage_jax as pj

MODEL = pj.rbm.RBM(visible=pj.rbm.Gaussian())

PIXELS = 10_000  # for training, and as many held out
SHOWN = 4000  # colours in each scatter plot


def load(photograph):
    """Whitened colours of random pixels, for training and held out, and the function that maps them back to RGB."""
    random = np.random.default_rng(0)
    levels = random.permutation(photograph.reshape(-1, 3))[: 2 * PIXELS]
    # A density needs continuous values, so each level is spread over the interval that rounds to it.
    rgb = (levels + random.random(levels.shape)) / 256
    mean = rgb[:PIXELS].mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(rgb[:PIXELS].T, bias=True))
    white = ((rgb - mean) @ axes / np.sqrt(variances)).astype(np.float32)
    return white[:PIXELS], white[PIXELS:], lambda white: white @ (axes * np.sqrt(variances)).T + mean


def train(data, held_out, hidden, epochs, key):
    """Train, with the exact log-likelihood of the held-out pixels by epoch."""
    init_key, key = jax.random.split(key)
    start = MODEL.init(data, hidden, init_key)
    # Small weights would not grow: their gradient is the covariance of different units, which whitening makes zero.
    start["weights"][0]["matrix"] *= 50
    start["layers"][1]["loc"] -= 2
    return pj.fit(
        start,
        pj.chain(pj.rmsprop(0.01), pj.average_parameters()),
        pj.persistent_contrastive_divergence(MODEL, num_chains=500, steps=10),
        data,
        epochs=epochs,
        batch_size=200,
        key=key,
        metrics={"nats": lambda state, key: MODEL.log_likelihood(state.params, held_out)},
    )


def gaussian_log_likelihood(white):
    """The log-likelihood of the standard normal, which fits the whitened training pixels best of all Gaussians."""
    return -np.mean(np.sum(white**2 + np.log(2 * np.pi), axis=1)) / 2


@partial(jax.jit, static_argnames="count")
def sample(params, count, key):
    """Exact, independent samples: h from p(h), whose states can be enumerated, then v from p(v | h)."""
    hidden = len(params["layers"][1]["loc"])
    states = ((jnp.arange(2**hidden)[:, None] >> jnp.arange(hidden)[None]) & 1).astype(float)
    hidden_key, visible_key = jax.random.split(key)
    drawn = jax.random.categorical(hidden_key, -MODEL.hidden_free_energy(params, states), shape=(count,))
    return MODEL.visible_sample(params, states[drawn], visible_key)


def main(argv=None):
    """Train, print and plot."""
    parser = shared.make_parser(__doc__, 60, "gaussian_rbm.png")
    parser.add_argument("--hidden", type=int, default=8, help="hidden units")
    options = shared.parse(parser, argv, hidden=(1, 16))

    photograph = load_sample_image("flower.jpg")
    training, held_out, to_rgb = load(photograph)
    train_key, sample_key, gaussian_key = jax.random.split(jax.random.key(options.seed), 3)
    result = train(training, held_out, options.hidden, options.epochs, train_key)
    reached, gaussian = result.history["nats"][-1], gaussian_log_likelihood(held_out)
    print(f"exact log-likelihood of {PIXELS} held-out pixels, whitened, in nats per pixel:")
    print(f"RBM {reached:.3f}   Gaussian {gaussian:.3f}   difference {reached - gaussian:.3f}")

    figure = Figure(figsize=(17, 3.6), layout="constrained")
    photo, *planes, curve = figure.subplots(1, 5, width_ratios=(1.4, 1, 1, 1, 1))
    photo.imshow(photograph)
    photo.set_title("the photograph")
    photo.axis("off")
    clouds = {
        "held-out pixels": held_out[:SHOWN],
        f"samples of the RBM, 3 × {options.hidden}": sample(pj.averaged_parameters(result), SHOWN, sample_key),
        "samples of the best Gaussian": jax.random.normal(gaussian_key, (SHOWN, 3)),
    }
    for axes, (title, white) in zip(planes, clouds.items(), strict=True):
        rgb = to_rgb(np.asarray(white))
        axes.scatter(rgb[:, 0], rgb[:, 2], c=np.clip(rgb, 0, 1), s=2)
        axes.set(title=title, xlabel="red", ylabel="blue", xlim=(-0.9, 1.6), ylim=(-0.4, 0.9), box_aspect=1)
    curve.plot(result.history["epoch"], result.history["nats"], label="RBM")
    curve.axhline(gaussian, color="C7", linestyle="--", label="best Gaussian")
    curve.set(title="held-out log-likelihood", xlabel="epoch", ylabel="nats per pixel", box_aspect=1)
    curve.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
