"""Weights for related sequences, and contacts from the couplings of a Potts model."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._core.batches import as_arrays, check_finite
from .._core.pytree import as_number
from .._core.types import Params
from .machine import States
from .potts import PottsModel


def sequence_weights(v: States, identity: float = 0.8) -> Array:
    """Compute weights that correct for related sequences: 1 / the number of sequences similar to each row.

        wᵣ = 1 / |{s: vₛ and vᵣ agree at a fraction of at least `identity` of the sites}|

    Every row counts as similar to itself. The sum of the weights is the effective number of sequences (Morcos et al.,
    2011). Memory grows linearly with the number of rows.

    Args:
        v: sequences of shape (rows, sites), or one-hot (rows, sites, q).
        identity: the smallest fraction of equal sites for two sequences to count as similar, a number in [0, 1].

    >>> sequence_weights(jnp.array([[0, 1, 2, 3, 0], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])).tolist()
    [0.5, 0.5, 1.0]
    """
    as_number("sequence_weights: identity", identity, "[0, 1]")
    v = as_arrays("sequence_weights: v", v)
    check_finite("sequence_weights: v", v)
    if v.ndim not in (2, 3) or len(v) == 0:
        raise ValueError(f"sequence_weights: v: expected sequences (rows, sites), got shape {v.shape}")
    return _weights(v if v.ndim == 2 else jnp.argmax(v, axis=2), math.ceil(round(identity * v.shape[1], 6)))


@jax.jit
def _weights(v: Array, least: int) -> Array:
    columns = v.T

    def similar(row: Array) -> Array:
        return jnp.sum(jnp.sum(columns == row[:, None], axis=0) >= least)

    return 1 / jax.lax.map(similar, v).astype(float)


def contact_scores(params: Params) -> Array:
    """Score the coupling strength of every pair of sites by Frobenius norms with average-product correction.

        Sᵢⱼ = Fᵢⱼ - Fᵢ Fⱼ / F,   Fᵢⱼ = √ Σ Jᵢⱼ(a, b)² in the zero-sum gauge

    Fᵢ is the mean of Fᵢⱼ over all other sites j, and F is the mean over all pairs. In a protein, the pairs with the
    largest scores are likely contacts (Ekeberg et al., 2013; the correction is from Dunn, Wahl & Gloor, 2008).

    Args:
        params: the parameters of a `PottsModel`, in any gauge.

    Returns:
        A symmetric array (n, n) with zeros on the diagonal.

    Raises:
        ValueError: if `params` are not those of a `PottsModel`.
    """
    if set(params) != {"fields", "couplings"}:
        raise ValueError(f"contact_scores: params: expected fields and couplings of a PottsModel, got {sorted(params)}")
    n, q = jnp.shape(params["fields"])
    norms = jnp.linalg.norm(PottsModel(q).zero_sum(params)["couplings"], axis=(1, 2))
    first, second = np.triu_indices(n, 1)
    norms = jnp.zeros((n, n), norms.dtype).at[first, second].set(norms).at[second, first].set(norms)
    means = jnp.sum(norms, axis=1) / (n - 1)
    mean = jnp.mean(means)
    scores = norms - means[:, None] * means[None] / jnp.where(mean > 0, mean, 1)
    return jnp.where(np.eye(n, dtype=bool), 0, scores)
