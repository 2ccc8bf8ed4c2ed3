"""Restricted Boltzmann machines: `RBM` of any two kinds of units.

E(v, h) = e(v) + e(h) - t(v)·W t(h),   p(v) = exp(-F(v)) / Z,   F(v) = -log ∫ exp(-E(v, h)) dh
"""

from .functions import (
    MOST_HIDDEN,
    annealing,
    free_energy,
    gibbs,
    gradient,
    hidden_free_energy,
    hidden_mean,
    init_bernoulli,
    init_gaussian,
    log_likelihood,
    log_partition,
    sample_hidden,
    sample_visible,
    visible_mean,
)
from .machine import RBM
from .standardize import Standardization, standardize
from .units import Binary, Categorical, DReLU, Gaussian, ReLU, Spin, Unit

__all__ = [
    "MOST_HIDDEN",
    "RBM",
    "Binary",
    "Categorical",
    "DReLU",
    "Gaussian",
    "ReLU",
    "Spin",
    "Standardization",
    "Unit",
    "annealing",
    "free_energy",
    "gibbs",
    "gradient",
    "hidden_free_energy",
    "hidden_mean",
    "init_bernoulli",
    "init_gaussian",
    "log_likelihood",
    "log_partition",
    "sample_hidden",
    "sample_visible",
    "standardize",
    "visible_mean",
]
