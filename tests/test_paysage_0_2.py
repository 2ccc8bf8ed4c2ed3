"""The API of paysage 0.1 to 0.2.1: recorded numbers, interface, array types, kept quirks and fixed defects."""

import copy
import functools
import inspect
import itertools
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chex
import digits
import jax
import jax.numpy as jnp
import migrate_from_paysage
import numpy as np
import pytest

import paysage_jax as pj
from paysage_jax import classic
from paysage_jax import optimizers as documented
from paysage_jax.paysage_0_2 import gradient_util as gu
from paysage_jax.paysage_0_2 import optimizers, schedules

FOLDER = Path(__file__).parent / "golden_0_2"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
RECORDED = dict(np.load(FOLDER / "recorded.npz"))
CLASSES = {"Gradient": "sgd", "Momentum": "momentum", "RMSProp": "rmsprop", "ADAM": "adam"}
each_class = pytest.mark.parametrize("cls", [getattr(optimizers, name) for name in CLASSES])
each_with_moments = pytest.mark.parametrize("cls", [optimizers.Momentum, optimizers.RMSProp, optimizers.ADAM])
each_kind = pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])


class Visible(NamedTuple):
    loc: object
    log_var: object


class Hidden(NamedTuple):
    loc: object


class Weights(NamedTuple):
    matrix: object


class Model:
    """The interface of a model that an optimizer uses."""

    def parameter_update(self, delta):
        self.delta = delta


def gradient(seed=0, array=np.array, dtype=np.float32):
    """A gradient of a small Boltzmann machine in the original's form."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return array(rng.normal(size=shape), dtype)

    layers = [[Visible(draw(4), draw(4))], [Hidden(draw(3))]]
    return gu.Gradient(layers, [[Weights(draw(4, 3))]])


def updated(optimizer, *gradients):
    optimizer.update_lr()
    for g in gradients:
        optimizer.update(Model(), g)
    return optimizer


def scaled(g, factor):
    return jax.tree.map(lambda x: x * np.asarray(factor, x.dtype), g)


G = gradient()

# --- the recorded numbers ----------------------------------------------------------------------------


def recorded_gradient(key, what, t, array=np.array):
    """The tree of one step, in the original's form."""

    def leaf(*path):
        return array(RECORDED["/".join([key, what, *path])][t])

    layers = [
        [Visible(leaf("layers/0/0/loc"), leaf("layers/0/0/log_var"))],
        [Hidden(leaf("layers/1/0/loc"))],
        [Hidden(leaf("layers/2/0/loc"))],
    ]
    return gu.Gradient(layers, [[Weights(leaf(f"weights/{i}/0/matrix"))] for i in range(2)])


def assert_close(actual, expected, tolerance):
    """Within the tolerance times the largest element of each leaf."""

    def check(a, e):
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())

    jax.tree.map(check, actual, expected)


# NumPy replays every recording; JAX one of each optimizer and schedule, and all of them in the slow tests.
FIRST = {(case["optimizer"], case["schedule_class"]): case["key"] for case in reversed(MANIFEST["cases"])}
REPLAYED = [pytest.param(case, np.array, id=f"{case['key']}-numpy") for case in MANIFEST["cases"]] + [
    pytest.param(
        case, jnp.array, id=f"{case['key']}-jax", marks=[pytest.mark.slow] * (case["key"] not in FIRST.values())
    )
    for case in MANIFEST["cases"]
]


@pytest.mark.parametrize(("case", "array"), REPLAYED)
def test_recorded_run(case, array):
    key, tolerance = case["key"], case["tolerance"]
    schedule = schedules.schedule_from_config([case["schedule_class"], case["schedule_config"]])
    optimizer = getattr(optimizers, case["optimizer"])(stepsize=schedule, tolerance=tolerance, **case["kwargs"])
    for t in range(case["steps"]):
        if t % case["update_lr_every"] == 0:
            optimizer.update_lr()
        if t == case["reset_at"]:
            optimizer.reset()
        model, grad = Model(), recorded_gradient(key, "grad", t, array)
        optimizer.update(model, grad)

        assert model.delta is optimizer.delta
        assert_close(optimizer.delta, recorded_gradient(key, "delta", t), 1e-5)
        assert optimizer.lr_.args[0] == np.float32(RECORDED[f"{key}/lr"][t])
        rms = RECORDED[f"{key}/rms"][t]
        assert gu.grad_rms(optimizer.delta) == pytest.approx(rms, rel=1e-5)
        if abs(rms - tolerance) > 1e-5 * tolerance:
            assert optimizer.check_convergence() is bool(RECORDED[f"{key}/flag"][t])
        chex.assert_trees_all_equal(grad, recorded_gradient(key, "grad", t))


