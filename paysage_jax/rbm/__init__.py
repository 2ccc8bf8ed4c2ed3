"""Restricted Boltzmann machines (`RBM`) with any two kinds of units, and `PottsModel`, which has no hidden units.

E(v, h) = e(v) + e(h) - t(v)·W t(h),   p(v) = exp(-F(v)) / Z,   F(v) = -log ∫ exp(-E(v, h)) dh
"""

from .machine import RBM
from .potts import PottsModel
from .sequences import contact_scores, sequence_weights
from .standardize import Standardization, standardize
from .units import Binary, Categorical, DReLU, Gaussian, ReLU, Spin, Unit

__all__ = [
    "RBM",
    "Binary",
    "Categorical",
    "DReLU",
    "Gaussian",
    "PottsModel",
    "ReLU",
    "Spin",
    "Standardization",
    "Unit",
    "contact_scores",
    "sequence_weights",
    "standardize",
]
