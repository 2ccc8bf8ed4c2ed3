"""Patches of photographs, learned by a restricted Boltzmann machine (RBM) with Gaussian visible and ReLU hidden units.

    python examples/patches.py

The data are patches of 8 × 8 pixels from scikit-learn's two photographs at half size, projected onto their 32 largest
principal components and whitened. Whitening removes all correlations, so a Gaussian finds no structure in the patches.
But natural images are sparse. A ReLU unit is silent until a patch resembles its filter, and then widens the
distribution along the filter. If the weights are too large, the energy is unbounded below and no distribution exists.
The data have heavy tails, so maximizing the likelihood leads to such weights; `project` keeps them below the limit.
Prints the log-likelihood of held-out patches under the RBM and under the Gaussian. Annealing log Z forward tends to
overestimate the likelihood, and annealing in reverse to underestimate it. Draws patches, samples, and filters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import shared
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images

import paysage_jax as pj

SIDE, COMPONENTS = 8, 32
PATCHES = 15_000  # to train on; a third as many are held out
SHOWN = 49
LARGEST = 0.95  # the largest singular value after `limit`
MACHINE = pj.rbm.RBM(visible=pj.rbm.Gaussian(), hidden=pj.rbm.ReLU())


def load(photographs):
    """Whitened training and held-out patches, (patches, COMPONENTS), and the axes to map them back to pixels."""
    random = np.random.default_rng(0)
    rows = []
    for photograph in photographs:
        grey = np.log1p(photograph.mean(axis=2))
        small = (grey[:-1:2, :-1:2] + grey[1::2, :-1:2] + grey[:-1:2, 1::2] + grey[1::2, 1::2]) / 4
        every = np.lib.stride_tricks.sliding_window_view(small, (SIDE, SIDE)).reshape(-1, SIDE**2)
        rows.append(random.permutation(every)[: PATCHES * 2 // 3])
    patches = random.permutation(np.concatenate(rows))
    patches = patches - patches.mean(axis=1, keepdims=True)
    # The contrast differs between patches, which causes much of the heavy tails.
    contrast = patches.std(axis=1, keepdims=True)
    patches = patches / (contrast + np.median(contrast))
    patches = patches - patches[:PATCHES].mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(patches[:PATCHES].T, bias=True))
    variances, axes = variances[-COMPONENTS:], axes[:, -COMPONENTS:]
    white = (patches @ axes / np.sqrt(variances)).astype(np.float32)
    return white[:PATCHES], white[PATCHES:], (axes * np.sqrt(variances)).T


def gaussian_log_likelihood(white):
    """The mean log-likelihood under the standard normal, the Gaussian that fits the whitened training patches best."""
    return -np.mean(np.sum(white**2 + np.log(2 * np.pi), axis=1)) / 2


def limit(params):
    """The nearest weights for which the energy grows in all directions, even if all hidden units are active.

    all singular values of W σ / s < 1,   s, σ = the standard deviations of visible and hidden units
    """
    (s, σ), matrix = (jnp.exp(layer["log_var"] / 2) for layer in params["layers"]), params["weights"][0]["matrix"]
    u, values, v = jnp.linalg.svd(matrix * σ[None] / s[:, None], full_matrices=False)
    limited = (u * jnp.minimum(values, LARGEST)[None]) @ v
    return params | {"weights": [{"matrix": limited * s[:, None] / σ[None]}]}


def train(patches, hidden, epochs, key):
    """Train and return the result of `pj.fit`."""
    init_key, key = jax.random.split(key)
    start = MACHINE.init(patches, hidden, init_key)
    # Small weights would not grow: their gradient is a covariance of components, which is zero for whitened data.
    start["weights"][0]["matrix"] *= 4
    start["layers"][1]["loc"] -= 1
    start["layers"][0]["log_var"] -= 0.7  # silent units leave a narrower distribution
    return pj.fit(
        start,
        pj.chain(pj.center(activations=MACHINE.activations), pj.sgd(0.01), pj.project(limit), pj.average_parameters()),
        pj.persistent_contrastive_divergence(MACHINE, num_chains=100),
        patches,
        epochs=epochs,
        batch_size=100,
        key=key,
    )


def bracket(params, training, held_out, chains, key):
    """The log-likelihood with log Z annealed forward, and in reverse from the chains."""
    path_key, forward_key, reverse_key = jax.random.split(key, 3)
    annealing = MACHINE.annealing(params, training, 400, path_key)
    forward = pj.annealed_importance_sampling(MACHINE, annealing, forward_key, steps=300)
    back = pj.reverse_annealed_importance_sampling(MACHINE, annealing, chains, reverse_key, steps=300)
    return [float(MACHINE.log_likelihood(params, held_out, x.log_z)) for x in (forward, back)]


def main(argv=None):
    """Train, print the results, and draw the picture."""
    parser = shared.make_parser(__doc__, 30, "patches.png")
    parser.add_argument("--hidden", type=int, default=48, help="hidden units")
    options = shared.parse(parser, argv, hidden=(1, 200))

    training, held_out, axes = load(load_sample_images().images)
    train_key, mixing_key, bracket_key = jax.random.split(jax.random.key(options.seed), 3)
    result = train(training, options.hidden, options.epochs, train_key)
    params, chains = pj.averaged_parameters(result), result.estimator_state
    gaussian = gaussian_log_likelihood(held_out)
    forward, back = bracket(params, training, held_out, chains, bracket_key)
    print(f"log-likelihood of {len(held_out)} held-out patches, whitened, in nats per patch:")
    print(f"RBM, forward {forward:.2f}   in reverse {back:.2f}   Gaussian {gaussian:.2f}")
    print(f"\nmixing of the chains:\n{pj.mixing(MACHINE, params, chains, mixing_key, steps=200)}")

    filters = np.asarray(params["weights"][0]["matrix"]).T @ axes
    panels = {
        "held-out patches": held_out[:SHOWN] @ axes,
        f"samples of the RBM, {COMPONENTS} × {options.hidden}": np.asarray(chains)[:SHOWN] @ axes,
        "samples of the Gaussian": np.random.default_rng(0).normal(size=(SHOWN, COMPONENTS)) @ axes,
        "filters": (filters / np.abs(filters).max(axis=1, keepdims=True))[:SHOWN],
    }
    figure = Figure(figsize=(17, 4.6), layout="constrained")
    for ax, (title, rows) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        shared.show(ax, title, rows, (SIDE, SIDE), largest=1)
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