def values(schedule, n):
    return [float(next(schedule)) for _ in range(n)]


@pytest.mark.parametrize("case", MANIFEST["schedules"], ids=lambda case: f"{case['schedule']}-{case['kwargs']}")
def test_recorded_schedule(case):
    schedule = getattr(schedules, case["schedule"])(**case["kwargs"])
    assert values(schedule, 8) == case["first_8"]
    twin = schedule.copy()
    if "TypeError" not in case["copy_then_3"]:
        assert values(twin, 3) == case["copy_then_3"]
    schedule.set_value(0.25)
    assert values(schedule, 3) == case["set_value_025_then_3"]
    schedule.reset()
    assert values(schedule, 3) == case["reset_then_3"]


# --- the interface -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "original",
    [
        "optimizers.Optimizer(stepsize=Constant(0.001), tolerance=1e-7, ascent=False)",
        "optimizers.Gradient(stepsize=Constant(0.001), tolerance=1e-7, ascent=False)",
        "optimizers.Momentum(stepsize=Constant(0.001), momentum=0.9, tolerance=1e-7, ascent=False)",
        "optimizers.RMSProp(stepsize=Constant(0.001), mean_square_weight=0.9, tolerance=1e-7, ascent=False)",
        "optimizers.ADAM(stepsize=Constant(0.001), mean_weight=0.9, mean_square_weight=0.999, tolerance=1e-7, "
        "ascent=False)",
        "optimizers.ADAM.update(self, model, grad)",
        "optimizers.ADAM.update_lr(self)",
        "optimizers.ADAM.reset(self)",
        "optimizers.ADAM.check_convergence(self)",
        "optimizers.GradientMemory(mean_weight=0.9, mean_square_weight=0.0)",
        "optimizers.GradientMemory.update(self, grad)",
        "optimizers.GradientMemory.update_mean(self, grad)",
        "optimizers.GradientMemory.update_mean_square(self, grad)",
        "optimizers.GradientMemory.normalize(self, grad, unbiased=False)",
        "optimizers.GradientMemory.reset(self)",
        "schedules.schedule_from_config(config)",
        "schedules.Constant(initial=1.0, value=None)",
        "schedules.Linear(initial=1.0, delta=0.0, value=None, minval=0.0, maxval=1.0)",
        "schedules.Step(initial=1.0, final=0.0, steps=1, value=None)",
        "schedules.ExponentialDecay(initial=1.0, coefficient=0.9, value=None)",
        "schedules.PowerLawDecay(initial=1.0, coefficient=0.9, value=None)",
        "schedules.Schedule.get_config(self)",
        "schedules.Schedule.copy(self)",
        "schedules.Step.set_value(self, value)",
        "gu.Gradient(layers, weights)",
        "gu.null_grad(model)",
        "gu.zero_grad(model)",
        "gu.random_grad(model)",
        "gu.grad_accumulate(func, grad)",
        "gu.grad_apply(func, grad)",
        "gu.grad_apply_(func_, grad)",
        "gu.grad_mapzip(func, grad1, grad2)",
        "gu.grad_mapzip_(func_, grad1, grad2)",
        "gu.grad_norm(grad)",
        "gu.grad_normalize_(grad)",
        "gu.grad_rms(grad)",
        "gu.grad_magnitude(grad)",
        "gu.grad_flatten(grad)",
    ],
)
def test_signature_is_that_of_the_original(original):
    def described(function):
        # A schedule is compared by its type and numbers; the original has no arguments after `*`.
        return [
            (p.name, (type(p.default), vars(p.default)) if hasattr(p.default, "reset") else p.default)
            for p in inspect.signature(function).parameters.values()
            if p.kind is not p.KEYWORD_ONLY
        ]

    path, arguments = original.removesuffix(")").split("(", 1)
    actual = functools.reduce(getattr, path.split(".")[1:], globals()[path.split(".")[0]])
    assert described(actual) == described(eval(f"lambda {arguments}: None", vars(schedules)))


