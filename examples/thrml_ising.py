"""Recover the couplings of an Ising model from samples of it; all sampling is done by thrml.

    python examples/thrml_ising.py

Spins s = ±1 on a square lattice have the energy E(s) = -Σ b s - Σ J s s' with random fields b and couplings J.
thrml draws the data. Then `fit` trains an Ising model that starts from zeros, by persistent contrastive divergence
in which thrml moves the chains and thrml's energy gives the gradient. Prints the error of the recovered parameters
beside the smallest one that so many samples allow, and writes a picture.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import thrml
from centering import picture
from jax.flatten_util import ravel_pytree
from rbm_digits import Parser, number
from thrml.models import IsingEBM, IsingSamplingProgram

import paysage_jax

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import LogLocator

CHAINS = 500
BATCH = 250


# --- the model, in thrml -----------------------------------------------------------------------------


class Lattice:
    """An Ising model on side × side spins with open boundaries.

    Parameters are {"fields": b, "couplings": J}. A batch of states is a tuple of bool arrays (batch, spins), one for
    each of two blocks as on a chessboard, whose spins are independent of each other given the other block.
    """

    def __init__(self, side):
        self.nodes: list[thrml.AbstractNode] = [thrml.SpinNode() for _ in range(side**2)]
        self.row, self.column = np.indices((side, side)).reshape(2, -1)
        numbers = np.arange(side**2).reshape(side, side)
        neighbours = (numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])
        self.pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in neighbours])
        self.colors = [np.flatnonzero((self.row + self.column) % 2 == color) for color in (0, 1)]
        self.blocks: list[Any] = [thrml.Block([self.nodes[i] for i in color]) for color in self.colors]

    def _model(self, params):
        edges = [(self.nodes[i], self.nodes[j]) for i, j in self.pairs]
        return IsingEBM(self.nodes, edges, params["fields"], params["couplings"], beta=jnp.ones(()))

    def energy(self, params, v):
        """E of every state of the batch v."""
        model = self._model(params)
        return jax.vmap(lambda state: model.energy(list(state), self.blocks))(v)

    def sample(self, params, v, key, schedule):
        """What thrml's schedule collects on the way from every state of the batch v: arrays (batch, samples, spins)."""
        program = IsingSamplingProgram(self._model(params), self.blocks, clamped_blocks=[])

        def run(state, key):
            return tuple(thrml.sample_states(key, program, schedule, list(state), [], self.blocks))

        return jax.vmap(run)(v, jax.random.split(key, len(v[0])))

    def sweep(self, params, v, key):
        """One block Gibbs sweep from every state of the batch v: the Markov kernel of the model."""
        return jax.tree.map(lambda s: s[:, 0], self.sample(params, v, key, thrml.SamplingSchedule(1, 1, 1)))

    def random_params(self, key):
        """Fields and couplings, normal with standard deviations of 0.2 and 0.5."""
        fields_key, couplings_key = jax.random.split(key)
        return {
            "fields": 0.2 * jax.random.normal(fields_key, (len(self.nodes),)),
            "couplings": 0.5 * jax.random.normal(couplings_key, (len(self.pairs),)),
        }


