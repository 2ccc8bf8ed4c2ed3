"""Hidden units find the motifs of a synthetic protein family: an RBM of Potts and double rectified linear units.

    python examples/motifs.py

Most sites belong to one of three groups. In each group a fair coin chooses which of two motifs a sequence follows, so
the family has eight subfamilies. Random background letters blur the motifs. The groups are equally strong, so principal
components mix them, and Gaussian hidden units may mix them too. Double rectified linear units (DReLU) learn the shape
of their energy: it becomes bimodal, and each unit finds one coin (Tubiana, Cocco & Monasson, eLife 8, 2019). Binary
units are bimodal from the start.
Prints the correlation of each coin with the unit that follows it best, and the log-likelihood of held-out sequences
under each machine and under the true distribution. Draws the weights of the DReLU units, and their means given held-out
sequences.
"""

import jax
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

LETTERS = 8
GROUPS, SIZE, OTHERS = 3, 8, 6
SITES = GROUPS * SIZE + OTHERS  # the last OTHERS sites belong to no group
KEPT = 0.7  # the probability that a site has the letter of its motif and not a background letter

KINDS = {"Gaussian": pj.rbm.Gaussian(), "DReLU": pj.rbm.DReLU(), "Binary": pj.rbm.Binary()}
MACHINES = {name: pj.rbm.RBM(pj.rbm.Categorical(LETTERS), unit) for name, unit in KINDS.items()}


class Family:
    """The motifs (group, coin, site of the group) and the background probabilities (site, letter)."""

    def __init__(self, random):
        self.motifs = random.permuted(np.tile(np.arange(LETTERS), (GROUPS, SIZE, 1)), axis=2)[..., :2].swapaxes(1, 2)
        self.background = random.dirichlet(np.ones(LETTERS), SITES)

    def draw(self, count, random):
        """Draw sequences (count, SITES); return them and their coins (count, GROUPS)."""
        coins = random.integers(0, 2, (count, GROUPS))
        v = np.stack([random.choice(LETTERS, count, p=p) for p in self.background], axis=1).astype(np.int32)
        motifs = self.motifs[np.arange(GROUPS), coins].reshape(count, -1)
        kept = random.random(motifs.shape) < KEPT
        v[:, : GROUPS * SIZE] = np.where(kept, motifs, v[:, : GROUPS * SIZE])
        return v, coins

    def log_likelihood(self, v):
        """The mean of log p(v), where p(v) sums over both motifs in each group."""
        p = self.background[np.arange(SITES), v]
        groups, others = np.split(p, [GROUPS * SIZE], axis=1)
        letters, p = (x.reshape(len(v), GROUPS, 1, SIZE) for x in (v[:, : GROUPS * SIZE], groups))
        p_given_coin = np.prod(KEPT * (letters == self.motifs) + (1 - KEPT) * p, axis=3)
        return np.mean(np.log(p_given_coin.mean(axis=2)).sum(axis=1) + np.log(others).sum(axis=1))


def train(machine, v, epochs, key):
    """Train by centred SGD in the zero-sum gauge; return the averaged parameters."""
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
    """The log-likelihood of held-out sequences. With real-valued hidden units the exact log Z is out of reach."""
    path_key, key = jax.random.split(key)
    annealing = machine.annealing(params, training, 200, path_key)
    estimate = pj.annealed_importance_sampling(machine, annealing, key, steps=500)
    return float(machine.log_likelihood(params, held_out, estimate.log_z))


def correlations(x, coins):
    """The absolute correlation of every column of x with every coin, (units, GROUPS)."""
    return np.abs(np.corrcoef(x.T, coins.T)[: x.shape[1], x.shape[1] :])


def principal_components(training, v):
    """Project v onto the first GROUPS principal components of the one-hot training sequences."""
    one_hot, of_v = (np.eye(LETTERS)[x].reshape(len(x), -1) for x in (training, v))
    axes = np.linalg.svd(one_hot - one_hot.mean(axis=0), full_matrices=False)[2]
    return of_v @ axes[:GROUPS].T


def main(argv=None):
    """Make the family, train, print the results, and draw the picture."""
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
