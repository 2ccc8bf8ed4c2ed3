"""The jitted step of training gives the memory of its state back."""

import jax

import paysage_jax as pj
from paysage_jax import rbm


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
