"""The unrolled generator gives the numbers of `jax.random`, in one kernel."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import rbm
from paysage_jax._core.threefry import fold_in, split, unrolled

SHAPES = [(), (0,), (7,), (9, 8), (2, 3, 4, 5)]
DRAWS = [jax.random.uniform, jax.random.normal, jax.random.gumbel]


def as_it_is(key):
    return key


# One program for many draws, because compilation takes most of the time.
@partial(jax.jit, static_argnums=0)
def bits(convert, key):
    return [jax.random.bits(convert(key), shape, f"uint{width}") for shape in SHAPES for width in (8, 16, 32)]


@partial(jax.jit, static_argnums=(0, 1))
def numbers(convert, dtype, key):
    def by_key(draw):
        return jax.vmap(lambda key: draw(convert(key), (7,), dtype))(jax.random.split(key, 5))

    return [(draw(convert(key), (5, 7), dtype), by_key(draw)) for draw in DRAWS]


def test_its_bits_are_those_of_jax():
    for seed in range(20):
        key = jax.random.key(seed)
        chex.assert_trees_all_equal(bits(unrolled, key), bits(as_it_is, key))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_its_numbers_are_those_of_jax(dtype):
    with jax.enable_x64(dtype == "float64"):
        key = jax.random.key(3)
        ours = numbers(unrolled, dtype, key)
        chex.assert_trees_all_equal(ours, numbers(as_it_is, dtype, key))
        chex.assert_type(jax.tree.leaves(ours), jnp.dtype(dtype))


@partial(jax.jit, static_argnums=(0, 1))
def keys(fold_in, split, key, data):
    numbers = jnp.arange(5)
    folded = fold_in(key, data), fold_in(fold_in(key, data), 7), jax.vmap(lambda i: fold_in(key, i))(numbers)
    return folded, split(key), split(key, 3), split(key, (2, 3)), jax.vmap(split)(folded[2])


@pytest.mark.parametrize("x64", [False, True])
def test_its_keys_are_those_of_jax(x64):
    with jax.enable_x64(x64):
        for seed, data in enumerate([0, 1, -1, 2**31 - 1, jnp.uint32(2**32 - 1)]):
            key = jax.random.key(seed)
            expected = keys(jax.random.fold_in, jax.random.split, key, data)
            chex.assert_trees_all_equal(keys(fold_in, split, key, data), expected)
            of_unrolled = keys(jax.random.fold_in, jax.random.split, unrolled(key), data)
            chex.assert_trees_all_equal(*(jax.tree.map(jax.random.key_data, x) for x in (of_unrolled, expected)))


def test_keys_without_a_type_are_accepted():
    key = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(jax.random.normal(unrolled(key), (9,)), jax.random.normal(key, (9,)))
    np.testing.assert_array_equal(jax.random.key_data(fold_in(key, 2)), jax.random.fold_in(key, 2))
    np.testing.assert_array_equal(jax.random.key_data(split(key)), jax.random.split(key))


def test_more_numbers_than_32_bits_count_are_drawn_by_jax():
    def lowered(*shape):
        return jax.jit(lambda key: jax.random.bits(unrolled(key), shape)).lower(jax.random.key(3)).as_text()

    assert "threefry2x32" in lowered(2**17, 2**16)
    assert "threefry2x32" not in lowered(4, 4)


def test_keys_of_another_generator_are_unchanged():
    key = jax.random.key(3, impl="rbg")
    assert unrolled(key) is key
    chex.assert_trees_all_equal((fold_in(key, 2), split(key)), (jax.random.fold_in(key, 2), jax.random.split(key)))


def test_numbers_that_cannot_be_split_over_devices_are_those_of_jax():
    with jax.threefry_partitionable(False):
        key = jax.random.key(3)
        assert unrolled(key) is key
        chex.assert_trees_all_equal((fold_in(key, 2), split(key)), (jax.random.fold_in(key, 2), jax.random.split(key)))


def test_keys_need_no_loop():
    lowered = jax.jit(lambda key: split(fold_in(key, 2))).lower(jax.random.key(3)).as_text()
    assert "threefry2x32" not in lowered
    assert "while" not in lowered


def test_a_transition_needs_less_memory_beyond_its_chains_than_they_have():
    machine, chains = rbm.RBM(), jnp.ones((10_000, 64))
    params = machine.init(chains, 16, jax.random.key(0))
    compiled = jax.jit(machine.transition).lower(params, chains, jax.random.key(0)).compile()
    # With the rounds of threefry in a loop, it needs five times the memory of the chains.
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < chains.nbytes
