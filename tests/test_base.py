"""The (init, update) pair: objects, chains, optax on both sides, any tree, the compiled step, and errors."""

import math
import pickle
import re
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paysage_jax as pj
from paysage_jax import (
    adam,
    add_decayed_weights,
    apply_updates,
    chain,
    momentum,
    per_epoch,
    power_law_decay,
    rmsprop,
    sgd,
    skip_nonfinite,
    warmup,
)
from paysage_jax._optim import transformation
from paysage_jax.extend import Leafwise, Number, Schedule, Transformation, rate
from paysage_jax.packing import pack
from paysage_jax.states import SgdState
from tests.helpers.problems import OPTIMIZERS, TEXTBOOK, TREES, each, gradients, rbm_tree, row, run, shaped, step

PARAMS = rbm_tree()
GRADIENT = row(gradients(PARAMS, 1), 0)
each_tree = pytest.mark.parametrize("params", TREES.values(), ids=TREES.keys())


class Multiply(Transformation):
    """A user's transformation: updates times the extra argument `factor`, times a field."""

    number: float = 1.0

    def init(self, params):
        return ()

    def apply(self, updates, state, params, *, factor=1.0, **extra):
        return jax.tree.map(lambda u: u * (self.number * factor), updates), state


# --- objects that are pytrees ------------------------------------------------------------------------


@contextmanager
def refused(name, error, match):
    """As pytest.raises, for one of several wrong inputs in a test: a failure has the name of the input."""
    try:
        with pytest.raises(error, match=match):
            yield
    except BaseException as failure:
        failure.add_note(f"wrong input: {name}")
        raise


COMPOSITE = chain(momentum(power_law_decay(0.1, 0.5, 10), nesterov=True), Multiply(2.0))
OBJECTS = OPTIMIZERS | {"composite": COMPOSITE}


@each(OBJECTS)
def test_equal_hashed_and_pickled_by_value(optimizer):
    twin = pickle.loads(pickle.dumps(optimizer))
    assert twin == optimizer
    assert hash(twin) == hash(optimizer)
    assert {optimizer: "found"}[twin] == "found"
    other = jax.tree.map(lambda x: x / 2, optimizer)
    assert type(other) is type(optimizer)
    assert other != optimizer
    chex.assert_trees_all_equal(
        step(twin, GRADIENT, twin.init(PARAMS), PARAMS), step(optimizer, GRADIENT, optimizer.init(PARAMS), PARAMS)
    )


def test_flags_and_kinds_tell_objects_apart():
    assert momentum(0.1) != momentum(0.1, nesterov=True)
    assert sgd(0.1) != momentum(0.1)
    assert jax.tree.structure(momentum(0.1)) != jax.tree.structure(momentum(0.1, nesterov=True))


def test_leaves_are_the_hyperparameters_by_name():
    def names(optimizer):
        return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(optimizer)]

    assert names(momentum(0.1, nesterov=True)) == [".learning_rate", ".decay"]
    assert names(adam(0.1)) == [".learning_rate", ".b1", ".b2", ".eps"]
    assert names(adam(0.1, weight_decay=0.1))[-1] == ".weight_decay"
    assert names(rmsprop(power_law_decay(0.1)))[:2] == [".learning_rate.init_value", ".learning_rate.decay_rate"]
    assert names(sgd(optax.constant_schedule(0.1))) == []  # a plain function is structure
    assert jax.tree.leaves(COMPOSITE) == [0.1, 0.5, 10, 0.9, 2.0]