def test_aliases():
    assert optimizers.gradient is optimizers.Gradient
    assert optimizers.momentum is optimizers.Momentum
    assert optimizers.rmsprop is optimizers.RMSProp
    assert optimizers.adam is optimizers.ADAM


@pytest.mark.parametrize(("name", "function"), CLASSES.items())
def test_where_a_pair_is_expected_the_error_names_it(name, function):
    cls = getattr(optimizers, name)
    assert hasattr(classic, function)
    for given in (cls, cls()):
        with pytest.raises(TypeError, match=rf"{name} is a class: use paysage_jax\.classic\.{function}\("):
            pj.chain(given)


def test_attributes_of_a_fresh_optimizer():
    stepsize = schedules.Constant(0.1)
    optimizer = optimizers.ADAM(stepsize, 0.8, 0.99, 1e-3)
    assert (optimizer.stepsize, optimizer.tolerance, optimizer.delta) == (stepsize, 1e-3, {})
    assert isinstance(optimizer.memory, optimizers.GradientMemory)
    assert (optimizer.memory.mean_weight, optimizer.memory.mean_square_weight) == (0.8, 0.99)
    assert optimizer.memory.mean_gradient is optimizer.memory.mean_square_gradient is None


def test_lr_multiplies_in_place_by_the_current_rate():
    optimizer = optimizers.Momentum(schedules.ExponentialDecay(0.5, 0.5))
    rates = []
    for _ in range(3):
        optimizer.update_lr()
        x = np.ones(2, np.float32)
        assert optimizer.lr_(x) is None
        rates.append(x[0])
        assert optimizer.lr_.args == (x[0],)
    assert rates == [0.5, 0.25, 0.125]


@each_class
def test_ascent_turns_the_step_round(cls):
    down, up = updated(cls(), G, G), updated(cls(ascent=True), G, G)
    chex.assert_trees_all_equal(up.delta, scaled(down.delta, -1))


# --- the schedules -----------------------------------------------------------------------------------

SOME = {
    "Constant": {"initial": 0.3},
    "Linear": {"initial": 0.5, "delta": 0.1, "minval": 0.2},
    "Step": {"initial": 1.0, "final": 0.1, "steps": 3},
    "ExponentialDecay": {"initial": 0.2, "coefficient": 0.5},
    "PowerLawDecay": {"initial": 0.01, "coefficient": 7.0},
}
each_schedule = pytest.mark.parametrize("name", SOME)


@each_schedule
@pytest.mark.parametrize(
    "copied",
    [
        lambda s: s.copy(),
        lambda s: schedules.schedule_from_config(json.loads(json.dumps(s.get_config()))),
        lambda s: pickle.loads(pickle.dumps(s)),
    ],
    ids=["copy", "config", "pickle"],
)
@pytest.mark.parametrize("taken", [0, 3])
def test_a_copied_schedule_continues_independently(name, copied, taken):
    schedule = getattr(schedules, name)(**SOME[name])
    values(schedule, taken)
    twin, witness = copied(schedule), copied(schedule)
    ahead = values(twin, 6)
    assert ahead == values(schedule, 6)
    assert ahead == values(witness, 6)
    twin.set_value(0.7)
    assert values(twin, 1) == [np.float32(0.7)]
    assert values(schedule, 1) != [np.float32(0.7)]


def test_a_users_own_schedule_can_be_copied():
    class Halves(schedules.Schedule):
        def __init__(self, initial, note):
            self.initial = self.value = initial
            self.note = note

        def __next__(self):
            self.value /= 2
            return self.value

    schedule = Halves(1.0, note=["mine"])
    next(schedule)
    assert next(schedule.copy()) == next(schedule) == 0.25


def test_the_configuration_does_not_change_with_the_schedule():
    schedule = schedules.ExponentialDecay(1.0, 0.5)
    config = schedule.get_config()
    next(schedule)
    assert config == ["ExponentialDecay", {"initial": 1.0, "coefficient": 0.5, "value": 1.0}]


