"""Integral and quantiles of the truncated normal distribution, with density proportional to exp(z y - y²/2) on y >= 0.

Both are accurate in the dtype of z, even far below z = 0, where only the tail of the normal distribution remains.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

_ROOT = np.sqrt(2 * np.pi)
_TERMS = 32  # terms of the series for the tail, for a relative error of 1e-12
_FAR = -4.0  # below this z, the distribution is nearly exponential


def _weideman(terms: int) -> tuple[float, np.ndarray]:
    """L and the coefficients, highest power first, of Weideman's series (SIAM J. Numer. Anal. 31, 1994)."""
    scale, points = np.sqrt(terms / np.sqrt(2)), 2 * terms
    t = scale * np.tan(np.arange(1 - points, points) * np.pi / points / 2)
    values = np.concatenate([[0.0], np.exp(-(t**2)) * (scale**2 + t**2)])
    coefficients = np.fft.fft(np.fft.fftshift(values)).real / (2 * points)
    return scale, coefficients[terms:0:-1]


_SCALE, _COEFFICIENTS = _weideman(_TERMS)


def _tail(z: jax.Array) -> jax.Array:
    """∫ exp(-z y - y²/2) dy over y >= 0, for z >= 0: Mills' ratio, √(π/2) erfcx(z / √2)."""
    scale, y = jnp.asarray(_SCALE, z.dtype), z / jnp.asarray(np.sqrt(2), z.dtype)
    polynomial = jnp.polyval(jnp.asarray(_COEFFICIENTS, z.dtype), (scale - y) / (scale + y))
    return jnp.asarray(np.sqrt(np.pi / 2), z.dtype) * (
        2 * polynomial / (scale + y) ** 2 + jnp.asarray(1 / np.sqrt(np.pi), z.dtype) / (scale + y)
    )


def log_integral(z: jax.Array) -> jax.Array:
    """log ∫ exp(z y - y²/2) dy over y >= 0. Its derivative is the mean of y."""
    below = z < 0
    tail = _tail(jnp.where(below, -z, z))
    above = jnp.where(below, 0, z)  # both branches stay finite, so that the gradient does
    rest = jnp.log(jnp.asarray(_ROOT, z.dtype) - jnp.where(below, 0, jnp.exp(-(above**2) / 2) * tail))
    return jnp.where(below, jnp.log(tail), above**2 / 2 + rest)


def quantile(z: jax.Array, u: jax.Array) -> jax.Array:
    """The quantile y at probability u: the solution of log P(Y > y) = log(1 - u)."""
    half = jnp.finfo(z.dtype).eps / 2
    remaining = jnp.clip(1 - u - half, half, 1 - half)  # the midpoint between two possible uniform numbers
    near = jnp.maximum(z, _FAR)
    near = near - ndtri(remaining * ndtr(near))
    far, log_remaining = jnp.minimum(z, _FAR), jnp.log(remaining)
    y = -2 * log_remaining / (jnp.sqrt(far**2 - 2 * log_remaining) - far)  # where z y - y²/2 is log(1 - u)
    for _ in range(2):  # steps of Newton's method; the derivative of log P(Y > y) is -1 / tail
        tail = _tail(y - far)
        log_survival = jnp.log(tail / _tail(-far)) + y * (far - y / 2)
        y = y + tail * (log_survival - log_remaining)
    return jnp.maximum(jnp.where(z < _FAR, y, near), 0)
