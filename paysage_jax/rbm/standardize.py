"""Standardize the columns of data to mean 0 and variance 1, and map standardized rows back."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from .._core.batches import as_arrays, as_floats
from .._core.types import Batch
from .._ebm.domain import check_real_matrix, mean_and_deviation, measured


class Standardization(NamedTuple):
    """The means and standard deviations of the columns of data, of shape (visible,).

    `apply` standardizes rows, and `inverse` maps them back. The log-likelihood of the original rows is the
    log-likelihood of the standardized rows minus Σ log deviation.
    """

    mean: Array
    deviation: Array

    def apply(self, v: Array | np.ndarray) -> Array:
        """Return (v - mean) / deviation for rows v in the original units of measurement."""
        return (self._rows(v) - self.mean[None]) / self.deviation[None]

    def inverse(self, v: Array | np.ndarray) -> Array:
        """Return mean + deviation v for standardized rows v, for example samples of a machine trained on such data."""
        return self.mean[None] + self.deviation[None] * self._rows(v)

    def _rows(self, v):
        v = as_floats(as_arrays("v", v if hasattr(v, "__array__") else np.asarray(v), np.asarray), float)
        if v.shape[-1:] != self.mean.shape:
            raise ValueError(f"v: expected shape (rows, {len(self.mean)}), as of the data, got {v.shape}")
        return jnp.asarray(v)


def standardize(data: Batch) -> Standardization:
    """Compute the transformation that gives every column mean 0 and variance 1.

        (v - m) / s,   with m and s the means and standard deviations of the data

    >>> data = jnp.array([[1.0, 300.0], [3.0, 500.0]])
    >>> units = standardize(data)
    >>> units.apply(data).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]

    Args:
        data: the training data, an array (rows, visible) of finite numbers without constant columns, or `Weighted`.

    Raises:
        TypeError, ValueError: if the data are not such an array. The message names row and column of NaN or infinity.
    """
    return Standardization(*mean_and_deviation("standardize", measured("standardize: data", data, check_real_matrix)))
