"""Scripts for both generations of paysage, with one import changed, and the same scripts rewritten as pure functions.

    python examples/migrate_from_paysage.py

All train the same restricted Boltzmann machine on digits, each with different random numbers. Prints exact
log-likelihoods.
"""

import digits
import jax
import numpy as np
import shared

import paysage_jax as pj
from paysage_jax import optimizers  # was: from paysage import optimizers
from paysage_jax import paysage_0_2 as paysage  # was: import paysage

MODEL = pj.rbm.RBM()


class NumpyRBM:
    """A model in NumPy. The scripts call its `gradient`, and the optimizers call its `parameter_update`."""

    def __init__(self, params, seed):
        self.params = jax.tree.map(np.array, params)
        self.random = np.random.default_rng(seed)

    def unpack(self):
        """The visible biases, the hidden biases and the weights."""
        visible, hidden = self.params["layers"]
        return visible["loc"], hidden["loc"], self.params["weights"][0]["matrix"]

    def gradient(self, v_data, v_model):
        """The gradient of the mean free energy of the data minus that of samples; any tree of arrays works."""
        _, c, w = self.unpack()
        h_data, h_model = sigmoid(c + v_data @ w), sigmoid(c + v_model @ w)
        return {
            "layers": [{"loc": v_model.mean(0) - v_data.mean(0)}, {"loc": h_model.mean(0) - h_data.mean(0)}],
            "weights": [{"matrix": v_model.T @ h_model / len(v_model) - v_data.T @ h_data / len(v_data)}],
        }

    def parameter_update(self, delta):
        """Step downhill, in place."""
        for parameter, change in zip(jax.tree.leaves(self.params), jax.tree.leaves(delta), strict=True):
            parameter -= change

    def gibbs(self, v):
        """One step of block Gibbs sampling, v to h to v."""
        b, c, w = self.unpack()
        return self.draw(sigmoid(b + self.draw(sigmoid(c + v @ w)) @ w.T))

    def draw(self, mean):
        """Units that are 1 with the given probabilities."""
        return (self.random.random(mean.shape) < mean).astype(mean.dtype)


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return (1 + np.tanh(x / 2)) / 2


# --- a script of early 2017: the optimizer asks the model for its gradient ---------------------------


def script_2017(model, batches, epochs):
    """Persistent contrastive divergence with the rate 0.01 / (1 + 0.1 epoch)."""
    adam = optimizers.ADAM(model, stepsize=0.01, scheduler=optimizers.PowerLawDecay(lr_decay=0.1))
    chains = batches[0]
    for epoch in range(epochs):
        for v_data in batches:
            chains = model.gibbs(chains)
            adam.update(model, v_data, chains, epoch)


def rewritten_2017():
    """The same optimizer as a pure (init, update) pair."""
    return pj.classic.adam(pj.per_epoch(pj.power_law_decay(0.01, decay_rate=0.1)))


# --- a script for paysage 0.2: the schedule advances once per epoch, the optimizer takes the gradient --


def script_0_2(model, batches, epochs):
    """Persistent contrastive divergence with 1 / rate = 1 / 0.01 + 2 epoch."""
    adam = paysage.optimizers.ADAM(stepsize=paysage.schedules.PowerLawDecay(initial=0.01, coefficient=2.0))
    chains = batches[0]
    for _ in range(epochs):
        adam.update_lr()
        for v_data in batches:
            chains = model.gibbs(chains)
            adam.update(model, model.gradient(v_data, chains))


def rewritten_0_2():
    """The same: the decay rate is the initial step size times paysage's coefficient."""
    return pj.classic.adam(pj.per_epoch(pj.power_law_decay(0.01, decay_rate=0.01 * 2.0)))


def train(optimizer, params, images, key, epochs):
    """The whole run as one compiled call."""
    estimator = pj.persistent_contrastive_divergence(MODEL)
    options = {"epochs": epochs, "batch_size": digits.BATCH, "shuffle": False, "key": key}
    return pj.fit(params, optimizer, estimator, images, **options).params


def main(argv=None):
    """Train in all four ways and print the log-likelihoods."""
    options = shared.parse(shared.make_parser(__doc__, 30), argv)
    images = digits.load()
    init_key, *keys = jax.random.split(jax.random.key(options.seed), 3)
    trained = {"start": MODEL.init(images.train, 16, init_key)}
    ways = {"2017": (script_2017, rewritten_2017), "0.2": (script_0_2, rewritten_0_2)}
    for key, (name, (script, rewritten)) in zip(keys, ways.items(), strict=True):
        model = NumpyRBM(trained["start"], options.seed)
        script(model, images.batches, options.epochs)
        trained[f"{name} script"] = model.params
        trained[f"{name} rewritten"] = train(rewritten(), trained["start"], images.train, key, options.epochs)

    print("exact log-likelihood of the training images, nats per image")
    for name, params in trained.items():
        print(f"{name:16}{MODEL.log_likelihood(params, images.train):8.2f}")


if __name__ == "__main__":
    main()
