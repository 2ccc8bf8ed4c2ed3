"""Groups, factors by leaf and accumulation: each equals optimizers alone, step by step; against optax and numpy."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paysage_jax as pj
from paysage_jax import (
    accumulate,
    adam,
    add_decayed_weights,
    chain,
    exponential_decay,
    fit,
    freeze,
    loss_gradient,
    momentum,
    partition,
    per_epoch,
    rmsprop,
    scale_leaves,
    sgd,
    skip_nonfinite,
    track_convergence,
)
from paysage_jax.packing import pack_moments
from tests.helpers import problems
from tests.helpers.problems import OPTIMIZERS, TREES, assert_trees_close, each, gradients, rbm_tree, row, run, scaled

KEY = jax.random.key(0)
PARAMS = rbm_tree()
GRADIENTS = jax.tree.map(np.asarray, gradients(PARAMS, steps=6))  # in NumPy: rows and means compile nothing
MEMBERS = {
    "adam": adam(exponential_decay(0.1, 0.5)),
    "optax": chain(optax.sgd(0.1, momentum=0.9)),
    "packed moments": pack_moments(OPTIMIZERS["classic_adam"]),
    "a chain": chain(add_decayed_weights(0.1), momentum(0.1), track_convergence(1e-3)),
}


def loosely(function):
    """Call with the dtype promotion that optax needs."""

    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call


def group(path):
    return path.split("/")[0]


@loosely
def by_optax(optimizer):
    """The updates of every step, and the last parameters."""

    def step(carry, gradient):
        updates, state = optimizer.update(gradient, *carry)
        return (state, optax.apply_updates(carry[1], updates)), updates

    (_, params), updates = jax.jit(lambda: jax.lax.scan(step, (optimizer.init(PARAMS), PARAMS), GRADIENTS))()
    return updates, params


def test_of_trees_and_of_functions_the_labels_are_the_same():
    of_a_function = partition({"layers": sgd(0.1), "weights": sgd(0.2)}, group)
    for labels in (
        {"layers": "layers", "weights": "weights"},
        {"layers": ["layers", {"loc": "layers"}], "weights": [{"matrix": "weights"}]},
        {"layers": ("layers", "layers"), "weights": "weights"},
    ):
        of_a_tree = partition({"weights": sgd(0.2), "layers": sgd(0.1)}, labels)
        expected, actual = (run(optimizer, PARAMS, GRADIENTS)[0] for optimizer in (of_a_function, of_a_tree))
        chex.assert_trees_all_equal(actual, expected)
        assert_trees_close(actual["weights"], scaled(GRADIENTS["weights"], -0.2))
        assert_trees_close(actual["layers"], scaled(GRADIENTS["layers"], -0.1))


# --- groups ------------------------------------------------------------------------------------------


@pytest.mark.slow_unless("optax", "a chain")
@each(MEMBERS)
def test_a_group_of_everything_is_the_optimizer_alone(optimizer):
    updates, state, params = run(optimizer, PARAMS, GRADIENTS)
    grouped, grouped_state, grouped_params = run(partition({"all": optimizer}, "all"), PARAMS, GRADIENTS)
    chex.assert_trees_all_equal((grouped, grouped_params), (updates, params))
    chex.assert_trees_all_equal(grouped_state.states["all"], state)


@pytest.mark.parametrize("params", TREES.values(), ids=TREES.keys())
def test_of_any_tree(params):
    if not jax.tree.leaves(params):
        return
    params = jax.tree.map(np.asarray, params)
    grads = row(jax.tree.map(np.asarray, gradients(params, steps=1)), 0)
    for labels in (0, lambda path: 0):
        optimizer = partition({0: sgd(0.1)}, labels)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        chex.assert_trees_all_close(updates, scaled(grads, -0.1), rtol=1e-6)


@each({name: MEMBERS[name] for name in ("adam", "optax", "packed moments")})
def test_two_groups_are_two_optimizers(optimizer):
    """Each optimizer sees only its leaves: even clipping by a norm does not depend on other leaves."""
    clipped = chain(pj.clip_by_global_norm(0.1), rmsprop(0.01))
    updates, state, params = run(partition({"weights": optimizer, "layers": clipped}, group), PARAMS, GRADIENTS)
    for name, alone in (("weights", optimizer), ("layers", clipped)):
        own, own_state, own_params = run(alone, {name: PARAMS[name]}, {name: GRADIENTS[name]})
        assert_trees_close({name: updates[name]}, own, atol=1e-7)
        assert_trees_close({name: params[name]}, own_params, atol=1e-6)
        chex.assert_trees_all_equal_shapes_and_dtypes(*map(jax.tree.leaves, (state.states[name], own_state)))


def test_groups_of_optax_are_the_same():
    labels = {"layers": "a", "weights": "b"}
    ours = partition({"a": optax.sgd(0.3), "b": optax.sgd(0.1, momentum=0.9)}, labels)
    theirs = optax.partition({"a": optax.sgd(0.3), "b": optax.sgd(0.1, momentum=0.9)}, labels)
    assert_trees_close(run(ours, PARAMS, GRADIENTS)[0], by_optax(theirs)[0])


@each({name: MEMBERS[name] for name in ("optax", "a chain")})
def test_a_scan_is_a_loop_and_the_state_keeps_its_dtypes(optimizer):
    optimizer = partition({"weights": accumulate(optimizer, 2), "layers": accumulate(sgd(0.1), 3)}, group)
    updates, state, params = run(optimizer, PARAMS, GRADIENTS)
    loop_state, loop_params = optimizer.init(PARAMS), PARAMS
    update_and_apply = jax.jit(problems.step)
    updates = jax.tree.map(np.asarray, updates)
    for t in range(6):
        update, loop_state, loop_params = update_and_apply(optimizer, row(GRADIENTS, t), loop_state, loop_params)
        assert_trees_close(update, row(updates, t), atol=1e-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, optimizer.init(PARAMS))
    assert_trees_close(loop_params, params, atol=1e-6)


def test_half_precision_comes_back_in_the_dtype_of_the_parameters():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer = partition({"weights": accumulate(adam(0.1), 2), "layers": sgd(0.1)}, group)
    for update in (lambda g, s: optimizer.update(g, s), lambda g, s: optimizer.update(g, s, params)):
        updates, state = update(params, optimizer.init(params))
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        assert state.states["weights"].total["weights"][0]["matrix"].dtype == jnp.float32


def test_schedules_in_groups_get_the_epoch():
    rates = {
        "weights": sgd(per_epoch(lambda epoch: 0.1 / (1 + epoch.astype(float)))),
        "layers": accumulate(sgd(per_epoch(lambda epoch: epoch.astype(float))), 2),
    }
    result = fit(
        PARAMS,
        partition(rates, group),
        loss_gradient(lambda params, batch: jnp.sum(params["weights"][0]["matrix"]) * jnp.mean(batch)),
        jnp.ones((4, 1)),
        batch_size=2,
        epochs=3,
        key=KEY,
    )
    np.testing.assert_allclose(result.history["learning_rate"], [[0, 0.1], [1, 0.05], [2, 0.1 / 3]], rtol=1e-6)


def test_groups_that_stay_as_they_are():
    poisoned = jax.tree.map(lambda g: np.concatenate([np.full_like(g[:1], np.nan), g[1:]]), row(GRADIENTS, 0))
    still = partition({"weights": sgd(0.0), "layers": sgd(0.1)}, group)
    _, _, params = run(still, PARAMS, GRADIENTS)
    chex.assert_trees_all_equal(params["weights"], PARAMS["weights"])
    assert not np.allclose(params["layers"][0]["loc"], PARAMS["layers"][0]["loc"])

    def loc(path):
        return "first" if path == "layers/0/loc" else "second"

    labels = {"layers": [{"loc": "first"}, "second"], "weights": "second"}  # those of frozen leaves may remain
    for of in (loc, labels):
        frozen = freeze(partition({"first": sgd(0.1), "second": sgd(0.2)}, of), lambda path: path == "layers/1/loc")
        updates, _ = frozen.update(poisoned, frozen.init(PARAMS), PARAMS)
        chex.assert_trees_all_equal(updates["layers"][1]["loc"], jnp.zeros_like(PARAMS["layers"][1]["loc"]))
        assert np.isnan(updates["weights"][0]["matrix"]).any()


def test_the_documented_adamw_decays_the_weights_only():
    decayed, plain = adam(1e-3, weight_decay=0.1), adam(1e-3)
    ours = partition({"decayed": decayed, "plain": plain}, {"weights": "decayed", "layers": "plain"})
    mask = {"weights": True, "layers": False}
    expected = by_optax(optax.adamw(1e-3, weight_decay=0.1, mask=mask))
    updates, _, params = run(ours, PARAMS, GRADIENTS)
    assert_trees_close((updates, params), expected, atol=1e-6)


def taker(taken):
    def update(updates, state, params=None, **extra):
        taken.update(extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def test_extra_arguments_reach_a_group_cut_to_its_leaves():
    taken = {}
    optimizer = partition({"weights": taker(taken), "layers": sgd(0.1)}, group)
    gradient = row(GRADIENTS, 0)
    extra = {"gradient": gradient, "grad": gradient, "epoch": 3, "value_fn": None, "statistics": gradient}
    optimizer.update(gradient, optimizer.init(PARAMS), PARAMS, **extra)
    assert taken.keys() == {"gradient", "grad", "epoch", "statistics"}
    assert taken["gradient"]["layers"] == [{"loc": None}, {"loc": None}]
    assert taken["gradient"]["weights"] is not None
    assert taken["statistics"] is gradient


def test_a_group_without_gradient_may_converge_by_itself():
    def loss(params, batch):
        return jnp.sum(params["a"] ** 2) * jnp.mean(batch) + 0 * jnp.sum(params["b"])

    tracked = chain(sgd(0.1), track_convergence(1e-6))
    optimizer = partition({"a": sgd(0.1), "b": tracked}, lambda path: path)
    result = fit(
        {"a": jnp.ones(2), "b": jnp.ones(2)},
        optimizer,
        loss_gradient(loss),
        jnp.ones((2, 1)),
        batch_size=2,
        epochs=5,
        key=KEY,
    )
    assert int(result.outcome) == pj.Outcome.CONVERGED
    assert int(result.epochs_done) == 1


def test_leaves_of_packed_parameters_are_seen():
    rates = {"layers": sgd(0.1), "weights": accumulate(adam(0.1), 2)}
    optimizer = chain(partition(rates, group), scale_leaves({"layers": 0.5, "weights": 1.0}))
    packed = pj.packing.pack(PARAMS)
    state, packed_state = optimizer.init(PARAMS), optimizer.init(packed)
    for t in range(2):
        gradient = row(GRADIENTS, t)
        expected, state = jax.jit(optimizer.update)(gradient, state, PARAMS)
        updates, packed_state = jax.jit(optimizer.update)(pj.packing.pack_like(gradient, packed), packed_state, packed)
        chex.assert_trees_all_close(updates, pj.packing.pack_like(expected, packed), rtol=1e-6)


def test_complex_leaves():
    params = {"a": jnp.array([1 + 2j]), "b": jnp.array([3.0])}
    grads = {"a": jnp.array([[4 - 2j], [2 + 4j]]), "b": jnp.array([[2.0], [4.0]])}
    optimizer = chain(accumulate(partition({"a": sgd(0.1), "b": sgd(0.2)}, lambda path: path), 2), scale_leaves(0.5))
    updates, _, _ = run(optimizer, params, grads)
    np.testing.assert_allclose(updates["a"][1], [-0.05 * (3 + 1j)], rtol=1e-6)
    np.testing.assert_allclose(updates["b"][1], [-0.1 * 3], rtol=1e-6)


def test_a_resumed_run_compares_each_group_with_its_own_tolerance():
    """Steps of 0.1 in one group and of 0.001 in the other, each just below its tolerance."""
    tolerances = {"a": 0.11, "b": 0.0011}
    members = {name: chain(sgd(1.0), track_convergence(tolerances[name])) for name in ("b", "a")}
    linear = loss_gradient(lambda p, batch: (0.1 * p["a"][0] + 0.001 * p["b"][0]) * jnp.mean(batch))
    params, data = {"a": jnp.ones(1), "b": jnp.ones(1)}, jnp.ones((1, 1))
    optimizer, options = partition(members, lambda path: path), {"batch_size": 1, "key": KEY}
    result = fit(params, optimizer, linear, data, epochs=3, **options)
    again = fit(params, optimizer, linear, data, epochs=5, resume=result, **options)
    assert [int(r.outcome) for r in (result, again)] == [pj.Outcome.CONVERGED] * 2
    assert [int(r.epochs_done) for r in (result, again)] == [1, 1]


def test_a_new_number_does_not_retrace_and_equal_partitions_hash():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(optimizer, gradient):
        return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]

    for rate in (0.1, 0.2):
        optimizer = partition({"weights": adam(rate), "layers": sgd(rate)}, group)
        update(chain(optimizer, scale_leaves({"weights": rate, "layers": 1.0})), PARAMS)
    assert partition({"a": sgd(0.1)}, {"b": "a"}) == partition({"a": sgd(0.1)}, {"b": "a"})
    assert hash(partition({"a": sgd(0.1)}, {"b": "a"})) == hash(partition({"a": sgd(0.1)}, {"b": "a"}))
    assert partition({"a": sgd(0.1)}, {"b": "a"}) != partition({"a": sgd(0.1)}, {"c": "a"})


# --- factors by leaf ---------------------------------------------------------------------------------


def test_factors_multiply_the_updates_of_their_leaves():
    factors = {"layers": [{"loc": 0.5}, 2.0], "weights": 0}
    updates, _, _ = run(chain(sgd(0.1), scale_leaves(factors)), PARAMS, GRADIENTS)
    expected = jax.tree.map(lambda u: -0.1 * np.asarray(u, np.float64), GRADIENTS)
    np.testing.assert_allclose(updates["layers"][0]["loc"], 0.5 * expected["layers"][0]["loc"], rtol=1e-6)
    np.testing.assert_allclose(updates["layers"][1]["loc"], 2.0 * expected["layers"][1]["loc"], rtol=1e-6)
    np.testing.assert_array_equal(updates["weights"][0]["matrix"], 0)


def test_a_factor_is_a_separate_learning_rate():
    """Two factors are two groups whose learning rates differ by them, decoupled decay included."""
    rates = {"weights": adam(0.01, weight_decay=0.1), "layers": adam(0.005, weight_decay=0.1)}
    expected, _, _ = run(partition(rates, group), PARAMS, GRADIENTS)
    one = chain(adam(0.01, weight_decay=0.1), scale_leaves({"weights": 1, "layers": 0.5}))
    assert_trees_close(run(one, PARAMS, GRADIENTS)[0], expected, atol=1e-7)


def test_factors_may_be_mapped():
    def first(factor):
        optimizer = chain(sgd(1.0), scale_leaves({"weights": factor, "layers": 1.0}))
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)[0]["weights"][0]["matrix"]

    factors = jnp.array([0.5, 2.0])
    expected = jnp.stack([-f * PARAMS["weights"][0]["matrix"] for f in factors])
    np.testing.assert_allclose(jax.vmap(first)(factors), expected, rtol=1e-6)


# --- accumulation ------------------------------------------------------------------------------------


@pytest.mark.slow_unless("adam-2", "optax-1", "packed moments-2")
@pytest.mark.parametrize("k", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@each(MEMBERS)
def test_accumulating_k_gradients_is_one_step_on_their_mean(optimizer, k):
    ran = run(accumulate(optimizer, k), PARAMS, GRADIENTS)  # compiled once for all k
    updates, state, params = jax.tree.map(np.asarray, ran)
    means = jax.tree.map(lambda g: g.reshape(6 // k, k, *g.shape[1:]).mean(1), GRADIENTS)
    expected, expected_state, expected_params = run(optimizer, PARAMS, means)
    assert_trees_close(jax.tree.map(lambda u: u[k - 1 :: k], updates), expected, atol=1e-6)
    assert_trees_close(params, expected_params, atol=2e-6)
    chex.assert_trees_all_close(state.inner, expected_state, rtol=1e-5, atol=1e-6)
    assert int(state.waiting) == 0
    for t in range(6):
        if (t + 1) % k:
            chex.assert_trees_all_equal(row(updates, t), jax.tree.map(np.zeros_like, PARAMS))


def test_as_optax_accumulates():
    theirs = optax.MultiSteps(optax.adam(0.01), 3)
    assert_trees_close(run(accumulate(adam(0.01), 3), PARAMS, GRADIENTS)[0], by_optax(theirs)[0])


def test_in_between_the_optimizer_stays_as_it_is():
    optimizer = accumulate(adam(exponential_decay(0.1, 0.5)), 3)
    state = first = optimizer.init(PARAMS)
    for t in range(2):
        updates, state = optimizer.update(row(GRADIENTS, t), state, PARAMS)
        chex.assert_trees_all_equal(state.inner, first.inner)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
        assert int(state.waiting) == t + 1
    assert_trees_close(state.total, jax.tree.map(lambda g: g[0] + g[1], GRADIENTS))


def test_the_sum_of_half_precision_is_at_least_float32():
    """A thousand gradients of 1 and one of 256, which in bfloat16 would sum to 256."""
    optimizer = accumulate(sgd(1.0), 1001)
    grads = jnp.ones((1001, 1), jnp.bfloat16).at[0].set(256.0)
    updates, _, _ = run(optimizer, jnp.zeros(1, jnp.bfloat16), grads)
    np.testing.assert_allclose(np.float32(updates[-1]), -1256 / 1001, rtol=2**-8)


def test_the_extra_arguments_are_those_of_the_last_gradient():
    optimizer = accumulate(sgd(per_epoch(lambda epoch: epoch.astype(float))), 2)
    state = optimizer.init(PARAMS)
    for epoch in (3, 5):
        _, state = optimizer.update(PARAMS, state, PARAMS, epoch=jnp.array(epoch))
    assert float(state.inner.learning_rate) == 5.0


@pytest.mark.parametrize(
    "optimizer",
    [
        chain(accumulate(sgd(1e-3), 4), track_convergence(1e-9)),
        accumulate(chain(sgd(1e-3), track_convergence(1e-9)), 4),
    ],
    ids=["outside", "inside"],
)
def test_zeros_in_between_do_not_count_as_convergence(optimizer):
    def loss(params, batch):
        return jnp.sum((params - 1) ** 2) * jnp.mean(batch)

    data = jnp.ones((3, 1))  # epochs end with gradients waiting
    result = fit(jnp.zeros(2), optimizer, loss_gradient(loss), data, batch_size=1, epochs=9, key=KEY)
    assert int(result.outcome) == pj.Outcome.EPOCHS_EXHAUSTED
    np.testing.assert_allclose(result.params, 1 - (1 - 2e-3) ** 6, rtol=1e-5)  # 27 gradients: 6 steps


def test_a_gradient_that_is_not_finite_can_be_left_out():
    optimizer = skip_nonfinite(accumulate(sgd(1.0), 2))
    grads = jnp.array([[1.0], [np.nan], [3.0]])
    updates, state, _ = run(optimizer, jnp.zeros(1), grads)
    np.testing.assert_array_equal(updates, [[0.0], [0.0], [-2.0]])
    assert int(state.skipped) == 1


def test_another_number_of_steps_does_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(optimizer, gradient):
        return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]

    results = [update(accumulate(sgd(0.1), steps), PARAMS) for steps in (1, 2)]
    assert_trees_close(results, [scaled(PARAMS, -0.1), scaled(PARAMS, 0.0)])


# --- what optax's line searches and plateaus take ----------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
TARGETS = (ROWS @ np.array([1.0, -2.0, 0.5]) + 0.1 * np.random.default_rng(1).normal(size=20)).astype(np.float32)
LINEAR = {"w": jnp.zeros(3)}


def squares(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


SOLUTION = np.linalg.lstsq(ROWS.astype(np.float64), TARGETS.astype(np.float64))[0]


@loosely
def fitted(optimizer, epochs):
    data = {"x": ROWS, "y": TARGETS}
    return fit(LINEAR, optimizer, loss_gradient(squares), data, epochs=epochs, batch_size=20, key=KEY)


@pytest.mark.slow
def test_lbfgs_under_fit():
    optimizer = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=15))
    np.testing.assert_allclose(fitted(optimizer, epochs=10).params["w"], SOLUTION, atol=1e-4)


@loosely
def test_lbfgs_with_its_own_line_search_under_train_step():
    optimizer = optax.lbfgs()
    step = pj.train_step(loss_gradient(squares), optimizer)
    # A copy of each leaf: this state of optax holds one buffer twice, and the step donates it.
    state = jax.tree.map(jnp.array, pj.TrainState(LINEAR, optimizer.init(LINEAR), ()))
    for _ in range(10):
        state, _ = step(state, {"x": ROWS, "y": TARGETS}, KEY)
    np.testing.assert_allclose(state.params["w"], SOLUTION, atol=1e-4)


def test_a_plateau_reduces_the_learning_rate():
    """At a step size of exactly 0 the loss does not change, so the scale is halved after every `patience` steps."""
    optimizer = chain(sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    result = fitted(optimizer, epochs=7)
    assert float(result.optimizer_state[1].scale) == 0.5**3
    np.testing.assert_allclose(result.optimizer_state[1].best_value, np.mean(TARGETS.astype(float) ** 2), rtol=1e-5)


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: partition({"layers": sgd(0.1), "weight": sgd(0.1)}, group).init(PARAMS),
            ValueError,
            "partition: weights/0/matrix has the label 'weights', expected one of ['layers', 'weight']",
        ),
        (
            lambda: partition({"a": sgd(0.1), "b": sgd(0.1)}, lambda path: "a").init(PARAMS),
            ValueError,
            "partition: no leaf has the label 'b'; the leaves are ['layers/0/loc'",
        ),
        (
            lambda: partition({"a": sgd(0.1)}, {"layers": "a"}).init(PARAMS),
            ValueError,
            "partition: nothing is given for the leaf ['weights'][0]['matrix'], only for [\"['layers']\"]",
        ),
        (
            lambda: partition({"a": sgd(0.1)}, {"layers": "a", "weights": [{"matrix": {"x": "a"}}]}).init(PARAMS),
            ValueError,
            "nothing is given for the leaf ['weights'][0]['matrix']",
        ),
        (lambda: partition({"a": sgd}, "a"), TypeError, "got the class sgd: call it"),
        (lambda: partition([sgd(0.1)], "a"), TypeError, "partition: optimizers: expected a dict label -> optimizer"),
        (lambda: partition({}, "a"), TypeError, "partition: optimizers: expected a dict label -> optimizer"),
        (
            lambda: partition({"a": sgd(0.1)}, "a").update(PARAMS, sgd(0.1).init(PARAMS), PARAMS),
            TypeError,
            "partition: expected a state of type PartitionState, got SgdState",
        ),
        (
            lambda: partition({"a": sgd(0.1)}, "a").update(PARAMS, partition({"b": sgd(0.1)}, "b").init(PARAMS)),
            ValueError,
            "partition: expected states of ['a'], got ['b']",
        ),
        (
            lambda: partition({"a": sgd(0.1)}, "a").update(PARAMS, partition({"a": sgd(0.1)}, "a").init(PARAMS), {}),
            ValueError,
            "updates['layers'][0]['loc']: unexpected; params has no such leaf",
        ),
        (lambda: scale_leaves({"a": -1.0}), ValueError, "scale_leaves: factors['a'] must be in [0, inf), got -1.0"),
        (lambda: scale_leaves({"a": "x"}), TypeError, "scale_leaves: factors['a'] must be a number"),
        (
            lambda: scale_leaves({"layers": 1.0}).init(PARAMS),
            ValueError,
            "scale_leaves: nothing is given for the leaf ['weights'][0]['matrix']",
        ),
        (
            lambda: scale_leaves(jnp.ones(2)).update(PARAMS, ()),
            ValueError,
            "scale_leaves: expected a scalar, got shape (2,)",
        ),
        (lambda: accumulate(sgd(0.1), 0), ValueError, "steps must be a positive integer"),
        (lambda: accumulate(sgd(0.1), 1.5), TypeError, "steps must be a positive integer"),
        (lambda: accumulate(0.1, 2), TypeError, "expected an optimizer or transformation"),
        (
            lambda: accumulate(sgd(0.1), 2).update(PARAMS, sgd(0.1).init(PARAMS)),
            TypeError,
            "accumulate: expected a state of type AccumulateState, got SgdState",
        ),
        (
            lambda: accumulate(sgd(0.1), 2).update(PARAMS["layers"], accumulate(sgd(0.1), 2).init(PARAMS)),
            ValueError,
            "the state has it",
        ),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