@each(OBJECTS)
def test_unpacks_into_init_and_update(optimizer):
    init, update = optimizer
    updates, state = update(GRADIENT, init(PARAMS), PARAMS)
    expected, expected_state, _ = step(optimizer, GRADIENT, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal((updates, state), (expected, expected_state))


class SignDescent(Leafwise):
    """A user's optimizer is one equation."""

    learning_rate: Number | Schedule = rate()
    state_type = SgdState

    def rule(self, t, g, p):
        return (-self.learning_rate * jnp.sign(g) / t,)


def test_a_users_own_rule():
    updates, state, _ = run(SignDescent(0.5), PARAMS, jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS))
    expected = jax.tree.map(lambda p: -0.5 * jnp.stack([jnp.sign(p), jnp.sign(p) / 2]), PARAMS)
    chex.assert_trees_all_equal(updates, expected)
    assert state == SgdState(step=2, learning_rate=0.5)


# --- chains, and optax -------------------------------------------------------------------------------


def test_a_chain_applies_its_members_in_order():
    def updates(*members):
        return chain(*members).update(PARAMS, chain(*members).init(PARAMS))[0]

    clip, triple = optax.clip(1.0), Multiply(3.0)
    chex.assert_trees_all_close(updates(clip, triple), jax.tree.map(lambda p: 3 * np.clip(p, -1, 1), PARAMS))
    chex.assert_trees_all_close(updates(triple, clip), jax.tree.map(lambda p: np.clip(3 * p, -1, 1), PARAMS))


def test_chains_nest_and_unpack():
    nested, flat = chain(Multiply(2.0), chain(Multiply(3.0), adam(0.1))), chain(Multiply(2.0), Multiply(3.0), adam(0.1))
    state = flat.init(PARAMS)
    chex.assert_trees_all_equal(nested.init(PARAMS), (state[0], state[1:]))
    expected, state = flat.update(GRADIENT, state, PARAMS)
    init, update = nested
    chex.assert_trees_all_equal(update(GRADIENT, init(PARAMS), PARAMS), (expected, (state[0], state[1:])))


def test_an_empty_chain_changes_nothing():
    assert chain().update(GRADIENT, chain().init(PARAMS)) == (GRADIENT, ())


@pytest.mark.parametrize(
    "optimizer",
    [
        chain(optax.clip_by_global_norm(0.5), adam(0.1)),
        optax.chain(optax.clip_by_global_norm(0.5), adam(0.1)),
        optax.chain(optax.clip_by_global_norm(0.5), adam(0.1).to_optax()),
        chain(optax.chain(optax.clip_by_global_norm(0.5)), adam(0.1)),
    ],
    ids=["optax in ours", "ours in optax", "to_optax", "optax.chain in ours"],
)
def test_optax_and_ours_in_one_chain(optimizer):
    with jax.numpy_dtype_promotion("standard"):
        clip, reference = optax.clip_by_global_norm(0.5), adam(0.1)
        clip_state, state, mixed_state = clip.init(PARAMS), reference.init(PARAMS), optimizer.init(PARAMS)
        for g in (GRADIENT, PARAMS):
            clipped, clip_state = clip.update(g, clip_state)
            expected, state = reference.update(clipped, state, PARAMS)
            updates, mixed_state = jax.jit(optimizer.update)(g, mixed_state, PARAMS)
            chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_optax_finds_the_fields_of_our_states():
    optimizer = optax.chain(optax.clip(1.0), adam(power_law_decay(0.1)))
    state = optimizer.init(PARAMS)
    assert optax.tree.get(state, "learning_rate") == np.float32(0.1)
    assert optax.tree.get(state, "step") == 0


@each(OPTIMIZERS)
def test_optax_masked_placeholders(optimizer):
    mask = {"layers": True, "weights": False}
    masked = optax.masked(optimizer, mask)
    updates, _ = masked.update(GRADIENT, masked.init(PARAMS), PARAMS)
    expected, *_ = step(optimizer, GRADIENT["layers"], optimizer.init(PARAMS["layers"]), PARAMS["layers"])
    chex.assert_trees_all_equal(updates, {"layers": expected, "weights": GRADIENT["weights"]})


class Taken(NamedTuple):
    loss: object = None
    value: object = None


