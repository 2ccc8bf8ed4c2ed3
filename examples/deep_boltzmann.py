"""A deep Boltzmann machine (DBM) with two hidden layers learns handwritten digits.

    python examples/deep_boltzmann.py

Binary units v, h and g have the energy E = -b·v - c·h - d·g - v·W h - h·U g. The data contain only v, so the estimator
draws h and g by Gibbs sampling with v clamped. The persistent chains are complete states (v, h, g).

Prints exact log-likelihoods, computed as sums over the states of h. For comparison it prints the log-likelihoods of
independent pixels and of two restricted Boltzmann machines (RBM): one has only the first hidden layer, and one has as
many hidden units in a single layer. On digits as small as these the second layer adds little to the first.
Plots the training curve, the features of both layers, and samples.
"""

import math
from typing import Any

import digits
import jax
import jax.numpy as jnp
import numpy as np
import shared
from jax.nn import sigmoid, softplus
from jax.scipy.special import logsumexp
from matplotlib.figure import Figure

import paysage_jax as pj

ONE_LAYER = pj.rbm.RBM()

FIRST, SECOND = 12, 8  # hidden units
SHOWN = 36  # samples and images in the picture


def init(data, key):
    """An RBM with the means of the data and small weights, with a second hidden layer on top."""
    lower_key, upper_key = jax.random.split(key)
    params = ONE_LAYER.init(data, FIRST, lower_key)
    params["layers"].append({"loc": jnp.zeros(SECOND)})
    params["weights"].append({"matrix": 0.1 * jax.random.normal(upper_key, (FIRST, SECOND))})
    return params


def parts(params):
    """b, c, d and W, U."""
    return *(layer["loc"][None] for layer in params["layers"]), *(w["matrix"] for w in params["weights"])


def energy(params, states):
    """The energy E of every complete state."""
    (v, h, g), (b, c, d, W, U) = states, parts(params)
    return -(v @ b[0]) - jnp.sum((v @ W + c) * h, axis=1) - jnp.sum((h @ U + d) * g, axis=1)


def gibbs(params, states, key):
    """One step of block Gibbs sampling: h given v and g, then v and g given h."""
    (v, _, g), (b, c, d, W, U) = states, parts(params)
    draw = [lambda x, k=k: jax.random.bernoulli(k, sigmoid(x)).astype(v.dtype) for k in jax.random.split(key, 3)]
    h = draw[0](c + v @ W + g @ U.T)
    return draw[1](b + h @ W.T), h, draw[2](d + h @ U)


def complete(params, v, key):
    """Complete states: h and g drawn given v, by ten Gibbs steps with v clamped."""
    start = v, *(jnp.zeros((len(v), layer["loc"].size)) for layer in params["layers"][1:])
    return jax.lax.fori_loop(0, 10, lambda i, x: (v, *gibbs(params, x, jax.random.fold_in(key, i))[1:]), start)


def log_likelihood(params, v):
    """The exact mean of log p(v): given h, all units of v and g are independent."""
    b, c, d, W, U = parts(params)
    h = ((jnp.arange(2**c.size)[:, None] >> jnp.arange(c.size)[None]) & 1).astype(float)
    given_h = h @ c[0] + softplus(d + h @ U).sum(axis=1)
    log_z = logsumexp(given_h + softplus(b + h @ W.T).sum(axis=1))

    def log_p(v):  # mapped over images: all at once would take 30 MB per hundred images
        return v @ b[0] + logsumexp(given_h + h @ (v @ W)) - log_z

    return jnp.mean(jax.lax.map(log_p, v, batch_size=100))


def train(start, estimator, measure, images, epochs, key):
    """Train on the centred gradient, without which deep machines learn slowly."""
    return pj.fit(
        start,
        pj.chain(pj.center(), pj.sgd(1.0), pj.average_parameters()),
        estimator,
        images.train,
        epochs=epochs,
        batch_size=digits.BATCH,
        key=key,
        metrics={
            "nats": lambda state, key: jnp.stack([measure(state.params, v) for v in (images.train, images.validation)])
        },
        metrics_every=math.ceil(epochs / 8),
    )


def main(argv=None):
    """Train, print and plot."""
    options = shared.parse(shared.make_parser(__doc__, 40, "deep_boltzmann.png"), argv)
    images = digits.load()
    keys = jax.random.split(jax.random.key(options.seed), 4)

    pcd = pj.persistent_contrastive_divergence
    rbm = pcd(ONE_LAYER, steps=5), ONE_LAYER.log_likelihood
    start = init(images.train, keys[0])
    one_layer = [ONE_LAYER.init(images.train, n, keys[0]) for n in (FIRST, FIRST + SECOND)]
    runs: dict[str, tuple[Any, Any, Any]] = {
        f"DBM, {FIRST} + {SECOND}": (start, pcd(pj.Model(energy, gibbs, complete), steps=5), log_likelihood),
        f"RBM, {FIRST}": (one_layer[0], *rbm),
        f"RBM, {FIRST + SECOND}": (one_layer[1], *rbm),
    }
    results = {name: train(*run, images, options.epochs, keys[1]) for name, run in runs.items()}
    print("exact log-likelihood in nats per image\nhidden units        training  validation")
    nats = {name: result.history["nats"][-1] for name, result in results.items()}
    nothing = [jnp.zeros(w["matrix"].shape) for w in start["weights"]]
    independent = start | {"weights": [{"matrix": x} for x in nothing]}
    nats["none"] = [log_likelihood(independent, v) for v in (images.train, images.validation)]
    for name, (training, validation) in nats.items():
        print(f"{name:18}  {training:8.2f}  {validation:10.2f}")

    figure = Figure(figsize=(17, 4), layout="constrained")
    curve, lower, upper, real, drawn = figure.subplots(1, 5)
    for name, result in results.items():
        curve.plot(result.history["epoch"], result.history["nats"][:, 1], ".-", label=name)
    curve.set(title="exact log-likelihood, validation", xlabel="epoch", ylabel="nats per image", box_aspect=1)
    curve.legend(title="hidden units")
    params = pj.averaged_parameters(results[f"DBM, {FIRST} + {SECOND}"])
    first, second = (np.asarray(w["matrix"]) for w in params["weights"])
    for axes, rows, title in (
        (lower, first.T, "filters of the first layer"),
        (upper, (first @ second).T, "filters of the second layer"),
    ):
        shared.show(axes, title, rows, images.shape, largest=np.abs(rows).max())
    shared.show(real, "validation images", images.validation[:SHOWN], images.shape)
    noise = jax.random.bernoulli(keys[2], shape=(SHOWN, images.train.shape[1])).astype(float)
    states = complete(params, noise, keys[2])
    states = jax.lax.fori_loop(0, 500, lambda i, x: gibbs(params, x, jax.random.fold_in(keys[3], i)), states)
    shared.show(drawn, "samples of the DBM", states[0], images.shape)
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
