"""The machine of binary hidden and binary or Gaussian visible units as functions: the parameters say which."""

from __future__ import annotations

import jax
from jax import Array
from jax.typing import ArrayLike

from .._core.types import Batch, Params, Updates
from .._ebm.annealing import Annealing
from .._ebm.domain import mean_over_rows
from .._ebm.phases import weighted
from .machine import RBM, States
from .units import Binary, Gaussian

MOST_HIDDEN = 20  # the exact partition function is a sum over 2**hidden states


def _machine(params: Params) -> RBM:
    return RBM(Gaussian() if "log_var" in params["layers"][0] else Binary())


def init_bernoulli(data: Batch, hidden: int, key: Array) -> Params:
    """`RBM.init` of binary visible units."""
    machine = RBM()
    return machine._start("init_bernoulli", machine.visible.rows("init_bernoulli: data", data), hidden, key)


def init_gaussian(data: Batch, hidden: int, key: Array) -> Params:
    """`RBM.init` of Gaussian visible units."""
    machine = RBM(Gaussian())
    return machine._start("init_gaussian", machine.visible.rows("init_gaussian: data", data), hidden, key)


def free_energy(params: Params, v: States) -> Array:
    """F(v) of every row of v."""
    return _machine(params).energy(params, v)


def hidden_free_energy(params: Params, h: States) -> Array:
    """-log Σ_v exp(-E(v, h)) of every row of h; an integral over v if the visible units are Gaussian."""
    return _machine(params).hidden_free_energy(params, h)


def gradient(params: Params, v_data: Batch, v_model: States) -> Updates:
    """The gradient of the mean free energy of the data minus that of the model's samples, to be descended."""

    def mean_energy(params: Params, data: Batch) -> Array:
        data = weighted(data)
        return mean_over_rows(free_energy(params, data.v), data.weights)

    return jax.grad(lambda p: mean_energy(p, v_data) - mean_energy(p, v_model))(params)


def hidden_mean(params: Params, v: States) -> Array:
    """E[h | v] of every row of v."""
    return _machine(params).hidden_mean(params, v)


def visible_mean(params: Params, h: States) -> Array:
    """E[v | h] of every row of h."""
    return _machine(params).visible_mean(params, h)


def sample_hidden(params: Params, v: States, key: Array) -> Array:
    """A draw from p(h | v) for every row of v."""
    return _machine(params).hidden_sample(params, v, key)


def sample_visible(params: Params, h: States, key: Array) -> Array:
    """A draw from p(v | h) for every row of h."""
    return _machine(params).visible_sample(params, h, key)


def gibbs(params: Params, v: States, key: Array) -> Array:
    """One step of block Gibbs sampling, v to h to v: a Markov kernel that leaves p(v) as it is."""
    return _machine(params).transition(params, v, key)


def log_likelihood(params: Params, v: Batch, log_z: ArrayLike | None = None) -> Array:
    """The mean of log p(v) over the rows of v, in nats; without log_z by the exact one, of `log_partition`."""
    return _machine(params).log_likelihood(params, v, log_partition(params) if log_z is None else log_z)


def log_partition(params: Params) -> Array:
    """log Z exactly, as a sum over all 2**hidden states of the hidden layer."""
    hidden = len(params["layers"][1]["loc"])
    if hidden > MOST_HIDDEN:
        raise ValueError(f"log_partition: {hidden} hidden units are too many; expected at most {MOST_HIDDEN}")
    return _machine(params).log_partition(params)


def annealing(params: Params, data: Batch | None, num_chains: int, key: Array) -> Annealing:
    """The path from independent visible units, with the means (and variances) of the data, to the machine itself."""
    return _machine(params).annealing(params, data, num_chains, key)
