"""Base classes and checked fields for writing optimizers, transformations and estimators."""

from ._core.pytree import Number, Pytree, Schedule, converted, count, function, number, rate, static
from ._ebm.estimators import Estimator
from ._ebm.phases import phase_gradient
from ._optim.leafwise import Leafwise
from ._optim.transformation import Transformation

__all__ = [
    "Estimator",
    "Leafwise",
    "Number",
    "Pytree",
    "Schedule",
    "Transformation",
    "converted",
    "count",
    "function",
    "number",
    "phase_gradient",
    "rate",
    "static",
]


def __dir__() -> list[str]:
    return __all__
