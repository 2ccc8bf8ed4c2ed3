"""One network in flax and in equinox, trained by our optimizers in the style of each library.

    pip install -e '.[integrations]'
    python examples/flax_equinox.py

The network classifies handwritten digits. In each library optax's Adam and our Adam train it from the same start on the
same batches, in training steps as users of the library write them. Ours also packs its moments and averages the
parameters. Prints how much the final parameters differ from optax's, which is float32 rounding, and how many held-out
digits the last and the averaged parameters recognize. Plots both by step.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import shared
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import paysage_jax as pj

BATCH, HIDDEN, TRAINING = 100, 32, 1400
OURS = pj.chain(pj.packing.pack_moments(pj.adam(0.003)), pj.average_parameters())
THEIRS = optax.adam(0.003)


def cross_entropy(model, x, labels):
    """The mean of -log p(label), for a model that maps rows to scores."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


class EquinoxNetwork(eqx.Module):
    """Two linear layers. equinox's layers take one row, so the network maps over rows."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(64, HIDDEN, key=keys[0])
        self.second = eqx.nn.Linear(HIDDEN, 10, key=keys[1])

    def __call__(self, x):
        return jax.vmap(lambda row: self.second(jnp.tanh(self.first(row))))(x)


def train_equinox(optimizer, batches, seed):
    """The model after each batch and, for OURS, the model with the averaged parameters."""
    model = EquinoxNetwork(jax.random.key(seed))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x, labels):
        gradient = eqx.filter_grad(cross_entropy)(model, x, labels)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for x, labels in batches:
        model, state = step(model, state, x, labels)
        yield model, pj.averaged_parameters(state) if optimizer is OURS else model


class FlaxNetwork(nnx.Module):
    """The same network. flax's layers take a batch of rows."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, 10, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def train_flax(optimizer, batches, seed):
    """As `train_equinox`."""
    model = FlaxNetwork(nnx.Rngs(seed))
    trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, trainer, x, labels):
        trainer.update(model, nnx.grad(cross_entropy)(model, x, labels))

    for x, labels in batches:
        step(model, trainer, x, labels)
        average = pj.averaged_parameters(trainer.opt_state) if optimizer is OURS else nnx.state(model)
        # Copies: the next step changes the arrays in place.
        yield nnx.clone(model), nnx.clone(nnx.merge(nnx.graphdef(model), average))


LIBRARIES = {"equinox": train_equinox, "flax": train_flax}


def accuracy(model, x, labels):
    """The share of rows whose label has the highest score."""
    return np.mean(np.argmax(model(x), axis=1) == labels)


def largest_difference(a, b):
    """The largest difference of any parameter of two models."""
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def main(argv=None):
    """Train, print and plot."""
    options = shared.parse(shared.make_parser(__doc__, 20, "flax_equinox.png"), argv)
    random = np.random.default_rng(options.seed)
    x, labels = load_digits(return_X_y=True)
    order = random.permutation(len(x))
    x, labels = (x[order] / 16).astype(np.float32), labels[order]
    rows = np.concatenate([random.permutation(TRAINING) for _ in range(options.epochs)]).reshape(-1, BATCH)
    batches = [(x[chosen], labels[chosen]) for chosen in rows]

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    distance, held_out = figure.subplots(1, 2)
    steps = 1 + np.arange(len(batches))
    print(f"after {len(batches)} steps: held-out accuracy, and largest difference of a parameter from optax")
    for (name, train), style in zip(LIBRARIES.items(), ("C0-", "C1--"), strict=True):
        course, averages = zip(*train(OURS, batches, options.seed), strict=True)
        reference = (model for model, _ in train(THEIRS, batches, options.seed))
        difference = [largest_difference(a, b) for a, b in zip(course, reference, strict=True)]
        last, averaged = (
            [accuracy(m, x[TRAINING:], labels[TRAINING:]) for m in models] for models in (course, averages)
        )
        print(f"{name:8} last {last[-1]:.1%}   averaged {averaged[-1]:.1%}   difference {difference[-1]:.1e}")
        distance.plot(steps, difference, style, label=name)
        held_out.plot(steps, last, style, alpha=0.4, label=f"{name}, last parameters")
        held_out.plot(steps, averaged, style, label=f"{name}, averaged parameters")
    distance.set(title="difference from optax", xlabel="step", ylabel="largest of all parameters", yscale="log")
    held_out.set(title="held-out digits", xlabel="step", ylabel="part recognised", ylim=(0.8, 1))
    for axes in (distance, held_out):
        axes.set(box_aspect=1)
        axes.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
