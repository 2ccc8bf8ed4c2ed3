"""A numpy script written for `paysage.optimizers`, run unchanged but for one import, beside its functional rewrite.

    python examples/migrate_from_paysage.py

trains the same restricted Boltzmann machine in both ways, each with random numbers of its own.
"""

import digits
import jax
import numpy as np
from rbm_digits import Parser, number, train

import paysage_jax
from paysage_jax import (
    optimizers,  # was: from paysage import optimizers
    rbm,
)

# --- the script of 2017 ------------------------------------------------------------------------------


class NumpyRBM:
    """What an optimizer asks of a model is `gradient` and `parameter_update`; how it samples is its own affair."""

    def __init__(self, params, seed):
        self.params = jax.tree.map(np.array, params)
        self.random = np.random.default_rng(seed)

    def _unpack(self):
        visible, hidden = self.params["layers"]
        return visible["loc"], hidden["loc"], self.params["weights"][0]["matrix"]

    def _hidden_mean(self, v):
        _, c, w = self._unpack()
        return sigmoid(c + v @ w)

    def gradient(self, v_data, v_model):
        """Of the mean free energy of the data minus that of the model's samples."""
        h_data, h_model = self._hidden_mean(v_data), self._hidden_mean(v_model)
        return {
            "layers": [
                {"loc": np.mean(v_model, 0) - np.mean(v_data, 0)},
                {"loc": np.mean(h_model, 0) - np.mean(h_data, 0)},
            ],
            "weights": [{"matrix": v_model.T @ h_model / len(v_model) - v_data.T @ h_data / len(v_data)}],
        }

    def parameter_update(self, delta):
        """Step downhill, in place."""
        for group, layers in self.params.items():
            for layer, change in zip(layers, delta[group], strict=True):
                for name in layer:
                    layer[name] -= change[name]

    def gibbs(self, v):
        """One step of block Gibbs sampling, v to h to v."""
        b, _, w = self._unpack()
        h = self._draw(self._hidden_mean(v))
        return self._draw(sigmoid(b + h @ w.T))

    def _draw(self, mean):
        return (self.random.random(mean.shape) < mean).astype(mean.dtype)


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return (1 + np.tanh(x / 2)) / 2


def train_numpy(model, batches, epochs):
    """Persistent contrastive divergence with the documented ADAM of 2017."""
    adam = optimizers.ADAM(model, stepsize=0.01, scheduler=optimizers.PowerLawDecay(lr_decay=0.1))
    chains = batches[0]
    for epoch in range(epochs):
        for v_data in batches:
            chains = model.gibbs(chains)
            adam.update(model, v_data, chains, epoch)


# --- the same, functional ----------------------------------------------------------------------------


def train_functional(params, images, key, epochs):
    """The same numerics as a pure (init, update) pair; the whole run is one compiled call."""
    stepsize = paysage_jax.per_epoch(paysage_jax.power_law_decay(0.01, decay_rate=0.1))
    return train(paysage_jax.classic.adam(stepsize), params, images, key, epochs).params


def main(argv=None):
    """Train both and print their exact log-likelihoods."""
    parser = Parser(description="A paysage script with the class shim, beside its functional rewrite.")
    parser.add_argument("--epochs", type=number(int, 1, 100_000), default=30, help="passes over the data (%(default)s)")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0)
    options = parser.parse_args(argv)

    images = digits.load()
    init_key, train_key = jax.random.split(jax.random.key(options.seed))
    start = rbm.init_bernoulli(images.train, 16, init_key)

    model = NumpyRBM(start, options.seed)
    train_numpy(model, images.batches, options.epochs)
    functional = train_functional(start, images, train_key, options.epochs)

    print("exact log-likelihood of the training images, nats per image")
    for name, params in (("start", start), ("class shim", model.params), ("functional", functional)):
        print(f"{name:12}{rbm.log_likelihood(params, images.train, rbm.log_partition(params)):8.2f}")


if __name__ == "__main__":
    main()