# --- data, training, and how good it can be ----------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 2))
def draw(lattice, params, count, key):
    """`count` states, rounded up to a multiple of CHAINS: 20 sweeps apart on chains that have run for 200."""
    schedule = thrml.SamplingSchedule(n_warmup=200, n_samples=-(-count // CHAINS), steps_per_sample=20)
    start = tuple(jnp.zeros((CHAINS, len(block)), bool) for block in lattice.blocks)
    return jax.tree.map(lambda s: s.reshape(-1, s.shape[-1]), lattice.sample(params, start, key, schedule))


def train(lattice, data, truth, epochs, key):
    """The recovered parameters, and the error at the start and after each epoch."""
    start = jax.tree.map(jnp.zeros_like, truth)

    def error(params, key):
        return rms(jax.tree.map(jnp.subtract, params, truth))

    result = paysage_jax.fit(
        start,
        paysage_jax.sgd(paysage_jax.per_epoch(paysage_jax.power_law_decay(0.3, 0.3))),
        paysage_jax.persistent_contrastive_divergence(lattice.energy, lattice.sweep, chains=CHAINS),
        data,
        epochs=epochs,
        batch_size=BATCH,
        key=key,
        metrics={"error": error},
        progress=True,
    )
    return result.params, jnp.append(error(start, key), result.history["error"])


def rms(tree):
    """The root mean square of all numbers in the tree."""
    return jnp.sqrt(jnp.mean(ravel_pytree(tree)[0] ** 2))


@partial(jax.jit, static_argnums=0)
def smallest_errors(lattice, params, data):
    """The Cramér-Rao bound: no unbiased estimate from such data has smaller standard errors."""

    def score(state):
        """The gradient of log p of one state, but for a constant."""
        one = jax.tree.map(lambda s: s[None], state)
        return ravel_pytree(jax.grad(lambda p: -lattice.energy(p, one)[0])(params))[0]

    scores = jax.vmap(score)(data)
    information = len(scores) * jnp.cov(scores.T)
    return ravel_pytree(params)[1](jnp.sqrt(jnp.diag(jnp.linalg.inv(information))))


# --- the picture -------------------------------------------------------------------------------------


def draw_lattice(axes, lattice, params, limit, name):
    """Couplings as coloured bonds, fields as coloured dots."""
    positions = np.stack([lattice.column, lattice.row], axis=1)
    colors = {"cmap": "RdBu_r", "norm": Normalize(-limit, limit)}
    bonds = LineCollection(list(positions[lattice.pairs]), array=params["couplings"], linewidths=5, **colors)
    axes.add_collection(bonds)
    axes.scatter(*positions.T, c=params["fields"], s=60, edgecolors="0.3", linewidths=0.8, zorder=2, **colors)
    axes.set_title(name, fontsize=11)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return bonds


def save_picture(path, title, lattice, truth, found, errors, history):
    """The true and the recovered lattice; recovered against true; the error against the epoch."""
    figure, (left, right, scatter, curve) = plt.subplots(1, 4, figsize=(15, 4.4), layout="constrained")
    figure.suptitle(title)
    limit = max(np.abs(truth["couplings"]).max(), np.abs(truth["fields"]).max())
    draw_lattice(left, lattice, truth, limit, "true couplings (bonds) and fields (dots)")
    bonds = draw_lattice(right, lattice, found, limit, "recovered from the samples")
    figure.colorbar(bonds, ax=right, shrink=0.8)

    scatter.axline((0, 0), slope=1, color="0.7", linewidth=1)
    for name, color in (("couplings", "C0"), ("fields", "C1")):
        bars = {"fmt": ".", "color": color, "elinewidth": 1, "markersize": 5}
        scatter.errorbar(truth[name], found[name], errors[name], label=name, **bars)
    scatter.set_title("bars: smallest possible standard error", fontsize=11)
    scatter.set(xlabel="true", ylabel="recovered", box_aspect=1)
    scatter.legend()

    bound = rms(errors)
    curve.semilogy(history, label="error")
    curve.axhline(bound, linestyle="--", color="C7", label="smallest possible (Cramér-Rao)")
    curve.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    curve.yaxis.set_major_formatter("{x:g}")
    curve.yaxis.set_minor_formatter("")
    curve.set_title("root mean square error", fontsize=11)
    curve.set(xlabel="epoch", box_aspect=1)
    curve.legend()
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)


# --- the command -------------------------------------------------------------------------------------


def main(argv=None):
    """Parse the command line, train, print, draw."""
    parser = Parser(description="Recover the couplings of an Ising model from samples drawn by thrml.")
    parser.add_argument("--side", type=number(int, 2, 12), default=8, help="spins along a side (%(default)s)")
    parser.add_argument("--samples", type=number(int, 500, 10**7), default=5000, help="to learn from (%(default)s)")
    parser.add_argument("--epochs", type=number(int, 1, 100_000), default=30, help="passes over the data (%(default)s)")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0)
    parser.add_argument("--output", type=picture, default=Path("thrml_ising.png"), help="the picture (%(default)s)")
    options = parser.parse_args(argv)

    lattice = Lattice(options.side)
    truth_key, data_key, train_key = jax.random.split(jax.random.key(options.seed), 3)
    truth = lattice.random_params(truth_key)
    data = draw(lattice, truth, options.samples, data_key)
    print(f"{len(data[0])} samples of {len(lattice.nodes)} spins and {len(lattice.pairs)} couplings, drawn by thrml")
    found, history = train(lattice, data, truth, options.epochs, train_key)
    errors = smallest_errors(lattice, truth, data)

    correlation = np.corrcoef(truth["couplings"], found["couplings"])[0, 1]
    print(f"correlation of the recovered with the true couplings: {correlation:.4f}")
    print(f"root mean square error: {history[-1]:.4f} (smallest possible: {rms(errors):.4f})")
    title = (
        f"Ising model of {options.side} × {options.side} spins, recovered from {len(data[0])} samples: "
        "thrml samples, paysage_jax learns"
    )
    save_picture(options.output, title, lattice, truth, found, errors, history)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