def recorder():
    """An optax transformation that puts the extra arguments it takes into its state."""

    def update(updates, state, params=None, *, loss=None, value=None):
        return updates, Taken(loss, value)

    return optax.GradientTransformationExtraArgs(lambda params: Taken(), update)


def test_extra_arguments_reach_the_members_that_take_them():
    optimizer = chain(sgd(per_epoch(power_law_decay(1.0, 1.0))), Multiply(), recorder(), optax.identity())
    updates, state = optimizer.update(
        GRADIENT, optimizer.init(PARAMS), PARAMS, epoch=3, factor=8.0, loss=5.0, nobody=None
    )
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -2 * g, GRADIENT))
    assert state[0].learning_rate == 0.25
    assert state[2] == Taken(loss=5.0, value=None)


def test_to_optax_carries_extra_arguments_through_optax():
    ours = chain(sgd(per_epoch(power_law_decay(1.0, 1.0))), Multiply())
    optimizer = optax.chain(optax.identity(), ours.to_optax())
    updates, _ = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS, epoch=3, factor=8.0)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -2 * g, GRADIENT))


@each(TEXTBOOK | {"schedule": sgd(power_law_decay(0.1))})
def test_an_extra_argument_of_any_name_does_no_harm(optimizer):
    """`value` and `grad` are what optax's line searches and plateau schedules take."""
    state = optimizer.init(PARAMS)
    expected = optimizer.update(GRADIENT, state, PARAMS)
    for name in ("value", "name", "step", "grad", "loss", "epoch"):
        try:
            chex.assert_trees_all_equal(optimizer.update(GRADIENT, state, PARAMS, **{name: 3}), expected)
        except Exception as failure:
            failure.add_note(f"extra argument: {name}")
            raise


def test_a_schedule_may_call_its_step_an_epoch():
    """A schedule gets the step by position, whatever the name, even if the training loop passes an epoch."""
    optimizer = sgd(lambda epoch: 1 / (1 + epoch.astype(float)))
    _, state = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS, epoch=9)
    assert state.learning_rate == 1.0


def test_optax_reduce_on_plateau_in_our_chain():
    with jax.numpy_dtype_promotion("standard"):
        optimizer = chain(sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
        state = optimizer.init(PARAMS)
        for _ in range(3):
            updates, state = optimizer.update(GRADIENT, state, PARAMS, value=jnp.float32(1.0))
    assert optax.tree.get(state, "scale") < 1
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -g * optax.tree.get(state, "scale"), GRADIENT))


# --- trees -------------------------------------------------------------------------------------------


# One equation without moments, one with two, and the parameters in both.
FEW = ("sgd", "adamw", "classic_adam")
FEW_FIRST = [
    pytest.param(optimizer, id=name, marks=[pytest.mark.slow] * (name not in FEW))
    for name, optimizer in OPTIMIZERS.items()
]


@each_tree
@pytest.mark.parametrize("optimizer", FEW_FIRST)
def test_any_tree_is_its_leaves(optimizer, params):
    """Each leaf of any tree is updated as it would be alone."""
    g = jax.tree.map(lambda p: np.cos(np.asarray(p)), params)
    updates, state, stepped = step(optimizer, g, optimizer.init(params), params)
    chex.assert_trees_all_equal_structs(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(stepped, params)
    for leaf, gradient, update in zip(*map(jax.tree.leaves, (params, g, updates)), strict=True):
        chex.assert_trees_all_equal(step(optimizer, gradient, optimizer.init(leaf), leaf)[0], update)
    for moment in state[2:]:
        chex.assert_trees_all_equal_shapes(moment, params)


@each_tree
@each(OPTIMIZERS)
def test_abstract_init(optimizer, params):
    """`jax.eval_shape` sees the state's shapes; parameters may also be shapes themselves."""
    state = optimizer.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(optimizer.init, params), state)
    abstract = jax.eval_shape(lambda: params)
    chex.assert_trees_all_equal(optimizer.init(abstract), state)


