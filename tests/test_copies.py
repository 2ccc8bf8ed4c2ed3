"""Ownership: no array of a caller is deleted by donation, and no stored array changes with one of the caller."""

import copy
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paysage_jax as pj
from paysage_jax import (
    TrainState,
    adam,
    chain,
    loss_gradient,
    partition,
    persistent_contrastive_divergence,
    sgd,
    train_step,
)
from paysage_jax._core.batches import copy_to_device
from paysage_jax.packing import pack, pack_all_like, pack_like, pack_moments, unpack, unpack_all
from tests.helpers.problems import OPTIMIZERS, each, gradients, rbm_tree, run
from tests.helpers.runs import KEY

BATCH = jnp.ones((4, 3))
MODEL = pj.Model(lambda p, v: -v @ p, lambda p, v, key: v)
squares = loss_gradient(lambda params, batch: jnp.mean((batch @ unpack(params)["w"]) ** 2))

# One leaf, one leaf of its dtype, leaves too large for a common buffer, and leaves in one.
TREES = {
    "one": lambda make: {"w": make(3, np.float32)},
    "one of its dtype": lambda make: {"w": make(3, np.float32), "h": make(3, np.float16)},
    "large": lambda make: {"w": make(3, np.float32), "large": make(9000, np.float32)},
    "several": lambda make: {"w": make(3, np.float32), "b": make(5, np.float32)},
}
each_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())


def numpy_ones(size, dtype):
    return np.ones(size, dtype)


def jax_ones(size, dtype):
    return jnp.ones(size, dtype)


@each_tree
def test_a_packed_tree_does_not_change_with_the_array_it_was_packed_from(tree):
    given = tree(numpy_ones)
    packed = [pack(given), pack_like(given, pack(tree(jax_ones))), pack_all_like({"a": given}, {"a": pack(given)})["a"]]
    for array in given.values():
        array[:] = 7
    for one in packed:
        assert all(isinstance(buffer, jax.Array) for buffer in one.buffers)
        chex.assert_trees_all_equal(unpack(one), tree(jax_ones))


@each_tree
def test_a_step_on_packed_parameters_deletes_no_array_of_the_caller(tree):
    given = tree(jax_ones)
    packed = pack(given)
    state = TrainState(packed, sgd(0.1).init(packed), ())
    seen, seen_in_all = unpack(packed), unpack_all({"p": packed})
    state, _ = train_step(squares, sgd(0.1))(state, BATCH, KEY)
    for kept in (given, seen, seen_in_all["p"]):
        chex.assert_trees_all_equal(kept, tree(jax_ones))
    assert unpack(state.params)["w"][0] != 1


@each_tree
def test_the_state_of_packed_moments_shares_no_array_with_the_parameters(tree):
    given = tree(jax_ones)
    optimizer = pack_moments(adam(0.1))
    state = TrainState(given, optimizer.init(given), ())
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((given, state.optimizer_state))]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("kind", [jnp.array, np.array])
def test_chains_to_start_from_outlive_the_state_they_came_from(kind):
    """As when the chains of one run start the next: a step on the old state donates them."""
    states = kind(np.ones((4, 3), np.float32))
    estimator = persistent_contrastive_divergence(MODEL, chains=states)
    if isinstance(states, jax.Array):
        states.delete()
    else:
        states[:] = 7
    params = jnp.zeros(3)
    step = train_step(estimator, sgd(0.1))
    for _ in range(2):  # a step donates the state: twice from the same start
        state = TrainState(params + 0, (), estimator.init(params, BATCH, KEY))
        state, _ = step(state._replace(optimizer_state=sgd(0.1).init(params)), BATCH, KEY)
        chex.assert_trees_all_equal(state.estimator_state, jnp.ones((4, 3)))


def test_chains_of_a_tracker_outlive_the_array_they_came_from():
    chains = jnp.ones((4, 3))
    tracker = pj.track_log_partition(MODEL, pj.AnnealedEstimate(0.0, chains), KEY)
    chains.delete()
    chex.assert_trees_all_equal(tracker.init(jnp.zeros(3)).chains, jnp.ones((4, 3)))


