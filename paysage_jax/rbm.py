"""A restricted Boltzmann machine with binary hidden units h and binary or Gaussian visible units v.

Binary v:    E(v, h) = -b·v - c·h - v·W h
Gaussian v:  E(v, h) = Σ (v - b)² / (2 s²) - c·h - (v / s²)·W h, with s² = exp(log_var)

p(v) = exp(-F(v)) / Z, where the free energy F(v) = -log Σ_h exp(-E(v, h)) has a closed form. The parameters are
paysage's tree {"layers": [{"loc": b}, {"loc": c}], "weights": [{"matrix": W}]} with W of shape (visible, hidden);
a "log_var" in the first layer makes the visible units Gaussian. States are floating arrays (batch, units).

Where states or parameters are bfloat16 or float16, energies and probabilities are computed in float32. Energies stay
float32; states and means have the dtype of the states given.
"""

from __future__ import annotations

from functools import wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid, softplus
from jax.scipy.special import logit, logsumexp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from ._core.batches import Weighted, as_arrays, as_floats
from ._core.pytree import Pytree
from ._core.trees import floating_dtype, moment_dtype
from ._core.types import Params, Updates
from ._ebm.annealing import Annealing, linear_path
from ._ebm.domain import check_real, check_unit_interval, matrix, mean_and_deviation, mean_over_rows
from ._ebm.phases import weighted

States = Array | np.ndarray  # (batch, units)
Data = States | Weighted

MOST_HIDDEN = 20  # the exact partition function is a sum over 2**hidden states


def _wide(tree):
    """Half precision as float32."""

    def widen(x):
        dtype = jnp.result_type(x)
        return x if (wide := moment_dtype(dtype)) == dtype else jnp.asarray(x, wide)

    return jax.tree.map(widen, tree)


def _each_row(layer):
    """Makes an equation of one state of a layer a function of states (batch, units), for every row, in floats."""

    def decorate(equation):
        rows = jax.vmap(equation, in_axes=(None, 0))

        @wraps(equation)
        def of_rows(params, states):
            units, shape = jnp.shape(params["layers"][layer]["loc"]), getattr(states, "shape", None)
            if shape is None or len(shape) != 2 or shape[1:] != units:  # which might broadcast
                got = f"a {type(states).__name__}" if shape is None else f"shape {shape}"
                name = equation.__name__.lstrip("_")
                raise ValueError(f"{name}: expected states (rows, {units[0]}) as in params, got {got}")
            params = _wide(params)
            return rows(params, _wide(as_floats(states, floating_dtype(params))))

        return of_rows

    return decorate


# --- parameters to start from ------------------------------------------------------------------------


def init_bernoulli(data: Data, hidden: int, key: Array) -> Params:
    """Independent binary units with the means of the data, and weights of 0.01 to break the symmetry.

        b = log(m / (1 - m)),   c = 0,   W ~ 0.01 N(0, 1),   with m the means of the data

    Args:
        data: (rows, visible), zeros and ones or means in [0, 1], or `Weighted`. The parameters have their dtype, if it
            is floating.
        hidden: the number of hidden units.
        key: a PRNG key.

    Raises:
        TypeError, ValueError: for a number outside [0, 1], naming row and column, and data that are no such array.
    """
    data = matrix("init_bernoulli: data", data, check_unit_interval)
    return _start(data, _bernoulli(data), 1.0, hidden, key)


def init_gaussian(data: Data, hidden: int, key: Array) -> Params:
    """Independent Gaussian units with the means and variances of the data, and weights of 0.01 standard deviations.

        b = m,   log_var = log s²,   W ~ 0.01 s N(0, 1),   c = -Wᵀ (m / s²)

    The hidden units see (v - m) / s², so that in other units of measurement, a v + t, the machine is the same. Training
    is not: its learning rate is in units of the parameters, and `standardize` makes them those of unit variance.

    Args:
        data: (rows, visible), finite and in no column constant, or `Weighted`. The parameters have their dtype, if it
            is floating.
        hidden: the number of hidden units.
        key: a PRNG key.

    Raises:
        TypeError, ValueError: for NaN and infinities, naming row and column, for a constant column, and data that are
            no such array.
    """
    data = matrix("init_gaussian: data", data, check_real)
    mean, deviation = mean_and_deviation("init_gaussian", data)
    return _start(data, _gaussian(mean, deviation), deviation[:, None], hidden, key)


class Standardization(NamedTuple):
    """The means and standard deviations of the columns of data: `apply` brings them to 0 and 1, `inverse` goes back.

    The log-likelihood of the original rows is that of the standardized ones less Σ log deviation.
    """

    mean: Array
    deviation: Array

    def apply(self, v: States) -> Array:
        """(v - mean) / deviation for rows v in the original units."""
        return (self._rows(v) - self.mean[None]) / self.deviation[None]

    def inverse(self, v: States) -> Array:
        """mean + deviation v for rows v of standardized data, or samples of a machine that was trained on them."""
        return self.mean[None] + self.deviation[None] * self._rows(v)

    def _rows(self, v):
        v = as_floats(as_arrays("v", v if hasattr(v, "__array__") else np.asarray(v), np.asarray), float)
        if v.shape[-1:] != self.mean.shape:
            raise ValueError(f"v: expected shape (rows, {len(self.mean)}), as of the data, got {v.shape}")
        return jnp.asarray(v)


