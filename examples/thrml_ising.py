"""Recover the couplings of an Ising model from its samples, which thrml draws.

    pip install -e '.[integrations]'
    python examples/thrml_ising.py

Spins s = ±1 on a square lattice have the energy E(s) = -Σ b s - Σ J s s', with normal fields b and couplings J between
neighbours. thrml draws the data. Then `pj.fit` trains an Ising model from zero by persistent contrastive divergence:
thrml moves the chains, and thrml's energy gives the gradient.

Prints and plots the error of the recovered parameters and the smallest error that this number of samples allows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import shared
import thrml
from jax.flatten_util import ravel_pytree
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from thrml.models import IsingEBM, IsingSamplingProgram

import paysage_jax as pj

CHAINS = 500


class Lattice:
    """An Ising model on side × side spins with open boundaries and parameters {"fields": b, "couplings": J}.

    A batch of states is a tuple of bool arrays (batch, spins), one for each colour of a chessboard. Spins of the same
    colour are independent given the other colour.
    """

    def __init__(self, side):
        self.positions = np.indices((side, side)).reshape(2, -1).T
        distances = np.abs(self.positions[:, None] - self.positions[None]).sum(axis=2)
        self.pairs = np.argwhere(np.triu(distances == 1))
        self.colors = [np.flatnonzero(self.positions.sum(axis=1) % 2 == color) for color in (0, 1)]
        self.nodes: list[Any] = [thrml.SpinNode() for _ in self.positions]
        self.blocks: list[Any] = [thrml.Block([self.nodes[i] for i in color]) for color in self.colors]

    def _model(self, params):
        edges = [(self.nodes[i], self.nodes[j]) for i, j in self.pairs]
        return IsingEBM(self.nodes, edges, params["fields"], params["couplings"], beta=jnp.ones(()))

    def energy(self, params, v):
        """The energy E of every state of the batch."""
        model = self._model(params)
        return jax.vmap(lambda state: model.energy(list(state), self.blocks))(v)

    def sample(self, params, v, key, warmup=1, samples=1, steps=1):
        """Samples of chains that start at the states of the batch; by default one, after a block Gibbs sweep."""
        schedule = thrml.SamplingSchedule(warmup, samples, steps)
        program = IsingSamplingProgram(self._model(params), self.blocks, clamped_blocks=[])

        def run(state, key):
            return tuple(thrml.sample_states(key, program, schedule, list(state), [], self.blocks))

        collected = jax.vmap(run)(v, jax.random.split(key, len(v[0])))
        return jax.tree.map(lambda s: s.reshape(-1, s.shape[-1]), collected)


@partial(jax.jit, static_argnums=(0, 2))
def draw(lattice, params, count, key):
    """`count` states, rounded up to a multiple of CHAINS, taken every 20 sweeps after 200 sweeps of burn-in."""
    start = tuple(jnp.zeros((CHAINS, len(color)), bool) for color in lattice.colors)
    return lattice.sample(params, start, key, warmup=200, samples=-(-count // CHAINS), steps=20)


def train(lattice, data, epochs, key):
    """Train from zero, and return the parameters."""
    return pj.fit(
        {"fields": jnp.zeros(len(lattice.nodes)), "couplings": jnp.zeros(len(lattice.pairs))},
        pj.sgd(pj.per_epoch(pj.power_law_decay(0.3, 0.3))),
        pj.persistent_contrastive_divergence(pj.Model(lattice.energy, lattice.sample, integer_states=True), CHAINS),
        data,
        epochs=epochs,
        batch_size=250,
        key=key,
    ).params


@partial(jax.jit, static_argnums=0)
def smallest_errors(lattice, params, data):
    """The Cramér-Rao bound: no unbiased estimate from such data has smaller standard errors."""

    def score(state):
        """The gradient of -log p of one state, up to a constant."""
        one = jax.tree.map(lambda s: s[None], state)
        return ravel_pytree(jax.grad(lambda p: lattice.energy(p, one)[0])(params))[0]

    information = len(data[0]) * jnp.cov(jax.vmap(score)(data).T)
    return ravel_pytree(params)[1](jnp.sqrt(jnp.diag(jnp.linalg.inv(information))))


def rms(tree):
    """The root mean square of all numbers in the tree."""
    return jnp.sqrt(jnp.mean(ravel_pytree(tree)[0] ** 2))


def main(argv=None):
    """Draw the data, train, print and plot."""
    parser = shared.make_parser(__doc__, 30, "thrml_ising.png")
    parser.add_argument("--side", type=int, default=8, help="spins along a side")
    parser.add_argument("--samples", type=int, default=5000, help="states to learn from")
    options = shared.parse(parser, argv, side=(2, 12), samples=(500, 10**7))

    lattice = Lattice(options.side)
    fields_key, couplings_key, data_key, train_key = jax.random.split(jax.random.key(options.seed), 4)
    fields = 0.2 * jax.random.normal(fields_key, (len(lattice.nodes),))
    truth = {"fields": fields, "couplings": 0.5 * jax.random.normal(couplings_key, (len(lattice.pairs),))}
    data = draw(lattice, truth, options.samples, data_key)
    print(f"{len(data[0])} samples of {len(lattice.nodes)} spins and {len(lattice.pairs)} couplings, drawn by thrml")
    found = train(lattice, data, options.epochs, train_key)
    errors, smallest = jax.tree.map(jnp.subtract, found, truth), smallest_errors(lattice, truth, data)
    correlation = np.corrcoef(truth["couplings"], found["couplings"])[0, 1]
    print(f"correlation of the recovered with the true couplings: {correlation:.4f}")
    print(f"root mean square error: {rms(errors):.4f} (smallest possible: {rms(smallest):.4f})")

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    *lattices, scatter = figure.subplots(1, 3)
    for axes, name, params in zip(lattices, ("true", "recovered"), (truth, found), strict=True):
        bonds = LineCollection(list(lattice.positions[lattice.pairs]), array=params["couplings"], linewidths=5)
        bonds.set(cmap="RdBu_r", clim=(-1.5, 1.5))
        axes.add_collection(bonds)
        axes.autoscale()
        axes.set(title=f"{name} couplings", aspect="equal")
        axes.axis("off")
        figure.colorbar(bonds, ax=axes, shrink=0.8)
    for name in ("couplings", "fields"):
        scatter.errorbar(truth[name], errors[name], smallest[name], fmt=".", elinewidth=1, label=name)
    scatter.axhline(0, color="C7", linewidth=1)
    scatter.set(title="errors; bars: smallest possible", xlabel="true", ylabel="recovered - true", box_aspect=1)
    scatter.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