def test_values_are_float32_and_the_recursion_is_float64():
    schedule = schedules.ExponentialDecay(0.1, 0.9)
    assert type(next(schedule)) is np.float32
    for _ in range(999):
        next(schedule)
    assert next(schedule) == np.float32(0.1 * 0.9**1000)


def test_a_step_gives_out_a_value_that_was_set_once():
    schedule = schedules.Step(initial=1.0, final=0.5, steps=3)
    schedule.set_value(0.25)
    assert values(schedule, 6) == [0.25, 1, 1, 1, 1, 0.5]


def test_power_law_of_zero_stays_zero():
    assert values(schedules.PowerLawDecay(0.0, 0.1), 3) == [0, 0, 0]


@each_schedule
@pytest.mark.parametrize("wrong", ["0.1", [0.1], np.ones(1)])
def test_a_value_that_is_not_a_number_is_named(name, wrong):
    cls = getattr(schedules, name)
    with pytest.raises(TypeError, match=f"{name}: initial must be a number, got "):
        cls(initial=wrong)
    with pytest.raises(TypeError, match=f"{name}: value must be a number, got "):
        cls(value=wrong)
    with pytest.raises(TypeError, match=f"{name}: value must be a number, got "):
        cls().set_value(wrong)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *(("Linear", argument) for argument in ("delta", "minval", "maxval")),
        *(("Step", argument) for argument in ("final", "steps")),
        ("ExponentialDecay", "coefficient"),
        ("PowerLawDecay", "coefficient"),
    ],
)
def test_a_wrong_argument_of_a_schedule_is_named(name, argument):
    with pytest.raises(TypeError, match=f"{name}: {argument} must be a number, got 'x'"):
        getattr(schedules, name)(**{argument: "x"})


def test_an_unknown_schedule_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no schedule 'Cosine', expected one of Constant, Linear, Step"):
        schedules.schedule_from_config(["Cosine", {}])


# --- the gradient utilities --------------------------------------------------------------------------


class Part:
    """A layer or the weights of a model of paysage."""

    def __init__(self, kind, *shapes):
        self.make = lambda draw: [kind(*map(draw, shapes))]

    def zero_derivatives(self):
        return self.make(np.zeros)

    def random_derivatives(self):
        return self.make(np.random.default_rng(0).random)


def test_gradients_of_a_model():
    layers, weights = [Part(Visible, 4, 4), Part(Hidden, 3)], Part(Weights, (4, 3))
    for model in (
        SimpleNamespace(layers=layers, connections=[SimpleNamespace(weights=weights)]),
        SimpleNamespace(layers=layers, weights=[weights]),  # 0.1
    ):
        assert gu.null_grad(model) == gu.Gradient([[], []], [[]])
        for made in (gu.zero_grad(model), gu.random_grad(model)):
            chex.assert_trees_all_equal_shapes(made, G)
        chex.assert_trees_all_equal(gu.zero_grad(model), scaled(gradient(dtype=np.float64), 0))
        assert gu.grad_flatten(gu.random_grad(model)).min() > 0


@each_kind
def test_apply_and_mapzip(array):
    g, h = gradient(1, array), gradient(2, array)
    assert isinstance(gu.grad_apply(abs, g), gu.Gradient)
    np.testing.assert_array_equal(gu.grad_apply(lambda x: 2 * x, g).weights[0][0].matrix, 2 * g.weights[0][0].matrix)
    difference = gu.grad_mapzip(lambda x, y: x - y, g, h)
    np.testing.assert_array_equal(difference.layers[0][0].log_var, g.layers[0][0].log_var - h.layers[0][0].log_var)
    assert gu.grad_accumulate(np.size, g) == 4 + 4 + 3 + 12


def test_in_place():
    def double_(x):
        x *= 2

    def subtract_(x, y):
        x -= y

    g, h = gradient(1), gradient(2)
    same = g.weights[0][0].matrix
    assert gu.grad_apply_(double_, g) is None
    assert gu.grad_mapzip_(subtract_, g, h) is None
    assert g.weights[0][0].matrix is same
    expected = jax.tree.map(lambda x, y: 2 * x - y, gradient(1), h)
    chex.assert_trees_all_equal(g, expected)
    chex.assert_trees_all_equal(h, gradient(2))
    gu.grad_normalize_(g)
    assert gu.grad_norm(g) == pytest.approx(1, rel=1e-6)
    chex.assert_trees_all_close(scaled(g, gu.grad_norm(expected)), expected, rtol=1e-6)


