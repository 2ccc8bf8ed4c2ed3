"""Motifs of a synthetic protein family, each found by a hidden unit: Potts visible units, double rectified hidden ones.

    python examples/motifs.py

At the sites of each of three groups a sequence follows one of two motifs, which a fair coin chooses: the family has
eight subfamilies. Letters of the background blur the motifs. The groups are equally strong, so that principal
components mix them, and so can Gaussian hidden units. Double rectified units (DReLU) learn the shape of their energy:
it becomes bimodal, and each unit finds a coin (Tubiana, Cocco & Monasson, eLife 8, 2019). Binary units have that shape
from the start.
Prints how each coin correlates with the unit that knows it best, and the log-likelihood of held-out sequences beside
that of the truth. Draws the weights of the DReLU units, and their means given held-out sequences.
"""

import jax
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

LETTERS = 8
GROUPS, SIZE, OTHERS = 3, 8, 6
SITES = GROUPS * SIZE + OTHERS  # the last ones belong to no group
KEPT = 0.7  # the probability of the letter of the motif; otherwise it comes from the background

KINDS = {"Gaussian": pj.rbm.Gaussian(), "DReLU": pj.rbm.DReLU(), "Binary": pj.rbm.Binary()}
MACHINES = {name: pj.rbm.RBM(pj.rbm.Categorical(LETTERS), unit) for name, unit in KINDS.items()}


class Family:
    """Motifs (group, coin, site of the group), and probabilities of the background (site, letter)."""

    def __init__(self, random):
        self.motifs = random.permuted(np.tile(np.arange(LETTERS), (GROUPS, SIZE, 1)), axis=2)[..., :2].swapaxes(1, 2)
        self.background = random.dirichlet(np.ones(LETTERS), SITES)

    def draw(self, count, random):
        """Sequences (count, SITES), and the coins (count, GROUPS) behind them."""
        coins = random.integers(0, 2, (count, GROUPS))
        v = np.stack([random.choice(LETTERS, count, p=p) for p in self.background], axis=1).astype(np.int32)
        motifs = self.motifs[np.arange(GROUPS), coins].reshape(count, -1)
        kept = random.random(motifs.shape) < KEPT
        v[:, : GROUPS * SIZE] = np.where(kept, motifs, v[:, : GROUPS * SIZE])
        return v, coins

    def log_likelihood(self, v):
        """The mean of log p(v), a sum over both motifs in each group."""
        p = self.background[np.arange(SITES), v]
        groups, others = np.split(p, [GROUPS * SIZE], axis=1)
        letters, p = (x.reshape(len(v), GROUPS, 1, SIZE) for x in (v[:, : GROUPS * SIZE], groups))
        p_given_coin = np.prod(KEPT * (letters == self.motifs) + (1 - KEPT) * p, axis=3)
        return np.mean(np.log(p_given_coin.mean(axis=2)).sum(axis=1) + np.log(others).sum(axis=1))


def train(machine, v, epochs, key):
    """The averaged parameters of centred SGD, in the zero-sum gauge."""
    init_key, key = jax.random.split(key)
    sgd = pj.chain(pj.center(activations=machine.activations), pj.sgd(0.3), pj.project(machine.zero_sum))
    return pj.averaged_parameters(
        pj.fit(
            machine.init(v, GROUPS, init_key),
            pj.chain(sgd, pj.average_parameters()),
            pj.persistent_contrastive_divergence(machine, num_chains=100),
            v,
            epochs=epochs,
            batch_size=100,
            key=key,
        )
    )


def annealed_log_likelihood(machine, params, training, held_out, key):
    """That of the held-out sequences; no layer of a Potts and a real-valued one has few states."""
    path_key, key = jax.random.split(key)
    annealing = machine.annealing(params, training, 200, path_key)
    estimate = pj.annealed_importance_sampling(machine, annealing, key, steps=500)
    return float(machine.log_likelihood(params, held_out, estimate.log_z))


def correlations(x, coins):
    """|corr| of every column of x with every coin, (units, GROUPS)."""
    return np.abs(np.corrcoef(x.T, coins.T)[: x.shape[1], x.shape[1] :])


def principal_components(training, v):
    """The first GROUPS ones of one-hot sequences."""
    one_hot, of_v = (np.eye(LETTERS)[x].reshape(len(x), -1) for x in (training, v))
    axes = np.linalg.svd(one_hot - one_hot.mean(axis=0), full_matrices=False)[2]
    return of_v @ axes[:GROUPS].T


def main(argv=None):
    """Make the family, train, print, draw."""
    options = shared.parse(shared.make_parser(__doc__, 30, "motifs.png"), argv)
    random = np.random.default_rng(options.seed)
    family = Family(random)
    training, _ = family.draw(3000, random)
    held_out, coins = family.draw(2000, random)
    train_key, anneal_key = jax.random.split(jax.random.key(options.seed))

    print(f"{len(training)} sequences of {SITES} sites; correlation of the three coins with the best unit for each,")
    print("and the log-likelihood of held-out sequences, in nats:")
    found = correlations(principal_components(training, held_out), coins).max(axis=0)
    print(f"{'components':10}  {found[0]:.2f} {found[1]:.2f} {found[2]:.2f}")
    trained = {}
    for name, machine in MACHINES.items():
        trained[name] = params = train(machine, training, options.epochs, train_key)
        found = correlations(np.asarray(machine.hidden_mean(params, held_out)), coins).max(axis=0)
        nats = annealed_log_likelihood(machine, params, training, held_out, anneal_key)
        print(f"{name:10}  {found[0]:.2f} {found[1]:.2f} {found[2]:.2f}   {nats:.2f}")
    print(f"{'the truth':10}                   {family.log_likelihood(held_out):.2f}")

    machine, params = MACHINES["DReLU"], trained["DReLU"]
    figure = Figure(figsize=(16, 7), layout="constrained")
    grid = figure.subplots(2, GROUPS)
    means = np.asarray(machine.hidden_mean(params, held_out))
    for weights, histogram, unit in zip(*grid, range(GROUPS), strict=True):
        matrix = np.asarray(params["weights"][0]["matrix"][:, :, unit])
        coin = correlations(means, coins)[unit].argmax()
        weights.imshow(matrix.T, "RdBu_r", vmin=-np.abs(matrix).max(), vmax=np.abs(matrix).max(), aspect="auto")
        weights.set(title=f"weights of unit {unit + 1}", xlabel="site", ylabel="letter")
        for value in (0, 1):
            histogram.hist(means[coins[:, coin] == value, unit], 40, alpha=0.6, label=f"coin {coin + 1} is {value}")
        histogram.set(title=f"mean of unit {unit + 1} given a sequence", ylabel="held-out sequences")
        histogram.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
