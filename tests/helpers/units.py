"""The kinds of units in NumPy and float64, from their definitions: energies term by term, integrals by quadrature."""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from paysage_jax import rbm

STATES = 3
KINDS = {
    "binary": rbm.Binary(),
    "spin": rbm.Spin(),
    "categorical": rbm.Categorical(STATES),
    "gaussian": rbm.Gaussian(),
    "relu": rbm.ReLU(),
    "drelu": rbm.DReLU(),
}
NAMES = {
    "gaussian": ("loc", "log_var"),
    "relu": ("loc", "log_var"),
    "drelu": ("loc", "threshold", "log_var_positive", "log_var_negative"),
}
FINITE = {"binary": [0.0, 1.0], "spin": [-1.0, 1.0], "categorical": [0, 1, 2]}


leggauss = cache(np.polynomial.legendre.leggauss)


def points(kind, nodes=120, reach=14.0):
    """Values of a unit and the logarithms of their weights in a sum or an integral (Gauss-Legendre on both sides)."""
    if kind in FINITE:
        return np.array(FINITE[kind]), np.zeros(len(FINITE[kind]))
    x, w = leggauss(nodes)
    x, w = reach * (x + 1) / 2, np.log(reach * w / 2)
    return (x, w) if kind == "relu" else (np.concatenate([-x, x]), np.concatenate([w, w]))


def energy(kind, p, i, x):
    """e(x) of unit i for values x."""
    b = p["loc"][i]
    if kind == "categorical":
        return -b[x]
    if kind == "gaussian":
        return (x - b) ** 2 / (2 * np.exp(p["log_var"][i]))
    if kind == "relu":
        return x**2 / (2 * np.exp(p["log_var"][i])) - b * x
    if kind == "drelu":
        positive, negative = np.maximum(x, 0), np.minimum(x, 0)
        slopes = np.exp(-p["log_var_positive"][i]), np.exp(-p["log_var_negative"][i])
        thetas = p["threshold"][i] - b, -p["threshold"][i] - b
        quadratic = (slopes[0] * positive**2 + slopes[1] * negative**2) / 2
        return quadratic + thetas[0] * positive + thetas[1] * negative
    return -b * x


def statistic(kind, p, i, x):
    """t(x) of unit i for values x; for categories with one more axis."""
    if kind == "categorical":
        return np.eye(STATES)[x]
    return x / np.exp(p["log_var"][i]) if kind == "gaussian" else x


def random_params(visible, hidden, sizes, seed=0, coupling=0.2):
    """A machine with parameters of float64."""
    rng = np.random.default_rng(seed)

    def layer(kind, n):
        shape = (n, STATES) if kind == "categorical" else (n,)
        return {name: 0.3 * rng.normal(size=shape) for name in NAMES.get(kind, ("loc",))}

    layers = [layer(visible, sizes[0]), layer(hidden, sizes[1])]
    shape = layers[0]["loc"].shape + layers[1]["loc"].shape
    return {"layers": layers, "weights": [{"matrix": coupling * rng.normal(size=shape)}]}


def cast(params, dtype=np.float32):
    """The parameters as JAX arrays."""
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def random_states(kind, rows, n, seed=1):
    rng = np.random.default_rng(seed)
    if kind in FINITE:
        return rng.choice(FINITE[kind], size=(rows, n))
    x = rng.normal(size=(rows, n))
    return np.abs(x) if kind == "relu" else x


def fields(params, kinds, side, x):
    """The fields on the units of the other layer from states x (rows, n), one unit at a time."""
    matrix = params["weights"][0]["matrix"]
    matrix = matrix.reshape(*params["layers"][0]["loc"].shape[:1], -1, *params["layers"][1]["loc"].shape)
    total = 0.0
    for i in range(x.shape[1]):
        t = statistic(kinds[side], params["layers"][side], i, x[:, i]).reshape(len(x), -1)
        if side == 0:
            total = total + np.tensordot(t, matrix[i], 1)
        else:
            other = params["layers"][0]["loc"].shape
            block = params["weights"][0]["matrix"].reshape(*other, x.shape[1], -1)[..., i, :]
            total = total + np.moveaxis(np.tensordot(block, t, (-1, 1)), -1, 0)
    return total


def log_weights_of(kind, p, i, field, nodes=120):
    """log of weight × exp(-e(x) + t(x)·field) at the points x of unit i, for each row of the field."""
    x, log_w = points(kind, nodes)
    t = statistic(kind, p, i, x)
    coupled = field @ t.T if kind == "categorical" else field[:, None] * t[None]
    return x, coupled + (log_w - energy(kind, p, i, x))[None]


def free_energy(params, kinds, side, x, nodes=120):
    """-log ∫ exp(-E) over the other layer, for every row of x."""
    f = fields(params, kinds, side, x)
    other = params["layers"][1 - side]
    total = sum(energy(kinds[side], params["layers"][side], i, x[:, i]) for i in range(x.shape[1]))
    for j in range(len(other["loc"])):
        total = total - logsumexp(log_weights_of(kinds[1 - side], other, j, f[:, j], nodes)[1], axis=1)
    return total


def log_partition(params, kinds, nodes=40):
    """log Z by a sum, or a product of quadratures, over the hidden layer."""
    x, log_w = points(kinds[1], nodes)
    index = np.array(list(product(range(len(x)), repeat=len(params["layers"][1]["loc"]))))
    return logsumexp(log_w[index].sum(axis=1) - free_energy(params, kinds, 1, x[index]))


def conditionals(params, kinds, side, x):
    """For each unit of the other layer given one state x: values, and probabilities or quadrature weights."""
    f = fields(params, kinds, side, x[None])
    for j in range(f.shape[1]):
        values, log_weights = log_weights_of(kinds[1 - side], params["layers"][1 - side], j, f[:, j])
        yield values, np.exp(log_weights[0] - logsumexp(log_weights[0]))