def test_in_place_of_what_cannot_be_changed():
    for function in (gu.grad_apply_, gu.grad_mapzip_):
        arguments = [gradient(array=jnp.array)] * (2 if function is gu.grad_mapzip_ else 1)
        name = function.__name__
        with pytest.raises(TypeError, match=rf"{name}: grad\.layers\[0\]\[0\]\.loc .*use {name[:-1]}$"):
            function(abs, *arguments)
    with pytest.raises(ZeroDivisionError, match="grad_normalize_: the gradient is zero"):
        gu.grad_normalize_(scaled(G, 0))


@each_kind
@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_norm_and_rms_in_every_range(array, factor):
    """In float64 by hand: an array of (3, 4) beside one of four ones in the first layer, and zeros."""
    g = gu.Gradient(
        [[Visible(array([3.0, 4.0], np.float32), array([1.0] * 4, np.float32))], []], [[Weights(array([[0.0]]))]]
    )
    g = scaled(g, factor)
    assert gu.grad_norm(g) == pytest.approx(factor * np.sqrt(29), rel=1e-6)
    assert gu.grad_rms(g) == pytest.approx(factor * np.sqrt((12.5 + 1) / 3), rel=1e-6)


def test_rms_counts_two_levels_down():
    ones = np.ones(3, np.float32)
    pair = {"loc": ones, "log_var": ones}
    for tree, expected in (
        ({"layers": [pair, pair], "weights": [{"matrix": ones}]}, 5 / 3),
        ({"layers": [pair, {}], "weights": []}, 2 / 2),
        ({"a": ones, "b": ones}, 2 / 2),
        ({"dense": pair, "out": pair}, 4 / 4),
        (ones, 1),
        ([ones, np.ones((0, 2), np.float32)], 1 / 2),
    ):
        assert gu.grad_rms(tree) == pytest.approx(np.sqrt(expected))
    with pytest.raises(ZeroDivisionError, match="no layers and no weights"):
        gu.grad_rms(gu.Gradient([], []))


def test_rms_of_half_precision_is_summed_in_single():
    assert gu.grad_rms([jnp.ones(3000, jnp.bfloat16)]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("array", "kind"), [(np.array, np.ndarray), (jnp.array, jax.Array)])
def test_flatten(array, kind):
    g = gradient(1, array)
    flat = gu.grad_flatten(g)
    assert isinstance(flat, kind)
    (visible,), (hidden,) = g.layers
    parts = [visible.loc, visible.log_var, hidden.loc, g.weights[0][0].matrix]
    np.testing.assert_array_equal(flat, np.concatenate([np.ravel(x) for x in parts]))
    with pytest.raises(ValueError, match="no arrays"):
        gu.grad_flatten(gu.Gradient([], []))


def test_mapzip_of_different_trees_names_the_leaf():
    fewer = gu.Gradient(G.layers[:1], G.weights)
    with pytest.raises(ValueError, match=r"grad_mapzip: grad1\.layers\[1\]\[0\]\.loc is missing in grad2"):
        gu.grad_mapzip(np.add, G, fewer)
    with pytest.raises(ValueError, match=r"grad_mapzip_: grad2\.layers\[1\]\[0\]\.loc is missing in grad1"):
        gu.grad_mapzip_(np.add, fewer, G)
    with pytest.raises(ValueError, match="grad1 and grad2 are"):
        gu.grad_mapzip(np.add, G, gu.Gradient(G.layers, tuple(G.weights)))


# --- array kinds and safety --------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_in_writable_numpy_out(cls, dtype):
    optimizer, reference, g = cls(), cls(), gradient(dtype=dtype)
    for _ in range(2):
        updated(optimizer, g)
        updated(reference, gradient(dtype=np.float64))
        precision = max(np.finfo(dtype).eps, np.finfo(np.float32).eps)
        assert_close(optimizer.delta, reference.delta, 4 * precision)
        for leaf in jax.tree.leaves(optimizer.delta):
            assert type(leaf) is np.ndarray
            assert leaf.dtype == dtype
            leaf[:] = 0  # It is not part of the optimizer's state: the next step is compared again.
    chex.assert_trees_all_equal(g, gradient(dtype=dtype))


