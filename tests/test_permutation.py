"""The faster permutation has the numbers of `jax.random.permutation`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax._core.permutation import permutation


# jax sorts once up to 1,625 numbers, twice up to 2,642,245.
@pytest.mark.parametrize("size", [0, 1, 2, 1625, 1626, 60_000])
def test_its_numbers_are_those_of_jax(size):
    for seed in range(3):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(permutation(key, size), jax.random.permutation(key, size))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_dtypes_generators_and_transformations(x64, impl):
    def by_key(permute):
        return jax.jit(jax.vmap(lambda key: permute(key, 9)))(jax.random.split(jax.random.key(3, impl=impl), 5))

    with jax.enable_x64(x64):
        ours, expected = by_key(permutation), by_key(jax.random.permutation)
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)


def test_equal_random_numbers_keep_the_order_of_their_rows(monkeypatch):
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.array([7, 5, 7, 2**32 - 1, 0, 5], dtype))
    np.testing.assert_array_equal(permutation(jax.random.key(0), 6), [4, 1, 5, 0, 2, 3])
