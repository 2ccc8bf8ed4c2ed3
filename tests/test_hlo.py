"""The compiled step: everything that can be is updated in place."""

import re

import jax
import jax.numpy as jnp
import pytest

import paysage_jax as pj
from paysage_jax import rbm

SHAPES = {"layers": [{"loc": (784,)}, {"loc": (500,)}], "weights": [{"matrix": (784, 500)}]}
SMALLEST = 500

OPTIMIZERS = {
    "sgd": pj.sgd(0.1),
    "momentum": pj.momentum(0.1),
    "nesterov": pj.momentum(0.1, nesterov=True),
    "rmsprop": pj.rmsprop(0.1),
    "adam": pj.adam(0.1),
    "adamw": pj.adam(0.1, weight_decay=0.01),
    "scheduled adam": pj.adam(pj.power_law_decay(0.1)),
    "classic sgd": pj.classic.sgd(),
    "classic momentum": pj.classic.momentum(),
    "classic rmsprop": pj.classic.rmsprop(),
    "classic adam": pj.classic.adam(),
}


def zeros(shapes=SHAPES, dtype=jnp.float32):
    return jax.tree.map(lambda shape: jnp.zeros(shape, dtype), shapes, is_leaf=lambda x: isinstance(x, tuple))


def large_arrays(tree):
    return [x for x in jax.tree.leaves(tree) if x.size >= SMALLEST]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("arrange", [lambda tree: tree, pj.pack], ids=["tree", "packed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_donated_step_moves_nothing_it_need_not(name, arrange, dtype):
    optimizer = OPTIMIZERS[name]

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return pj.apply_updates(params, updates), state

    params = arrange(zeros(dtype=dtype))
    state = optimizer.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory = compiled.memory_analysis()
    assert memory
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in large_arrays((params, state)))
    assert memory.temp_size_in_bytes < 1024
    assert largest_copy(compiled.as_text()) < SMALLEST


def largest_copy(hlo):
    """The number of elements of the largest array that is copied anywhere in a program."""
    copies = re.findall(r"= \w+\[([\d,]*)\]\S* copy(?:-start)?\(", hlo)
    return max((int(jnp.prod(jnp.array([1, *map(int, filter(None, c.split(",")))]))) for c in copies), default=0)


def test_largest_copy_sees_a_copy():
    transposed = jax.jit(lambda x: (x, x)).lower(jnp.zeros((30, 40))).compile().as_text()
    assert largest_copy(transposed) == 1200


def test_train_step_returns_the_memory_it_was_given():
    data = jax.random.bernoulli(jax.random.key(0), shape=(20, 64)).astype(float)
    params = rbm.init_bernoulli(data, 16, jax.random.key(1))
    optimizer = pj.adam(0.01)
    estimator = pj.persistent_contrastive_divergence(rbm.free_energy, rbm.gibbs)
    state = pj.TrainState(params, optimizer.init(params), estimator.init(params, data, jax.random.key(2)))

    def addresses(state):
        return {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size > 1}

    before = addresses(state)
    state, _ = pj.train_step(estimator, optimizer)(state, data, jax.random.key(3))
    assert addresses(state) == before