@each_class
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_jax_in_jax_out(cls, dtype):
    g = gradient(array=jnp.array, dtype=dtype)
    optimizer = updated(cls(), g, g)
    assert isinstance(optimizer.delta, gu.Gradient)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(optimizer.delta))
    chex.assert_trees_all_equal_dtypes(optimizer.delta, g)


@each_class
@each_kind
@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: {"layers": [{"loc": x}], "weights": []}, lambda x: [x, (x, None)]]
)
def test_any_tree_is_a_gradient(cls, array, form):
    x = array([1.0, -2.0], np.float32)
    optimizer = updated(cls(tolerance=1.0), form(x), form(x))
    alone = updated(cls(), [x], [x]).delta[0]
    chex.assert_trees_all_close(optimizer.delta, form(alone), rtol=1e-6)
    assert optimizer.check_convergence() is True


@each_class
def test_the_default_schedule_is_not_shared(cls):
    first, second = cls(), cls()
    first.stepsize.set_value(0.5)
    assert next(second.stepsize) == next(cls().stepsize) == np.float32(0.001)


@each_class
def test_a_given_schedule_is_advanced(cls):
    schedule = schedules.ExponentialDecay(1.0, 0.5)
    first, second = cls(schedule), cls(schedule)
    assert first.stepsize is schedule
    first.update_lr()
    second.update_lr()
    assert (first.lr_.args[0], second.lr_.args[0], next(schedule)) == (1, 0.5, 0.25)