@each_tree
def test_apply_updates_adds(params):
    moved = apply_updates(params, jax.tree.map(lambda p: 2 * p, params))
    chex.assert_trees_all_equal(moved, jax.tree.map(lambda p: 3 * p, params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("update_dtype", ["bfloat16", "float16", "float32"])
def test_apply_updates_adds_in_float32_and_keeps_the_dtype(dtype, update_dtype):
    """The sum is rounded once: an update that is rounded first would be lost by rounding to even."""
    precision = float(jnp.finfo(dtype).eps)
    above_half_a_digit = precision / 2 * (1 + precision / 4)
    params, updates = jnp.array([1.0, -3.0, 200.0], dtype), jnp.array([above_half_a_digit, 1.7e-3, 0.51], update_dtype)
    moved = apply_updates([params], [updates])[0]
    chex.assert_type(moved, jnp.dtype(dtype))
    exact = np.float64(params) + np.float64(updates)
    chex.assert_trees_all_equal(moved, jnp.asarray(np.float32(exact)).astype(dtype))


# --- the compiled step -------------------------------------------------------------------------------

SMALLEST = 500  # elements: smaller arrays may be copied


DONATED = OPTIMIZERS | {"scheduled adam": adam(power_law_decay(0.1))}
IN_PLACE = [
    pytest.param(
        optimizer,
        arrange,
        dtype,
        id=f"{name}, {kind}, {dtype}",
        marks=[pytest.mark.slow]
        * ((kind == "packed" and dtype == "float32") or (kind == "tree" and dtype == "bfloat16")),
    )
    for name, optimizer in DONATED.items()
    for kind, arrange in (("tree", lambda tree: tree), ("packed", pack))
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("optimizer", "arrange", "dtype"), IN_PLACE)
def test_a_donated_step_moves_nothing_it_need_not(optimizer, arrange, dtype):
    """Parameters and moments are updated in place, without a copy or another buffer."""
    shapes = {"layers": [{"loc": (784,)}, {"loc": (500,)}], "weights": [{"matrix": (784, 500)}]}
    params = jax.eval_shape(lambda: arrange(shaped(shapes, partial(jnp.zeros, dtype=dtype))))

    def donated_step(params, state, gradients):
        _, state, params = step(optimizer, gradients, state, params)
        return params, state  # in the order of the arguments, so that each output reuses the buffer of its argument

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(donated_step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory = compiled.memory_analysis()
    assert memory
    large = [x for x in jax.tree.leaves((params, state)) if x.size >= SMALLEST]
    assert memory.alias_size_in_bytes >= sum(x.size * x.dtype.itemsize for x in large)
    assert memory.temp_size_in_bytes < 4096  # scalars, which a GPU aligns to 256 bytes each; the matrix is far larger
    assert largest_copy(compiled.as_text()) < SMALLEST


def largest_copy(hlo):
    """The number of elements of the largest array that is copied anywhere in a program."""
    copies = re.findall(r"= \w+\[([\d,]*)\]\S* copy(?:-start)?\(", hlo)
    return max((math.prod(map(int, filter(None, c.split(",")))) for c in copies), default=0)


def test_largest_copy_sees_a_copy():
    transposed = jax.jit(lambda x: (x, x)).lower(jnp.zeros((30, 40))).compile().as_text()
    assert largest_copy(transposed) == 1200


PLATFORMS = ("cpu", "cuda", "tpu")
LONG_CHAIN = chain(adam(warmup(per_epoch(power_law_decay(0.1)), 5), weight_decay=0.1), adam(0.1))


@pytest.mark.slow_unless("momentum", "classic_rmsprop", "chain")
@each(OPTIMIZERS | {"chain": LONG_CHAIN})
def test_a_step_is_exported_for_every_platform(optimizer):
    """And the exported one computes the same."""
    params = {"float32": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "bfloat16": jnp.linspace(-1, 2, 3, dtype="bfloat16")}

    @jax.jit
    def one_step(*args):
        return step(*args, epoch=jnp.int32(3))

    args = optimizer, params, optimizer.init(params), params
    exported = jax.export.export(one_step, platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS

    def check(actual, expected):
        precision = jnp.finfo(actual.dtype).eps if jnp.issubdtype(actual.dtype, jnp.floating) else 0
        np.testing.assert_allclose(np.float64(actual), np.float64(expected), rtol=2 * float(precision))

    jax.tree.map(check, exported.call(*args), one_step(*args))


# --- errors ------------------------------------------------------------------------------------------


def changed(path, value):
    """PARAMS with another leaf at the path."""
    return jax.tree_util.tree_map_with_path(lambda p, x: value if jax.tree_util.keystr(p) == path else x, PARAMS)


LOC = r"\['layers'\]\[1\]\['loc'\]"
WRONG_TREES = {
    "shape": (
        changed("['layers'][1]['loc']", jnp.ones(4)),
        ValueError,
        rf"updates{LOC}: expected shape \(3,\).*\(4,\)",
    ),
    "missing leaf": ({**PARAMS, "layers": PARAMS["layers"][:1]}, ValueError, rf"updates{LOC}: missing.*\(3,\)"),
    "none": (changed("['layers'][1]['loc']", None), ValueError, rf"updates{LOC}: missing"),
    "unexpected leaf": ({**PARAMS, "more": jnp.ones(2)}, ValueError, r"updates\['more'\]: unexpected"),
    "other nodes": (
        {**PARAMS, "weights": tuple(PARAMS["weights"])},
        ValueError,
        "updates: expected the tree structure",
    ),
    "integers": (changed("['layers'][1]['loc']", jnp.ones(3, int)), TypeError, rf"updates{LOC}: .*floating.*int32"),
    "complex": (
        changed("['layers'][1]['loc']", jnp.ones(3, complex)),
        TypeError,
        rf"updates{LOC}: complex64 cannot be added to float32, as params is",
    ),
    "booleans": (changed("['layers'][1]['loc']", jnp.ones(3, bool)), TypeError, rf"updates{LOC}: .*floating.*bool"),
}


@each(OPTIMIZERS | {"composite": COMPOSITE})
def test_a_wrong_gradient_is_named(optimizer):
    state = optimizer.init(PARAMS)
    for name, (wrong, error, message) in WRONG_TREES.items():
        for way, update in (("no jit", optimizer.update), ("jit", jax.jit(optimizer.update))):
            with refused(f"{name}, {way}", error, message):
                update(wrong, state, PARAMS)


@each(
    {name: optimizer for name, optimizer in OPTIMIZERS.items() if len(optimizer.init(PARAMS)) > 2 and name != "adamw"}
)
def test_a_gradient_is_held_against_the_state_without_parameters(optimizer):
    wrong, error, message = WRONG_TREES["shape"]
    with pytest.raises(error, match=message):
        optimizer.update(wrong, optimizer.init(PARAMS))


@each(OPTIMIZERS)
def test_parameters_that_cannot_move_are_named(optimizer):
    message = rf"params{LOC}: expected a floating or complex dtype.*`freeze` keeps it out"
    for dtype in (int, bool):
        with refused(dtype, TypeError, message):
            optimizer.init(changed("['layers'][1]['loc']", jnp.ones(3, dtype)))


@pytest.mark.parametrize(
    ("optimizer", "other"), [(sgd(0.1), adam(0.1)), (adam(0.1), sgd(0.1)), (rmsprop(0.1), momentum(0.1))]
)
def test_the_state_of_another_optimizer_is_refused(optimizer, other):
    """Even if the shapes fit: a mean is not a mean square."""
    with pytest.raises((TypeError, ValueError), match="state"):
        optimizer.update(GRADIENT, other.init(PARAMS), PARAMS)


def center_of_two():
    return pj.center(connections=[("weights/0/matrix", "layers/0/loc", "layers/1/loc")])


STATEFUL = {
    "optimizer": sgd(0.1),
    "chain": chain(sgd(0.1)),
    "clip_by_global_norm": pj.clip_by_global_norm(1.0),
    "add_decayed_weights": pj.add_decayed_weights(0.1),
    "add_l1_decay": pj.add_l1_decay(0.1, lambda path: "loc" in path),
    "project": pj.project(pj.unit_column_norm),
    "average_parameters": pj.average_parameters(),
    "skip_nonfinite": pj.skip_nonfinite(adam(0.1)),
    "freeze": pj.freeze(adam(0.1), lambda path: "loc" in path),
    "pack_moments": pj.packing.pack_moments(adam(0.1)),
    "track_convergence": pj.track_convergence(1.0),
    "center": center_of_two(),
}


@each(STATEFUL)
def test_a_wrong_state_is_refused_by_name(optimizer):
    """The tree that orbax returns without a target, and states of another optimizer or of other parameters."""
    statistics = pj.states.PhaseStatistics(0.0, 0.0, PARAMS, PARAMS)
    message = r"\w+: expected .*(state|a tuple)|updates.*: missing|the state has"
    for wrong in (None, {"step": 0}, [], adam(0.1).init(PARAMS["layers"]), ((), ())):
        with refused(wrong, (TypeError, ValueError), message):
            optimizer.update(GRADIENT, wrong, PARAMS, statistics=statistics)


def test_the_average_of_other_parameters_is_refused():
    average = pj.average_parameters()
    with pytest.raises(ValueError, match=rf"params{LOC}: expected shape \(2,\) as in the average"):
        average.update(GRADIENT, average.init(changed("['layers'][1]['loc']", jnp.ones(2))), PARAMS)


LAST = pj.track_convergence(1.0)
AVERAGE = pj.average_parameters()
PROJECTION = pj.project(pj.non_negative)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [AVERAGE, sgd(0.1)],
            "sgd comes after average_parameters; average_parameters belongs after all members that change the updates",
        ),
        ([AVERAGE, optax.sgd(0.1)], "GradientTransformationExtraArgs comes after average_parameters"),
        ([sgd(0.1), LAST, PROJECTION], "project comes after track_convergence; track_convergence belongs last"),
        ([chain(sgd(0.1), LAST), pj.clip_by_global_norm(1.0)], "track_convergence belongs last"),
        (
            [pj.skip_nonfinite(chain(sgd(0.1), AVERAGE)), optax.identity()],
            "average_parameters belongs after all members that change the updates",
        ),
        (
            [sgd(0.1), LAST, AVERAGE],
            "average_parameters comes after track_convergence; track_convergence belongs last",
        ),
        ([PROJECTION, sgd(0.1)], "sgd comes after project; project belongs after all members that change the updates"),
        ([sgd(0.1), PROJECTION, optax.scale(0.5)], "project belongs after all members that change the updates"),
        ([adam(0.1), pj.add_decayed_weights(0.1)], "add_decayed_weights comes after adam; .* belongs before it"),
        ([adam(0.1), pj.add_l1_decay(0.1)], "add_l1_decay belongs before it"),
        ([adam(0.1), center_of_two()], "center belongs before it"),
    ],
)
def test_a_wrong_order_is_found_when_the_chain_is_made(members, message):
    with pytest.raises(ValueError, match=f"chain: .*{message}"):
        chain(*members)


def test_any_sensible_order_is_taken():
    before = (center_of_two(), pj.clip_by_global_norm(1.0), pj.add_decayed_weights(0.1), optax.clip(1.0))
    after = (optax.scale(0.5), pj.clip_by_global_norm(1.0), PROJECTION, AVERAGE, AVERAGE, LAST, LAST)
    chain(*before, sgd(0.1), adam(0.1), *after)
    chain(*before, pj.freeze(chain(adam(0.1), PROJECTION), lambda path: True), AVERAGE)
    chain(optax.scale_by_adam(), pj.add_decayed_weights(0.1), optax.scale(-0.1))
    chain(LAST)


def test_integers_without_an_update_stay_unchanged():
    """jax.grad gives float0 for integers; `freeze` gives zeros, and its optimizer does not see them."""

    def loss(params):
        return jnp.sum(params["w"] ** 2) * params["n"].astype(float)

    params = {"w": jnp.ones(2), "n": jnp.int32(3)}

    @jax.jit
    def trained(params):
        gradient = jax.grad(loss, allow_int=True)(params)
        assert gradient["n"].dtype == jax.dtypes.float0
        optimizer = chain(pj.clip_by_global_norm(1.0), pj.freeze(adam(0.5), lambda path: path == "n"), AVERAGE, LAST)
        updates, state, _ = step(optimizer, gradient, optimizer.init(params), params)
        return apply_updates(params, updates), apply_updates(params, gradient), pj.averaged_parameters(state)

    moved, by_gradient, average = trained(params)
    chex.assert_trees_all_close(moved, {"w": jnp.full(2, 0.5), "n": jnp.int32(3)}, rtol=1e-6)
    chex.assert_trees_all_equal(by_gradient, {"w": jnp.full(2, 7.0), "n": jnp.int32(3)})
    chex.assert_trees_all_close(average, moved, rtol=1e-6)
    chex.assert_trees_all_equal(apply_updates(jnp.arange(3), jnp.arange(3)), 2 * jnp.arange(3))


@pytest.mark.parametrize(
    ("param", "update"), [(jnp.int32(1), jnp.float32(0.5)), (jnp.float32(1), jnp.complex64(1j)), (True, 1j)]
)
def test_an_update_that_would_lose_something_is_named(param, update):
    with pytest.raises(TypeError, match=r"updates\['a'\]: .* cannot be added to .*, as params is"):
        apply_updates({"a": param}, {"a": update})


@pytest.mark.parametrize("state_of", [momentum(0.1), adam(0.1)])
def test_a_complex_gradient_for_real_moments_is_named(state_of):
    complex_gradient = jax.tree.map(lambda g: g.astype("complex64"), GRADIENT)
    with pytest.raises(TypeError, match=r"updates\['layers'\].*complex64 cannot be added to float32, as the state is"):
        state_of.update(complex_gradient, state_of.init(PARAMS))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: chain(adam), TypeError, "got the class adam: call it"),
        (lambda: chain(optax.adam), TypeError, "got <function adam at .*>: call it"),
        (lambda: chain(pj.ADAM), TypeError, r"ADAM is a class: use paysage_jax.classic.adam\(...\)"),
        (lambda: chain(pj.ADAM(None)), TypeError, r"use paysage_jax.classic.adam\(...\)"),
        (lambda: apply_updates(PARAMS, WRONG_TREES["shape"][0]), ValueError, rf"updates{LOC}: expected shape"),
        (lambda: apply_updates(PARAMS, WRONG_TREES["none"][0]), ValueError, rf"updates{LOC}: missing"),
        (lambda: chain(sgd(0.1), 0.5), TypeError, "init and update, got 0.5"),
        (
            lambda: chain(sgd(0.1)).update(GRADIENT, (), PARAMS),
            ValueError,
            "chain: expected a state of 1 members, got 0",
        ),
        (
            lambda: chain(sgd(0.1)).update(GRADIENT, 2 * chain(sgd(0.1)).init(PARAMS), PARAMS),
            ValueError,
            "chain: expected a state of 1 members, got 2",
        ),
    ],
)
def test_mistakes_are_named(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_members_of_a_chain_do_not_check_the_trees_again(monkeypatch):
    checked = []
    monkeypatch.setattr(transformation, "check_same_tree", lambda *arguments: checked.append(arguments))
    optimizer = chain(chain(add_decayed_weights(0.1), Multiply(2.0)), skip_nonfinite(chain(momentum(0.1), Multiply())))
    optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert len(checked) == 1
