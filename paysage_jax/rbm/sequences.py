"""What families of sequences need beside a model: weights of related sequences, and contacts from couplings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._core.batches import as_arrays
from .._core.pytree import as_number
from .._core.types import Params
from .machine import States
from .potts import PottsModel


def sequence_weights(v: States, identity: float = 0.8) -> Array:
    """Weights of sequences that make up for relatives: 1 / the number of similar sequences, itself included.

        wᵣ = 1 / |{s: vₛ and vᵣ are the same at a share of the sites of at least identity}|

    Their sum is the effective number of sequences (Morcos et al., 2011). Memory grows with the number of rows, not with
    its square.

    Args:
        v: (rows, sites), or one-hot (rows, sites, q).
        identity: a number in [0, 1].

    >>> sequence_weights(jnp.array([[0, 1, 2, 3, 0], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])).tolist()
    [0.5, 0.5, 1.0]
    """
    as_number("sequence_weights: identity", identity, "[0, 1]")
    v = as_arrays("sequence_weights: v", v)
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
    """How strongly sites are coupled in a `PottsModel`: Frobenius norms with average-product correction.

        Sᵢⱼ = Fᵢⱼ - Fᵢ Fⱼ / F,   Fᵢⱼ = √ Σ Jᵢⱼ(a, b)² in the zero-sum gauge

    Fᵢ is the mean of Fᵢⱼ over the other sites j, F that over all pairs. In proteins the largest are contacts. (Ekeberg
    et al., 2013; the correction: Dunn, Wahl & Gloor, 2008.)

    Args:
        params: of the model, in any gauge.

    Returns:
        (n, n), symmetric, with zeros on the diagonal.
    """
    n, q = jnp.shape(params["fields"])
    norms = jnp.linalg.norm(PottsModel(q).zero_sum(params)["couplings"], axis=(1, 2))
    first, second = np.triu_indices(n, 1)
    norms = jnp.zeros((n, n), norms.dtype).at[first, second].set(norms).at[second, first].set(norms)
    means = jnp.sum(norms, axis=1) / (n - 1)
    scores = norms - means[:, None] * means[None] / jnp.mean(means)
    return jnp.where(np.eye(n, dtype=bool), 0, scores)