@each_class
def test_any_iterator_of_numbers_is_a_schedule(cls):
    optimizer = cls(itertools.chain([0.5, jnp.float32(0.25)], itertools.repeat(2)))
    rates = []
    for _ in range(3):
        optimizer.update_lr()
        rates.append(optimizer.lr_.args[0])
    assert rates == [0.5, 0.25, 2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@each_class
@each_kind
def test_a_copy_in_mid_run_continues_identically(cls, copied, array):
    optimizer = updated(cls(schedules.PowerLawDecay(0.1, 5.0)), gradient(1, array), gradient(2, array))
    twin = copied(optimizer)
    for o in (optimizer, twin):
        updated(o, gradient(3, array), gradient(4, array))
    chex.assert_trees_all_equal(twin.delta, optimizer.delta)
    assert twin.lr_.args == optimizer.lr_.args
    assert next(twin.stepsize) == next(optimizer.stepsize)


# --- memory and reset --------------------------------------------------------------------------------


@each_kind
def test_the_memory_shows_the_running_means(array):
    optimizer = optimizers.ADAM(mean_weight=0.5, mean_square_weight=0.75)
    optimizer.update_lr()
    own = optimizers.GradientMemory(0.5, 0.75)
    seen = []
    for seed in range(4):
        g = gradient(seed, array)
        optimizer.update(Model(), g)
        own.update(g)
        seen.append((optimizer.memory.mean_gradient, own.mean_gradient))
        seen.append((optimizer.memory.mean_square_gradient, own.mean_square_gradient))
        delta = scaled(own.normalize(own.mean_gradient, unbiased=True), 0.001)
        chex.assert_trees_all_close(optimizer.delta, delta, rtol=1e-5)
        same = optimizer.memory.normalize(g)
        chex.assert_trees_all_close(same, own.normalize(g), rtol=1e-5)
    for actual, expected in seen:  # at the end, because returned arrays must survive later steps
        chex.assert_trees_all_close(actual, expected, rtol=1e-5)
        assert [type(x) for x in jax.tree.leaves(actual)] == [type(x) for x in jax.tree.leaves(g)]


@each_with_moments
def test_the_memory_handed_out_is_a_copy(cls):
    optimizer, undisturbed = updated(cls(), G), updated(cls(), G)
    for tree in (optimizer.memory.mean_gradient, optimizer.memory.mean_square_gradient):
        for leaf in jax.tree.leaves(tree):
            leaf[:] = 7
    chex.assert_trees_all_equal(updated(optimizer, G).delta, updated(undisturbed, G).delta)


def test_a_mean_of_weight_zero_is_not_kept():
    kept = {"Gradient": (False, False), "Momentum": (True, False), "RMSProp": (False, True), "ADAM": (True, True)}
    for name, expected in kept.items():
        memory = updated(getattr(optimizers, name)(), G).memory
        assert (memory.mean_gradient is not None, memory.mean_square_gradient is not None) == expected
    memory = updated(optimizers.ADAM(mean_weight=0, mean_square_weight=0), G).memory
    assert memory.mean_gradient is memory.mean_square_gradient is None


def test_the_memory_of_an_optimizer_is_not_updated_by_hand():
    memory = optimizers.ADAM().memory
    for update in (memory.update, memory.update_mean, memory.update_mean_square):
        with pytest.raises(TypeError, match="create a separate GradientMemory"):
            update(G)


def test_a_memory_of_ones_own():
    memory = optimizers.GradientMemory(0.9, 0.9)
    assert isinstance(memory, documented.GradientMemory)
    normalized = memory.normalize(G)  # as in 0.2: the identity while there is nothing to divide by
    chex.assert_trees_all_equal(normalized, G)
    assert normalized.layers[0][0].loc is not G.layers[0][0].loc
    memory.update(G)
    memory.reset()
    assert memory.mean_gradient is memory.mean_square_gradient is None
    memory.update(gradient(2))
    chex.assert_trees_all_equal(memory.mean_gradient, gradient(2))


@each_class
@each_kind
@pytest.mark.parametrize("through", ["optimizer", "memory"])
def test_after_reset_it_is_as_new_but_for_the_schedule(cls, array, through):
    optimizer = updated(cls(schedules.ExponentialDecay(1.0, 0.5)), gradient(1, array), gradient(2, array))
    last = optimizer.delta
    (optimizer if through == "optimizer" else optimizer.memory).reset()
    assert optimizer.delta is last
    fresh = cls(schedules.Constant(0.5))
    other = [jax.tree.map(lambda x: x[:2], gradient(seed, array)) for seed in (3, 4)]  # another model, as in layerwise
    chex.assert_trees_all_equal(updated(optimizer, *other).delta, updated(fresh, *other).delta)


# --- defects that are mended -------------------------------------------------------------------------


@each_kind
def test_weights_of_zero(array):
    g, rate = [gradient(seed, array) for seed in (1, 2)], 0.001
    kept = jax.tree.map(np.array, g)
    plain = scaled(g[1], rate)
    for optimizer, expected in (
        (optimizers.Momentum(momentum=0), plain),
        (optimizers.RMSProp(mean_square_weight=0), plain),
        (optimizers.ADAM(mean_weight=0, mean_square_weight=0), plain),
        (optimizers.ADAM(mean_weight=0), updated(optimizers.RMSProp(mean_square_weight=0.999), *g).delta),
        (optimizers.ADAM(mean_square_weight=0), updated(optimizers.Momentum(), *g).delta),
    ):
        chex.assert_trees_all_close(updated(optimizer, *g).delta, expected, rtol=2e-6)
    chex.assert_trees_all_equal(g, kept)


@each_class
def test_no_convergence_before_the_first_update(cls):
    assert cls(tolerance=np.inf).check_convergence() is False
    assert optimizers.Optimizer(tolerance=np.inf).check_convergence() is False


def test_converged_is_at_or_below_the_tolerance():
    for tolerance, expected in ((0.5, True), (0.499, False)):
        optimizer = updated(optimizers.Gradient(schedules.Constant(0.5), tolerance=tolerance), [np.ones(3, np.float32)])
        assert optimizer.check_convergence() is expected


@each_class
@each_kind
def test_nan_propagates_and_does_not_count_as_convergence(cls, array):
    optimizer = updated(cls(tolerance=np.inf), {"a": array([np.nan, 1.0], np.float32)})
    assert np.isnan(optimizer.delta["a"][0])
    assert np.isfinite(optimizer.delta["a"][1])
    assert optimizer.check_convergence() is False


# --- errors ------------------------------------------------------------------------------------------


@each_class
def test_update_before_update_lr_is_refused(cls):
    with pytest.raises(RuntimeError, match=rf"^{cls.__name__}: call update_lr\(\) before the first update"):
        cls().update(Model(), G)


@each_class
@pytest.mark.parametrize("stepsize", [0.1, None, schedules.Constant, lambda step: 0.1])
def test_a_stepsize_that_is_not_a_schedule_is_rejected(cls, stepsize):
    with pytest.raises(TypeError, match=rf"{cls.__name__}: stepsize must be a schedule, such as Constant\(0"):
        cls(stepsize=stepsize)


@each_class
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_rate_that_is_not_finite_is_refused(cls, value):
    optimizer = cls(schedules.Constant(0.1))
    optimizer.update_lr()
    optimizer.stepsize.set_value(value)
    with pytest.raises(ValueError, match=f"{cls.__name__}: stepsize must be finite, but its next value is {value}"):
        optimizer.update_lr()
    assert optimizer.lr_.args[0] == np.float32(0.1)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("Momentum", "momentum"),
        ("RMSProp", "mean_square_weight"),
        ("ADAM", "mean_weight"),
        ("ADAM", "mean_square_weight"),
    ],
)
def test_a_wrong_weight_is_named(name, argument):
    for wrong, error in ((1.5, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("0.9", TypeError)):
        with pytest.raises(error, match=rf"{argument} must be .*\[0, 1\]"):
            getattr(optimizers, name)(**{argument: wrong})


CHANGES = {
    "shape": (
        lambda g: gu.Gradient(g.layers, [[Weights(np.ones((4, 2), np.float32))]]),
        r"\.weights\[0\]\[0\]\.matrix.*\(4, 3\).*\(4, 2\)",
    ),
    "missing": (
        lambda g: gu.Gradient(g.layers[:1], g.weights),
        r"\.layers\[1\]\[0\]\.loc: missing; the last update \(reset\(\) forgets it\)",
    ),
    "unexpected": (lambda g: gu.Gradient(g.layers, g.weights * 2), r"\.weights\[1\]\[0\]\.matrix: unexpected"),
}


@each_with_moments
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_tree_is_refused_and_does_no_harm(cls, change, message):
    optimizer, undisturbed, model = updated(cls(), G), updated(cls(), G), Model()
    with pytest.raises(ValueError, match=message):
        optimizer.update(model, change(G))
    assert not hasattr(model, "delta")
    chex.assert_trees_all_equal(updated(optimizer, G).delta, updated(undisturbed, G).delta)


def test_plain_gradient_descent_keeps_nothing_and_takes_any_tree():
    optimizer = updated(optimizers.Gradient(), G)
    for change, _ in CHANGES.values():
        other = change(G)
        chex.assert_trees_all_close(updated(optimizer, other).delta, scaled(other, 0.001), rtol=1e-6)


@each_class
def test_an_integer_leaf_is_named(cls):
    with pytest.raises(TypeError, match=r"\['b'\].*int32"):
        updated(cls(), {"a": np.ones(2, np.float32), "b": np.ones(2, np.int32)})


# --- the example -------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["2017", "0_2"])
def test_a_script_and_its_rewrite_make_the_same_steps(generation):
    steps = []

    class Recorded(migrate_from_paysage.NumpyRBM):
        def gradient(self, v_data, v_model):
            steps.append([super().gradient(v_data, v_model)])
            return steps[-1][0]

        def parameter_update(self, delta):
            steps[-1].append(jax.tree.map(np.copy, delta))
            super().parameter_update(delta)

    batches = digits.load().batches[:3]
    start = pj.rbm.RBM().init(batches[0], 5, jax.random.key(0))
    getattr(migrate_from_paysage, f"script_{generation}")(Recorded(start, seed=0), batches, epochs=4)
    init, update = getattr(migrate_from_paysage, f"rewritten_{generation}")()
    state = init(start)
    for t, (grad, delta) in enumerate(steps):
        updates, state = update(grad, state, epoch=t // 3)
        chex.assert_trees_all_close(scaled(updates, -1), delta, rtol=1e-5, atol=1e-9)
    assert len(steps) == 12