def standardize(data: Data) -> Standardization:
    """What brings every column to mean 0 and variance 1.

        (v - m) / s,   with m and s the means and standard deviations of the data

    >>> data = jnp.array([[1.0, 300.0], [3.0, 500.0]])
    >>> units = standardize(data)
    >>> units.apply(data).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]

    Args:
        data: (rows, visible), finite and in no column constant, or `Weighted`: the data to train on.

    Raises:
        TypeError, ValueError: as `init_gaussian`.
    """
    return Standardization(*mean_and_deviation("standardize", matrix("standardize: data", data, check_real)))


def _bernoulli(data):
    smallest = 2.0**-23
    mean = mean_over_rows(_wide(as_floats(data.v, float)), data.weights)
    return {"loc": logit(jnp.clip(mean, smallest, 1 - smallest))}


def _gaussian(mean, deviation):
    return {"loc": mean, "log_var": 2 * jnp.log(deviation)}


def _start(data, visible, unit, hidden, key):
    """Small weights in units of the visible units, whose means give the hidden units no input where W has no other."""
    loc = visible["loc"]
    matrix = 0.01 * unit * jax.random.normal(key, (len(loc), hidden), loc.dtype)
    if "log_var" in visible:
        c = -jnp.matmul(loc / jnp.exp(visible["log_var"]), matrix, precision="highest")
    else:
        c = jnp.zeros(hidden, loc.dtype)
    params = {"layers": [visible, {"loc": c}], "weights": [{"matrix": matrix}]}
    dtype = data.v.dtype if jnp.issubdtype(data.v.dtype, jnp.floating) else loc.dtype
    return jax.tree.map(lambda p: p.astype(dtype), params)


# --- the energy and its gradient ---------------------------------------------------------------------


def _hidden_input(params, v):
    visible, hidden = params["layers"]
    if "log_var" in visible:
        v = v / jnp.exp(visible["log_var"])
    return hidden["loc"] + v @ params["weights"][0]["matrix"]


def _visible_input(params, h):
    return params["layers"][0]["loc"] + params["weights"][0]["matrix"] @ h


@_each_row(0)
def free_energy(params: Params, v: States) -> Array:
    """F(v) of every row of v."""
    visible = params["layers"][0]
    if "log_var" in visible:
        energy = jnp.sum((v - visible["loc"]) ** 2 / (2 * jnp.exp(visible["log_var"])))
    else:
        energy = -visible["loc"] @ v
    return energy - jnp.sum(softplus(_hidden_input(params, v)))


@_each_row(1)
def hidden_free_energy(params: Params, h: States) -> Array:
    """-log Σ_v exp(-E(v, h)) of every row of h; an integral over v if the visible units are Gaussian."""
    visible, hidden = params["layers"]
    if "log_var" in visible:
        variance, shift = jnp.exp(visible["log_var"]), params["weights"][0]["matrix"] @ h
        # (x² - b²) / (2 s²), x = b + W h, without the difference of large squares
        log_sums = shift * (visible["loc"] + shift / 2) / variance + jnp.log(2 * jnp.pi * variance) / 2
    else:
        log_sums = softplus(_visible_input(params, h))
    return -hidden["loc"] @ h - jnp.sum(log_sums)


def gradient(params: Params, v_data: Data, v_model: States) -> Updates:
    """The gradient of the mean free energy of the data minus that of the model's samples, to be descended."""
    return jax.grad(lambda p: _mean_energy(p, v_data) - _mean_energy(p, v_model))(params)


def _mean_energy(params, data):
    data = weighted(data)
    return mean_over_rows(free_energy(params, data.v), data.weights)


# --- sampling ----------------------------------------------------------------------------------------


@_each_row(0)
def _hidden_mean(params, v):
    return sigmoid(_hidden_input(params, v))


@_each_row(1)
def _visible_mean(params, h):
    x = _visible_input(params, h)
    return x if "log_var" in params["layers"][0] else sigmoid(x)


def _like(x, states):
    """In the dtype of the states, if it is floating."""
    dtype = jnp.result_type(states)
    return x.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else x


def hidden_mean(params: Params, v: States) -> Array:
    """E[h | v] of every row of v."""
    return _like(_hidden_mean(params, v), v)


def visible_mean(params: Params, h: States) -> Array:
    """E[v | h] of every row of h."""
    return _like(_visible_mean(params, h), h)


