"""The contacts in a protein, found from the sequences of its family by a Potts model.

    python examples/potts.py

A sequence v of letters has the energy E(v) = -Σ_i h_i(v_i) - Σ_{i<j} J_ij(v_i, v_j). The family is made: the chain is
folded into a sheet, couplings are random where two sites touch and zero elsewhere, and Gibbs sampling draws sequences.
A few of them have many close relatives, as some species do in a database; a sequence with n such relatives has the
weight 1 / (n + 1). From these data pseudo-likelihood and persistent contrastive divergence (PCD) find h and J.
Prints how many of the strongest couplings are contacts, with and without the weights, and draws the maps of contacts.
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
UNRELATED = 400  # sequences
LARGE, RELATIVES = 100, 15  # those of them that have relatives, and how many
MUTABLE = 0.05  # the part of the sites that are drawn again in a relative

PAIRS = np.array([(i, j) for i in range(SITES) for j in range(i + 2, SITES)])  # but for neighbours along the chain


# The chain goes up one strand and down the next.
STRAND, STEP = np.divmod(np.arange(SITES), LENGTH)
POSITIONS = np.stack([STRAND, np.where(STRAND % 2, LENGTH - 1 - STEP, STEP)], axis=1)
TOUCHING = np.abs(POSITIONS[PAIRS[:, 0]] - POSITIONS[PAIRS[:, 1]]).sum(axis=1) == 1


def couplings(params):
    """J as (site, letter, site, letter), symmetric, with zeros where a site meets itself."""
    matrix = params["couplings"]
    return (matrix + matrix.transpose(2, 3, 0, 1)) / 2 * (1 - jnp.eye(SITES))[:, None, :, None]


def inputs(params, v):
    """What each letter would add to -E at each site of every sequence, given the other sites."""
    return params["fields"][None] + jnp.tensordot(jax.nn.one_hot(v, LETTERS), couplings(params), 2)


def energy(params, v):
    """E of every row of v, which holds the numbers of letters."""
    x = jax.nn.one_hot(v, LETTERS)
    return -jnp.sum(x * (inputs(params, v) + params["fields"][None]), axis=(1, 2)) / 2


def gibbs(params, v, key, chosen=None):
    """Every site in turn is drawn anew given the others, in every sequence; `chosen` says which sites, if not all."""
    matrix = couplings(params)

    def draw(i, v):
        logits = params["fields"][i][None] + jnp.tensordot(jax.nn.one_hot(v, LETTERS), matrix[:, :, i], 2)
        letters = jax.random.categorical(jax.random.fold_in(key, i), logits).astype(v.dtype)
        return v.at[:, i].set(letters if chosen is None else jnp.where(chosen[:, i], letters, v[:, i]))

    return jax.lax.fori_loop(0, SITES, draw, v)


def pseudo_likelihood(params, batch):
    """Minus the mean of weight × Σ_i log p(v_i | all other sites); `fit` makes the mean of all weights 1."""
    log_p = jax.nn.log_softmax(inputs(params, batch.v), axis=-1)
    each = jnp.take_along_axis(log_p, batch.v[:, :, None], axis=2).sum(axis=(1, 2))
    return -jnp.mean(batch.weights * each)


@jax.jit
def make_family(key):
    """Sequences of which the last LARGE × RELATIVES are close relatives of the first LARGE."""
    keys = jax.random.split(key, 5)
    i, j = PAIRS[TOUCHING].T
    random = STRENGTH * jax.random.normal(keys[0], (len(i), LETTERS, LETTERS))
    matrix = jnp.zeros((SITES, LETTERS, SITES, LETTERS)).at[i, :, j].set(2 * random)  # halved by `couplings`
    params = {"fields": STRENGTH * jax.random.normal(keys[1], (SITES, LETTERS)), "couplings": matrix}
    v = jax.random.randint(keys[2], (UNRELATED, SITES), 0, LETTERS)
    v = jax.lax.fori_loop(0, 200, lambda i, v: gibbs(params, v, jax.random.fold_in(keys[3], i)), v)
    relatives = jnp.repeat(v[:LARGE], RELATIVES, axis=0)
    chosen = jax.random.bernoulli(keys[4], MUTABLE, relatives.shape)
    return jnp.concatenate([v, gibbs(params, relatives, keys[4], chosen)])


def weights_of(v):
    """One over the number of sequences that agree with a row of v in four of five sites, itself included."""
    agreement = (v[:, None, :] == v[None, :, :]).mean(axis=2)
    return 1 / jnp.sum(agreement >= 0.8, axis=1)


def train(estimator, data, epochs, key):
    """The parameters that `pj.fit` finds, from zero; the decay is a penalty of 0.005 Σ (parameter)²."""
    shapes = {"fields": (SITES, LETTERS), "couplings": (SITES, LETTERS, SITES, LETTERS)}
    adam = pj.adam(pj.per_epoch(pj.power_law_decay(0.01, 0.1)))
    return pj.fit(
        {name: jnp.zeros(shape) for name, shape in shapes.items()},
        pj.chain(pj.add_decayed_weights(0.01), adam),
        estimator,
        data,
        epochs=epochs,
        batch_size=100,
        key=key,
    ).params


def scores(params):
    """How strongly each of PAIRS is coupled: the average-product-corrected Frobenius norm (Ekeberg et al., 2013)."""
    blocks = np.asarray(couplings(params)).transpose(0, 2, 1, 3)
    # In the gauge of smallest norm, for fields and couplings can be traded for each other.
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    blocks = blocks - blocks.mean(axis=3, keepdims=True)
    norms = np.linalg.norm(blocks, axis=(2, 3))
    return (norms - np.outer(norms.mean(axis=0), norms.mean(axis=0)) / norms.mean())[*PAIRS.T]


def main(argv=None):
    """Make the family, train, print, draw."""
    options = shared.parse(shared.make_parser(__doc__, 30, "potts.png"), argv)
    family_key, train_key = jax.random.split(jax.random.key(options.seed))
    v = make_family(family_key)
    weights = weights_of(v)
    count = TOUCHING.sum()
    print(f"{len(v)} sequences of {SITES} sites, worth {weights.sum():.0f} independent ones; {count} contacts")
    estimators = {
        "pseudo-likelihood": pj.loss_gradient(pseudo_likelihood),
        "PCD": pj.persistent_contrastive_divergence(pj.Model(energy, gibbs, integer_states=True), 500),
    }

    figure = Figure(figsize=(17, 4.4), layout="constrained")
    fold, *maps, curve = figure.subplots(1, 4)
    fold.plot(*POSITIONS.T, "o-", color="black", linewidth=3)
    for pair in PAIRS[TOUCHING]:
        fold.plot(*POSITIONS[pair].T, ":", color="C0")
    fold.set(title=f"{SITES} sites, {count} contacts (dotted)", aspect="equal")
    fold.axis("off")
    print(f"of the {count} strongest couplings are contacts:")
    kinds = {"with weights": weights, "without weights": jnp.ones_like(weights)}
    for axes, (kind, w), style in zip(maps, kinds.items(), "-:", strict=True):
        axes.plot(*np.concatenate([PAIRS[TOUCHING], PAIRS[TOUCHING][:, ::-1]]).T, "s", color="0.8", markersize=7)
        for color, (name, estimator) in zip(("C0", "C1"), estimators.items(), strict=True):
            order = np.argsort(-scores(train(estimator, pj.Weighted(v, w), options.epochs, train_key)))
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
    curve.set(title="part that are contacts", xlabel="strongest couplings", ylim=(0, 1.05), box_aspect=1)
    curve.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
