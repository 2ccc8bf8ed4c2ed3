"""Find the contacts in a protein from the sequences of its family, with a Potts model.

    python examples/potts.py

A sequence v of letters has the energy E(v) = -Σ_i h_i(v_i) - Σ_{i<j} J_ij(v_i, v_j). The family is synthetic: the chain
is folded into a sheet, couplings are random where two sites touch and zero elsewhere, and Gibbs sampling draws the
sequences. Some of them have many close relatives, as some species have in a database; a sequence with n close relatives
gets the weight 1 / (n + 1). Pseudo-likelihood and persistent contrastive divergence (PCD) estimate h and J.
Prints what fraction of the strongest couplings are contacts, with and without the weights, and draws contact maps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

LETTERS = 8
STRANDS, LENGTH = 5, 7  # of the sheet
SITES = STRANDS * LENGTH
STRENGTH = 0.5  # the standard deviation of the couplings between sites that touch
UNRELATED = 800  # sequences
LARGE, RELATIVES = 100, 15  # how many sequences have relatives, and how many relatives each of them has
MUTABLE = 0.05  # the fraction of the sites that are drawn again in a relative

MODEL = pj.rbm.PottsModel(LETTERS)

# The chain goes up one strand and down the next.
STRAND, STEP = np.divmod(np.arange(SITES), LENGTH)
POSITIONS = np.stack([STRAND, np.where(STRAND % 2, LENGTH - 1 - STEP, STEP)], axis=1)

FIRST, SECOND = np.triu_indices(SITES, 1)  # all pairs of sites, in the order of the couplings
FAR = SECOND > FIRST + 1  # pairs that are not neighbours along the chain
CONTACTS = FAR & (np.abs(POSITIONS[FIRST] - POSITIONS[SECOND]).sum(axis=1) == 1)
PAIRS, TOUCHING = np.stack([FIRST, SECOND], axis=1)[FAR], CONTACTS[FAR]


def make_family(key):
    """Draw the sequences. The last LARGE × RELATIVES are close relatives of the first LARGE."""
    keys = jax.random.split(key, 5)
    random = STRENGTH * jax.random.normal(keys[0], (len(FIRST), LETTERS, LETTERS))
    fields = STRENGTH * jax.random.normal(keys[1], (SITES, LETTERS))
    params = {"fields": fields, "couplings": jnp.where(CONTACTS[:, None, None], random, 0)}
    everything = jnp.ones((UNRELATED, SITES), bool)
    v = MODEL.impute(params, jnp.zeros(everything.shape, int), everything, keys[2], steps=200)
    relatives = jnp.repeat(v[:LARGE], RELATIVES, axis=0)
    mutable = jax.random.bernoulli(keys[3], MUTABLE, relatives.shape)
    return jnp.concatenate([v, MODEL.impute(params, relatives, mutable, keys[4], steps=5)])


def train(estimator, data, epochs, key):
    """Train from independent sites; return the parameters. The decay amounts to a penalty of 0.03 Σ J²."""
    optimizer = pj.chain(
        pj.add_decayed_weights(0.06, where=lambda path: path == "couplings"),
        pj.adam(pj.per_epoch(pj.power_law_decay(0.01, 0.1))),
        pj.project(MODEL.zero_sum),
    )
    return pj.fit(MODEL.init(data), optimizer, estimator, data, epochs=epochs, batch_size=100, key=key).params


def main(argv=None):
    """Make the family, train, print the results, and draw the picture."""
    options = shared.parse(shared.make_parser(__doc__, 30, "potts.png"), argv)
    family_key, train_key = jax.random.split(jax.random.key(options.seed))
    v = make_family(family_key)
    weights = pj.rbm.sequence_weights(v)
    count = TOUCHING.sum()
    print(f"{len(v)} sequences of {SITES} sites, worth {weights.sum():.0f} independent ones; {count} contacts")
    estimators = {
        "pseudo-likelihood": pj.loss_gradient(MODEL.pseudo_likelihood_loss),
        "PCD": pj.persistent_contrastive_divergence(MODEL, num_chains=500),
    }

    figure = Figure(figsize=(17, 4.4), layout="constrained")
    fold, *maps, curve = figure.subplots(1, 4)
    fold.plot(*POSITIONS.T, "o-", color="black", linewidth=3)
    for pair in PAIRS[TOUCHING]:
        fold.plot(*POSITIONS[pair].T, ":", color="C0")
    fold.set(title=f"{SITES} sites, {count} contacts (dotted)", aspect="equal")
    fold.axis("off")
    print(f"contacts among the {count} strongest couplings:")
    kinds = {"with weights": weights, "without weights": jnp.ones_like(weights)}
    for axes, (kind, w), style in zip(maps, kinds.items(), "-:", strict=True):
        axes.plot(*np.concatenate([PAIRS[TOUCHING], PAIRS[TOUCHING][:, ::-1]]).T, "s", color="0.8", markersize=7)
        for color, (name, estimator) in zip(("C0", "C1"), estimators.items(), strict=True):
            params = train(estimator, pj.Weighted(v, w), options.epochs, train_key)
            order = np.argsort(-np.asarray(pj.rbm.contact_scores(params))[*PAIRS.T])
            right = TOUCHING[order[:count]]
            print(f"{name:17} {kind:15} {right.mean():.0%}")
            found = PAIRS[order[:count]][:, :: 1 if name == "PCD" else -1]
            axes.plot(*found.T, ".", color=color, label=f"{name}, {right.mean():.0%} right")
            hits = np.cumsum(TOUCHING[order])[: 2 * count] / np.arange(1, 2 * count + 1)
            curve.plot(np.arange(1, 2 * count + 1), hits, color + style, label=f"{name}, {kind}")
        side = (-1, 1.3 * SITES)
        axes.set(title=f"{kind}; contacts in grey", xlabel="site", ylabel="site", xlim=side, ylim=side, box_aspect=1)
        axes.legend(loc="upper left")
    curve.axvline(count, color="C7", linewidth=1)
    curve.set(title="fraction that are contacts", xlabel="strongest couplings", ylim=(0, 1.05), box_aspect=1)
    curve.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