def _rows_of(x: States) -> NamedSharding | None:
    """Where the rows of x lie on a mesh: random numbers for them are drawn there, not all on every device."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def sample_hidden(params: Params, v: States, key: Array) -> Array:
    """A draw from p(h | v) for every row of v."""
    mean = _hidden_mean(params, v)
    return jax.random.bernoulli(key, mean, out_sharding=_rows_of(mean)).astype(v.dtype)


def sample_visible(params: Params, h: States, key: Array) -> Array:
    """A draw from p(v | h) for every row of h."""
    visible, mean = params["layers"][0], _visible_mean(params, h)
    if "log_var" in visible:
        normal = jax.random.normal(key, mean.shape, mean.dtype, out_sharding=_rows_of(mean))
        return _like(mean + jnp.exp(_wide(visible["log_var"]) / 2)[None] * normal, h)
    return jax.random.bernoulli(key, mean, out_sharding=_rows_of(mean)).astype(h.dtype)


def gibbs(params: Params, v: States, key: Array) -> Array:
    """One step of block Gibbs sampling, v to h to v: a Markov kernel that leaves p(v) as it is."""
    visible, hidden = params["layers"]
    if "log_var" in visible:
        hidden_key, visible_key = jax.random.split(key)
        return sample_visible(params, sample_hidden(params, v, hidden_key), visible_key)
    # One draw for both layers: on a CPU a second one may cost as much as all arithmetic of a small machine.
    mean = _hidden_mean(params, v)
    shape = len(v), hidden["loc"].size + visible["loc"].size
    uniform = jax.random.uniform(key, shape, mean.dtype, out_sharding=_rows_of(v))
    for_h, for_v = jnp.split(uniform, [hidden["loc"].size], axis=1)
    h = (for_h < mean).astype(v.dtype)
    return (for_v < _visible_mean(params, h)).astype(v.dtype)


# --- likelihood --------------------------------------------------------------------------------------


def log_likelihood(params: Params, v: Data, log_z: ArrayLike) -> Array:
    """The mean of log p(v) over the rows of v, in nats.

    For grey values in [0, 1] of binary units it is a lower bound of its mean over zeros and ones with these means.

    Args:
        params: of the machine.
        v: (rows, visible), or `Weighted`; then the mean is weighted.
        log_z: log Z of the machine.

    Raises:
        ValueError: where values are known for NaN and infinities, and for binary units a number outside [0, 1].
    """
    check = check_real if "log_var" in params["layers"][0] else check_unit_interval
    return -_mean_energy(params, matrix("log_likelihood: v", v, check)) - jnp.asarray(log_z)


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


def annealing(params: Params, data: Data | None, num_chains: int, key: Array) -> Annealing:
    """The path from independent visible units, with the means (and variances) of the data, to the machine itself.

        visible parameters (1 - β) those of the data + β its own,   c and W: β its own

    Its start is drawn exactly and has a known Z (Salakhutdinov & Murray, 2008).

    Args:
        params: of the machine at the end of the path.
        data: (rows, visible) or `Weighted`, as `init_bernoulli` and `init_gaussian` take them; None: from fair coins
            instead (Gaussian units: from the machine's own loc and log_var), a path that needs more steps, but finds
            modes far from the data.
        num_chains: the number of states to draw.
        key: a PRNG key.

    Raises:
        TypeError, ValueError: for data that `init_bernoulli` or `init_gaussian` refuse, or of another width.
    """
    visible, hidden = params["layers"]
    gaussian = "log_var" in visible
    if data is not None:
        data = matrix("annealing: data", data, check_real if gaussian else check_unit_interval)
        if jnp.shape(data.v)[1:] != (units := jnp.shape(visible["loc"])):
            raise ValueError(
                f"annealing: data: expected shape (rows, {units[0]}) as in params, got {jnp.shape(data.v)}"
            )
    zeros = jax.tree.map(jnp.zeros_like, params)
    if data is None:
        first = visible if gaussian else zeros["layers"][0]
    else:
        first = _gaussian(*mean_and_deviation("annealing", data)) if gaussian else _bernoulli(data)
        first = jax.tree.map(lambda x, like: x.astype(jnp.result_type(like)), first, dict(visible))
    independent = zeros | {"layers": [first, zeros["layers"][1]]}
    units = jnp.zeros((num_chains, len(hidden["loc"])), jnp.result_type(visible["loc"]))
    log_z_start = len(hidden["loc"]) * jnp.log(2.0) - hidden_free_energy(independent, units[:1])[0]
    return Annealing(linear_path(independent, params), sample_visible(independent, units, key), log_z_start)


# --- the machine as a model --------------------------------------------------------------------------


class RBM(Pytree):
    """The machine as a model for estimators, metrics, annealing and tracking. Binary or Gaussian: the parameters say.

    >>> import paysage_jax as pj
    >>> v, key = jnp.eye(4), jax.random.key(0)
    >>> params = init_bernoulli(v, 2, key)
    >>> estimator = pj.persistent_contrastive_divergence(RBM(), num_chains=10)
    >>> result = pj.fit(params, pj.sgd(0.1), estimator, v, epochs=2, batch_size=4, key=key)
    """

    sample_hidden = None
    integer_states = False

    def energy(self, params: Params, v: States) -> Array:
        """The free energy: hidden units are summed out."""
        return free_energy(params, v)

    def transition(self, params: Params, v: States, key: Array) -> Array:
        """Block Gibbs sampling of hidden, then visible units."""
        return gibbs(params, v, key)