def test_a_partition_of_packed_parameters_takes_steps_that_delete_nothing():
    given = {"w": jnp.ones(3), "b": jnp.ones(5)}
    packed = pack(given)
    optimizer = partition({"a": adam(0.1), "b": sgd(0.1)}, {"w": "a", "b": "b"})
    state = TrainState(packed, optimizer.init(packed), ())
    step = train_step(squares, optimizer)
    for _ in range(2):
        state, _ = step(state, BATCH, KEY)
    chex.assert_trees_all_equal(given, {"w": jnp.ones(3), "b": jnp.ones(5)})


# --- copies with other values ------------------------------------------------------------------------

PARAMS = rbm_tree()
GRADIENTS = gradients(PARAMS, 2)
OBJECTS = OPTIMIZERS | {
    "chain": chain(pj.clip_by_global_norm(1.0), adam(0.1), optax.scale(0.5), pj.track_convergence(1e-9)),
    "partition by a tree": partition({"w": adam(0.1), "l": sgd(0.2)}, {"weights": "w", "layers": "l"}),
    "partition by a function": partition({"weights": adam(0.1), "layers": sgd(0.2)}, lambda path: path.split("/")[0]),
    "skip_nonfinite": pj.skip_nonfinite(adam(0.1)),
    "freeze": pj.freeze(adam(0.1), lambda path: path.startswith("layers")),
    "accumulate": pj.accumulate(adam(0.1), 2),
    "pack_moments": pack_moments(adam(0.1)),
    "scale_leaves": chain(sgd(0.1), pj.scale_leaves({"weights": 1.0, "layers": 0.5})),
    "schedule": sgd(pj.warmup(pj.per_epoch(pj.power_law_decay(0.1), 3), 4)),
    "foreign schedule": sgd(optax.constant_schedule(0.1)),
}


@pytest.mark.slow_unless(
    "nesterov",
    "classic_adam",
    "chain",
    "partition by a tree",
    "partition by a function",
    "scale_leaves",
    "foreign schedule",
)
@each(OBJECTS)
def test_a_replaced_copy_is_the_same_object(optimizer):
    """It computes the same, equals the original, and hashes to the same."""
    for twin in (dataclasses.replace(optimizer), copy.copy(optimizer), copy.deepcopy(optimizer)):
        assert jax.tree.structure(twin) == jax.tree.structure(optimizer)
        chex.assert_trees_all_equal(run(twin, PARAMS, GRADIENTS)[0], run(optimizer, PARAMS, GRADIENTS)[0])
    twin = dataclasses.replace(optimizer)
    assert twin == optimizer
    if "scale_leaves" not in repr(optimizer):  # whose factors are a dict
        assert hash(twin) == hash(optimizer)


def test_members_of_a_chain_and_a_partition_are_replaced():
    replaced = dataclasses.replace(chain(sgd(0.1)), members=[sgd(0.2), pj.scale_leaves(0.5)])
    chex.assert_trees_all_equal(run(replaced, PARAMS, GRADIENTS)[0], run(sgd(0.1), PARAMS, GRADIENTS)[0])
    by_tree = OBJECTS["partition by a tree"]
    replaced = dataclasses.replace(by_tree, optimizers=by_tree.optimizers | {"w": sgd(0.2)})
    chex.assert_trees_all_equal(run(replaced, PARAMS, GRADIENTS)[0], run(sgd(0.2), PARAMS, GRADIENTS)[0])
    replaced = dataclasses.replace(by_tree, labels={"weights": "l", "layers": "w"})
    assert replaced != by_tree
    with pytest.raises(ValueError, match="chain: sgd comes after track_convergence"):
        dataclasses.replace(chain(sgd(0.1)), members=(pj.track_convergence(1.0), sgd(0.1)))


def test_copied_numbers_have_no_weak_types():
    """A weak type in a carried state would cause a second compilation."""
    copied = copy_to_device({"float": 2.0, "int": 3, "array": np.ones(2), "scalar": np.float32(1), "jax": jnp.ones(2)})
    assert [x.weak_type for x in jax.tree.leaves(copied)] == [False] * 5
    assert {name: x.dtype.name for name, x in copied.items()} == {
        "float": "float32",
        "int": "int32",
        "array": "float32",
        "scalar": "float32",
        "jax": "float32",
    }
