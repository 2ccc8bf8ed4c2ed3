"""Recover the couplings of an Ising model from a restricted Boltzmann machine (RBM) of spins, trained on samples.

    python examples/ising.py

4 × 4 spins v = ±1 on a torus have the energy E(v) = -Σ J_ij v_i v_j, with random couplings J between neighbours. All
2¹⁶ states can be enumerated, so the samples are independent and the divergence of a model from the truth is exact. The
RBM has no couplings between visible spins. Its free energy F has interactions of all orders; those of pairs are

    J_ij = -2⁻¹⁶ Σ_v F(v) v_i v_j   (Cossu, Del Debbio, Giani, Khamseh & Wilson, Physical Review B 100, 2019)

Prints and draws the divergence and the errors of the couplings, for the RBM and for the mean-field inversion J = -C⁻¹
of the correlations C.
"""

import jax
import jax.numpy as jnp
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

SIDE = 4
SPINS = SIDE**2
STRENGTH = 0.4  # the standard deviation of the couplings of neighbours
MACHINE = pj.rbm.RBM(visible=pj.rbm.Spin(), hidden=pj.rbm.Spin())

STATES = (2 * (np.arange(2**SPINS)[:, None] >> np.arange(SPINS) & 1) - 1).astype(np.float32)
PAIRS = np.triu_indices(SPINS, 1)
# Absolute differences of positions; the way around the torus may be shorter.
APART = np.abs(np.indices((SIDE, SIDE)).reshape(2, -1)[:, :, None] - np.indices((SIDE, SIDE)).reshape(2, 1, -1))
NEIGHBOURS = (np.minimum(APART, SIDE - APART).sum(axis=0) == 1)[PAIRS]


def matrix(couplings):
    """Arrange the couplings of PAIRS in a symmetric matrix."""
    upper = np.zeros((SPINS, SPINS))
    upper[PAIRS] = couplings
    return upper + upper.T


def log_probabilities(couplings):
    """log p of all STATES of the Ising model."""
    minus_energies = np.sum(STATES @ matrix(couplings) * STATES, axis=1) / 2
    return minus_energies - np.logaddexp.reduce(minus_energies)


def effective_couplings(params):
    """The pair interactions in the free energy of the machine, in the order of PAIRS."""
    free_energies = np.asarray(MACHINE.energy(params, STATES), float)
    return -(STATES.T @ (free_energies[:, None] * STATES))[PAIRS] / len(STATES)


def train(data, log_p, hidden, epochs, key):
    """Train and return the result of `pj.fit`, whose history records KL(p, machine)."""

    def divergence(state, key):
        log_q = jax.nn.log_softmax(-MACHINE.energy(state.params, STATES))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))

    init_key, key = jax.random.split(key)
    return pj.fit(
        MACHINE.init(data, hidden, init_key),
        pj.chain(pj.center(activations=MACHINE.activations), pj.sgd(0.05), pj.average_parameters()),
        pj.persistent_contrastive_divergence(MACHINE, num_chains=500),
        data,
        epochs=epochs,
        batch_size=100,
        key=key,
        metrics={"divergence": divergence},
        metrics_every=max(1, epochs // 20),
    )


def main(argv=None):
    """Sample the data, train, print the results, and draw the picture."""
    parser = shared.make_parser(__doc__, 40, "ising.png")
    parser.add_argument("--samples", type=int, default=10_000, help="states to learn from")
    parser.add_argument("--hidden", type=int, default=32, help="hidden units")
    options = shared.parse(parser, argv, samples=(1000, 10**6), hidden=(1, 1000))

    random = np.random.default_rng(options.seed)
    truth = np.where(NEIGHBOURS, random.normal(0, STRENGTH, len(NEIGHBOURS)), 0)
    log_p = log_probabilities(truth)
    data = STATES[random.choice(len(STATES), options.samples, p=np.exp(log_p))]
    train_key, mixing_key = jax.random.split(jax.random.key(options.seed))
    result = train(data, log_p.astype(np.float32), options.hidden, options.epochs, train_key)
    params = pj.averaged_parameters(result)

    mean_field = -np.linalg.inv(np.cov(data.T))[PAIRS]
    divergence = np.exp(log_p) @ (log_p - log_probabilities(mean_field))
    found = {
        "mean-field inversion": (divergence, mean_field),
        f"RBM, {SPINS} × {options.hidden}": (result.history["divergence"][-1], effective_couplings(params)),
    }
    print(f"{options.samples} samples of {SPINS} spins")
    print(f"{'':22}divergence from the truth, nats   rms error of the couplings")
    for name, (nats, couplings) in found.items():
        print(f"{name:22}{nats:31.4f}   {np.sqrt(np.mean((couplings - truth) ** 2)):27.4f}")
    # Maximum likelihood with k parameters and n samples has an expected divergence of k / 2n nats (Wilks, 1938).
    expected = len(truth) / (2 * options.samples)
    print(f"{'Ising model, expected':22}{expected:31.4f}")
    print(f"\nmixing of the chains:\n{pj.mixing(MACHINE, params, result.estimator_state, mixing_key)}")

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    curve, scatter, map_ = figure.subplots(1, 3)
    curve.semilogy(result.history["epoch"], result.history["divergence"], "C0", label="RBM")
    curve.axhline(divergence, color="C1", label="mean-field inversion")
    curve.axhline(expected, color="C7", linestyle="--", label="Ising model, expected")
    curve.set(title="divergence from the truth", xlabel="epoch", ylabel="nats", box_aspect=1)
    curve.legend()
    for color, (name, (_, couplings)) in zip(("C1", "C0"), found.items(), strict=True):
        scatter.plot(truth, couplings, color + ".", label=name)
    scatter.axline((0, 0), slope=1, color="C7", linestyle="--", linewidth=1, label="the truth")
    scatter.set(title="couplings", xlabel="true", ylabel="found", box_aspect=1)
    scatter.legend()
    both = np.triu(matrix(truth)) + np.tril(matrix(effective_couplings(params)))
    image = map_.imshow(both, "RdBu_r", vmin=-1, vmax=1)
    map_.set(title="true couplings (upper right), found by the RBM", xlabel="spin", ylabel="spin")
    figure.colorbar(image, ax=map_)
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
