"""The random numbers of `jax.random` in less time on CPUs: threefry with its rounds written out.

On CPUs, jax compiles the twenty rounds of threefry as a loop that writes every number to memory five times. Written
out, the rounds compile to one kernel, together with the operations that use the numbers. The numbers are the same.
This includes the keys of `split` and `fold_in`, where the loop of a single number compiles to ten kernels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def unrolled(key: Array) -> Array:
    """A key that gives the same numbers and the same further keys in less time.

    Keys of other generators are returned unchanged.
    """
    partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if str(jax.random.key_impl(key)) != "threefry2x32" or not partitionable:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_generator())


def fold_in(key: Array, data: ArrayLike) -> Array:
    """The key of `jax.random.fold_in`."""
    return _in_form_of(key, jax.random.fold_in(unrolled(key), data))


def split(key: Array, num: int = 2) -> Array:
    """The keys of `jax.random.split`."""
    return _in_form_of(key, jax.random.split(unrolled(key), num))


def _in_form_of(key: Array, new: Array) -> Array:
    return jax.random.wrap_key_data(jax.random.key_data(new), impl=jax.random.key_impl(key))


@cache
def _generator() -> Any:
    from jax.extend.random import define_prng_impl, threefry_prng_impl  # a slow import

    def random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
        if math.prod(shape) > 2**32:
            return threefry_prng_impl.random_bits(key, bit_width, shape)
        x0, x1 = _encrypted(key, *_counters(shape))
        if bit_width == 64:
            return x0.astype(jnp.uint64) << np.uint64(32) | x1.astype(jnp.uint64)
        return (x0 ^ x1).astype(f"uint{bit_width}")

    def split(key: Array, shape: tuple[int, ...]) -> Array:
        return jnp.stack(_encrypted(key, *_counters(shape)), axis=-1)

    def fold_in(key: Array, data: ArrayLike) -> Array:
        number = jnp.asarray(data, jnp.uint32)
        return jnp.stack(_encrypted(key, jnp.zeros_like(number), number))

    of_jax = threefry_prng_impl
    return define_prng_impl(
        key_shape=of_jax.key_shape,
        seed=of_jax.seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name="threefry2x32_unrolled",
        tag="unrolled",
    )


def _counters(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The upper and lower halves of the numbers 0, 1, 2, ..., which the compiler can split over devices."""
    zeros = jnp.zeros(shape, jnp.uint32)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    iotas = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape)))
    return zeros, sum((np.uint32(stride) * iota for stride, iota in zip(strides, iotas, strict=True)), zeros)


@jax.jit
def _encrypted(key: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of counters: Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3."""
    k0, k1 = key
    keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(5):
        for bits in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << np.uint32(bits) | x1 >> np.uint32(32 - bits))
        x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1
