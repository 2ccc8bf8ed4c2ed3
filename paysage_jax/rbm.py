"""A restricted Boltzmann machine with binary hidden units h and binary or Gaussian visible units v.

Binary v:    E(v, h) = -b·v - c·h - v·W h
Gaussian v:  E(v, h) = Σ (v - b)² / (2 s²) - c·h - (v / s²)·W h, with s² = exp(log_var)

p(v) = exp(-F(v)) / Z, where the free energy F(v) = -log Σ_h exp(-E(v, h)) has a closed form. The parameters are
paysage's tree {"layers": [{"loc": b}, {"loc": c}], "weights": [{"matrix": W}]} with W of shape (visible, hidden);
a "log_var" in the first layer makes the visible units Gaussian. States are floating arrays (batch, units).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.nn import sigmoid, softplus
from jax.scipy.special import logit, logsumexp
from jax.sharding import NamedSharding, PartitionSpec

from ._annealing import linear_path
from ._trees import Params, Updates

States = Array | np.ndarray  # (batch, units)

MOST_HIDDEN = 20  # the exact partition function is a sum over 2**hidden states

_each_row = partial(jax.vmap, in_axes=(None, 0))  # the equations below are those of one state


# --- parameters to start from ------------------------------------------------------------------------


def init_bernoulli(data: States, hidden: int, key: Array) -> Params:
    """Independent pixels with the means of the data, and weights of 0.01 to break the symmetry."""
    return _small_weights(_bernoulli(data), hidden, key)


def init_gaussian(data: States, hidden: int, key: Array) -> Params:
    """Independent components with the means and variances of the data, none of them constant."""
    return _small_weights(_gaussian("init_gaussian", data), hidden, key)


def _bernoulli(data):
    smallest = 2.0**-23
    return {"loc": logit(jnp.clip(jnp.mean(data, axis=0), smallest, 1 - smallest))}


def _gaussian(where, data):
    variance = jnp.var(data, axis=0)
    if not isinstance(variance, Tracer) and not jnp.all(variance > 0):
        raise ValueError(f"{where}: data[:, {jnp.argmin(variance)}] is constant")
    return {"loc": jnp.mean(data, axis=0), "log_var": jnp.log(variance)}


def _small_weights(visible, hidden, key):
    matrix = 0.01 * jax.random.normal(key, (len(visible["loc"]), hidden))
    return {"layers": [visible, {"loc": jnp.zeros(hidden)}], "weights": [{"matrix": matrix}]}


# --- the energy and its gradient ---------------------------------------------------------------------


def _hidden_input(params, v):
    visible, hidden = params["layers"]
    if "log_var" in visible:
        v = v / jnp.exp(visible["log_var"])
    return hidden["loc"] + v @ params["weights"][0]["matrix"]


def _visible_input(params, h):
    return params["layers"][0]["loc"] + params["weights"][0]["matrix"] @ h


@_each_row
def free_energy(params: Params, v: States) -> Array:
    """F(v) of every row of v."""
    visible = params["layers"][0]
    if "log_var" in visible:
        energy = jnp.sum((v - visible["loc"]) ** 2 / (2 * jnp.exp(visible["log_var"])))
    else:
        energy = -visible["loc"] @ v
    return energy - jnp.sum(softplus(_hidden_input(params, v)))


@_each_row
def hidden_free_energy(params: Params, h: States) -> Array:
    """-log Σ_v exp(-E(v, h)) of every row of h; an integral over v if the visible units are Gaussian."""
    visible, hidden = params["layers"]
    x = _visible_input(params, h)
    if "log_var" in visible:
        variance = jnp.exp(visible["log_var"])
        log_sums = (x**2 - visible["loc"] ** 2) / (2 * variance) + jnp.log(2 * jnp.pi * variance) / 2
    else:
        log_sums = softplus(x)
    return -hidden["loc"] @ h - jnp.sum(log_sums)


def gradient(params: Params, v_data: States, v_model: States) -> Updates:
    """The gradient of the mean free energy of the data minus that of the model's samples, to be descended."""
    return jax.grad(lambda p: jnp.mean(free_energy(p, v_data)) - jnp.mean(free_energy(p, v_model)))(params)


# --- sampling ----------------------------------------------------------------------------------------


@_each_row
def hidden_mean(params: Params, v: States) -> Array:
    """E[h | v] of every row of v."""
    return sigmoid(_hidden_input(params, v))


@_each_row
def visible_mean(params: Params, h: States) -> Array:
    """E[v | h] of every row of h."""
    x = _visible_input(params, h)
    return x if "log_var" in params["layers"][0] else sigmoid(x)


