"""A density in the plane, learned by an energy that is a small neural network.

    python examples/neural_energy.py

The energy of a point x is E(x) = |x|² / 2 + f(x), where f is a multilayer perceptron, and the density of the model is
exp(-E(x)) / Z. The data come from a pinwheel with a known density. Persistent contrastive divergence trains f; its
chains move by Langevin steps with a Metropolis test (MALA), which leave the model's distribution invariant.

Prints the Kullback-Leibler divergence of the true density from the model and from a kernel density estimate with the
best bandwidth. Plots all three densities and the training curve.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import shared
from jax.scipy.special import logsumexp
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde, norm

import paysage_jax as pj

SAMPLES = 5000
ARM_ANGLES = 2 * np.pi * np.arange(5) / 5
TWIST = 1.2  # an arm turns by this angle per unit of radius
ALONG, ACROSS = (1.3, 0.35), (0, 0.2)  # mean and standard deviation of an arm before it is turned

WIDTH = 64  # units of each hidden layer
CHAINS = 500
STEP = 0.15  # the standard deviation of the noise in a Langevin step

SIDE, POINTS = 3.0, 100  # the grid: the centres of POINTS² squares between -SIDE and SIDE
AREA = (2 * SIDE / POINTS) ** 2
AXIS = (np.arange(POINTS) + 0.5) * (2 * SIDE / POINTS) - SIDE
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2).astype(np.float32)


def draw(count, random):
    """Points of the pinwheel: each is in an arm, which is rotated and twisted."""
    z = random.normal(*ALONG, count) + 1j * random.normal(*ACROSS, count)
    z *= np.exp(1j * (random.choice(ARM_ANGLES, count) + TWIST * np.abs(z)))
    return np.stack([z.real, z.imag], axis=1).astype(np.float32)


def true_log_density(x):
    """The density at every row of x. A rotation by an angle that depends only on the radius preserves densities."""
    z = (x[:, 0] + 1j * x[:, 1])[:, None]
    z = z * np.exp(-1j * (ARM_ANGLES + TWIST * np.abs(z)))
    return np.logaddexp.reduce(norm.logpdf(z.real, *ALONG) + norm.logpdf(z.imag, *ACROSS), axis=1) - np.log(
        len(ARM_ANGLES)
    )


def init(key):
    """Random layers, except that the last is zero: f = 0 at the start, and the model is a standard normal density."""
    keys = jax.random.split(key, 3)
    return {
        # Large weights let f vary on small scales; with small ones it learns these very slowly.
        "in": {"weights": 2 * jax.random.normal(keys[0], (2, WIDTH)), "loc": 2 * jax.random.normal(keys[1], (WIDTH,))},
        "inner": {"weights": jax.random.normal(keys[2], (WIDTH, WIDTH)) / WIDTH**0.5, "loc": jnp.zeros(WIDTH)},
        "out": {"weights": jnp.zeros(WIDTH)},
    }


@partial(jax.vmap, in_axes=(None, 0))
def energy(params, x):
    """The energy E of every row of x."""
    y = jnp.tanh(x @ params["in"]["weights"] + params["in"]["loc"])
    y = jnp.tanh(y @ params["inner"]["weights"] + params["inner"]["loc"])
    return x @ x / 2 + y @ params["out"]["weights"]


def langevin(params, x, key):
    """A Langevin step for every row of x, accepted or rejected by the Metropolis test."""
    noise_key, test_key = jax.random.split(key)

    @jax.vmap
    def energy_and_mean(x):
        value, slope = jax.value_and_grad(lambda x: energy(params, x[None])[0])(x)
        return value, x - STEP**2 / 2 * slope

    before, mean = energy_and_mean(x)
    proposed = mean + STEP * jax.random.normal(noise_key, x.shape)
    after, mean_back = energy_and_mean(proposed)
    there, back = (jnp.sum(d**2, axis=1) / (2 * STEP**2) for d in (proposed - mean, x - mean_back))
    taken = jnp.log(jax.random.uniform(test_key, before.shape)) < (before - after) + (there - back)
    return jnp.where(taken[:, None], proposed, x)


def log_density(params):
    """The density of the model on the grid, with Z as a sum over the grid."""
    values = -energy(params, GRID)
    return values - logsumexp(values) - np.log(AREA)


def divergence(log_p, log_q):
    """KL(p || q) in nats, of two densities on the grid."""
    return (np.exp(log_p) * (log_p - log_q)).sum() * AREA


def train(data, log_p, epochs, key):
    """The averaged parameters, and by epoch the divergence of the density p from their density."""
    init_key, key = jax.random.split(key)
    # No momentum (b1=0): the chains lag behind, so momentum would oscillate. The average removes the remaining noise.
    adam = pj.adam(pj.per_epoch(pj.power_law_decay(0.02, 0.1)), b1=0.0)

    def distance(state, key):  # for the average, which metrics receive
        return divergence(log_p, log_density(state.params))

    result = pj.fit(
        init(init_key),
        pj.chain(adam, pj.average_parameters()),
        pj.persistent_contrastive_divergence(pj.Model(energy, langevin), num_chains=CHAINS, steps=5),
        data,
        epochs=epochs,
        batch_size=250,
        key=key,
        metrics={"distance": distance},
        metrics_every=math.ceil(epochs / 50),
    )
    return pj.averaged_parameters(result), result.history


def main(argv=None):
    """Train, print and plot."""
    options = shared.parse(shared.make_parser(__doc__, 150, "neural_energy.png"), argv)
    data = draw(SAMPLES, np.random.default_rng(options.seed))
    log_p = true_log_density(GRID).astype(np.float32)
    params, history = train(data, log_p, options.epochs, jax.random.key(options.seed))

    kernels = [gaussian_kde(data.T, bandwidth).logpdf(GRID.T) for bandwidth in (0.05, 0.07, 0.1)]
    kernel_estimate = min(kernels, key=partial(divergence, log_p))
    estimates = {"neural energy": np.asarray(log_density(params)), "kernel estimate": kernel_estimate}
    distances = {name: divergence(log_p, log_q) for name, log_q in estimates.items()}
    print(f"divergence of the true density from estimates by {SAMPLES} points, in nats:")
    print("   ".join(f"{name} {distance:.3f}" for name, distance in distances.items()))

    figure = Figure(figsize=(17, 3.7), layout="constrained")
    points, *planes, curve = figure.subplots(1, 5)
    points.plot(*data.T, ".", markersize=1, color="black")
    points.set(title=f"the data, {SAMPLES} points", xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal")
    shown = {"true density": log_p} | {f"{name}, KL {distances[name]:.3f}": q for name, q in estimates.items()}
    for axes, (title, values) in zip(planes, shown.items(), strict=True):
        image = np.exp(values).reshape(POINTS, POINTS)
        axes.imshow(image, "viridis", vmin=0, vmax=np.exp(log_p).max(), origin="lower", extent=(-SIDE, SIDE) * 2)
        axes.set_title(title)
    curve.plot(history["epoch"], history["distance"], label="neural energy")
    curve.axhline(distances["kernel estimate"], color="C1", linestyle="--", label="kernel estimate")
    curve.set(title="KL(true density || estimate)", xlabel="epoch", ylabel="nats", yscale="log", box_aspect=1)
    curve.legend()
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
