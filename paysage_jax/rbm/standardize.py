"""Columns of data brought to mean 0 and variance 1, and back."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from .._core.batches import as_arrays, as_floats
from .._core.types import Batch
from .._ebm.domain import check_real, matrix, mean_and_deviation


class Standardization(NamedTuple):
    """The means and standard deviations of the columns of data: `apply` brings them to 0 and 1, `inverse` goes back.

    The log-likelihood of the original rows is that of the standardized ones less Σ log deviation.
    """

    mean: Array
    deviation: Array

    def apply(self, v: Array | np.ndarray) -> Array:
        """(v - mean) / deviation for rows v in the original units."""
        return (self._rows(v) - self.mean[None]) / self.deviation[None]

    def inverse(self, v: Array | np.ndarray) -> Array:
        """mean + deviation v for rows v of standardized data, or samples of a machine that was trained on them."""
        return self.mean[None] + self.deviation[None] * self._rows(v)

    def _rows(self, v):
        v = as_floats(as_arrays("v", v if hasattr(v, "__array__") else np.asarray(v), np.asarray), float)
        if v.shape[-1:] != self.mean.shape:
            raise ValueError(f"v: expected shape (rows, {len(self.mean)}), as of the data, got {v.shape}")
        return jnp.asarray(v)


def standardize(data: Batch) -> Standardization:
    """What brings every column to mean 0 and variance 1.

        (v - m) / s,   with m and s the means and standard deviations of the data

    >>> data = jnp.array([[1.0, 300.0], [3.0, 500.0]])
    >>> units = standardize(data)
    >>> units.apply(data).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]

    Args:
        data: (rows, visible), finite and in no column constant, or `Weighted`: the data to train on.

    Raises:
        TypeError, ValueError: for NaN and infinities, naming row and column, for a constant column, and data that are
            no such array.
    """
    return Standardization(*mean_and_deviation("standardize", matrix("standardize: data", data, check_real)))