def _rows_of(x: States) -> Any:
    """Where the rows of x lie on a mesh: random numbers for them are drawn there, not all on every device."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def sample_hidden(params: Params, v: States, key: Array) -> Array:
    """A draw from p(h | v) for every row of v."""
    mean = hidden_mean(params, v)
    return jax.random.bernoulli(key, mean, out_sharding=_rows_of(mean)).astype(v.dtype)


def sample_visible(params: Params, h: States, key: Array) -> Array:
    """A draw from p(v | h) for every row of h."""
    visible, mean = params["layers"][0], visible_mean(params, h)
    if "log_var" in visible:
        normal = jax.random.normal(key, mean.shape, mean.dtype, out_sharding=_rows_of(mean))
        return mean + jnp.exp(visible["log_var"] / 2)[None] * normal
    return jax.random.bernoulli(key, mean, out_sharding=_rows_of(mean)).astype(h.dtype)


def gibbs(params: Params, v: States, key: Array) -> Array:
    """One step of block Gibbs sampling, v to h to v: a Markov kernel that leaves p(v) as it is."""
    visible, hidden = params["layers"]
    if "log_var" in visible:
        hidden_key, visible_key = jax.random.split(key)
        return sample_visible(params, sample_hidden(params, v, hidden_key), visible_key)
    # One draw for both layers: on a CPU a second one may cost as much as all arithmetic of a small machine.
    mean = hidden_mean(params, v)
    shape = len(v), hidden["loc"].size + visible["loc"].size
    uniform = jax.random.uniform(key, shape, mean.dtype, out_sharding=_rows_of(v))
    for_h, for_v = jnp.split(uniform, [hidden["loc"].size], axis=1)
    h = (for_h < mean).astype(v.dtype)
    return (for_v < visible_mean(params, h)).astype(v.dtype)


# --- likelihood --------------------------------------------------------------------------------------


def log_likelihood(params: Params, v: States, log_z: Array | float) -> Array:
    """The mean of log p(v) over the rows of v, in nats."""
    return -jnp.mean(free_energy(params, v)) - log_z


def log_partition(params: Params) -> Array:
    """log Z exactly, as a sum over all 2**hidden states of the hidden layer."""
    hidden = len(params["layers"][1]["loc"])
    if hidden > MOST_HIDDEN:
        raise ValueError(f"log_partition: {hidden} hidden units are too many; expected at most {MOST_HIDDEN}")
    return _log_sum_over_hidden(params)


@jax.jit
def _log_sum_over_hidden(params):
    hidden = len(params["layers"][1]["loc"])

    def log_sum(numbers):
        h = (numbers[:, None] >> jnp.arange(hidden)[None]) & 1
        return logsumexp(-hidden_free_energy(params, h.astype(float)))

    # In blocks of at most 4096 states, so that memory does not grow with their number.
    return logsumexp(jax.lax.map(log_sum, jnp.arange(2**hidden).reshape(-1, 2 ** min(hidden, 12))))


class Annealing(NamedTuple):
    """What annealing needs, in the order of `annealed_importance_sampling`'s arguments."""

    path: linear_path
    start: Array
    log_z_start: Array


def annealing(params: Params, data: States | None, chains: int, key: Array) -> Annealing:
    """The path from independent visible units, with the means (and variances) of the data, to the machine itself.

        visible parameters (1 - β) those of the data + β its own,   c and W: β its own

    Its start is drawn exactly and has a known Z (Salakhutdinov & Murray, 2008).

    Args:
        params: of the machine at the end of the path.
        data: (rows, visible); None: from fair coins instead (Gaussian units: from the machine's own loc and log_var), a
            path that needs more steps, but finds modes far from the data.
        chains: how many states to draw.
        key: a PRNG key.
    """
    visible, hidden = params["layers"]
    if data is not None and jnp.shape(data)[1:] != (units := jnp.shape(visible["loc"])):
        raise ValueError(f"annealing: data: expected shape (rows, {units[0]}) as in params, got {jnp.shape(data)}")
    zeros = jax.tree.map(jnp.zeros_like, params)
    if "log_var" in visible:
        first = visible if data is None else _gaussian("annealing", data)
    else:
        first = zeros["layers"][0] if data is None else _bernoulli(data)
    independent = zeros | {"layers": [first, zeros["layers"][1]]}
    units = jnp.zeros((chains, len(hidden["loc"])))
    log_z_start = len(hidden["loc"]) * jnp.log(2.0) - hidden_free_energy(independent, units[:1])[0]
    return Annealing(linear_path(independent, params), sample_visible(independent, units, key), log_z_start)
