"""The 2017 numerics as pure functions, against the golden data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import apply_updates, classic, gradient_magnitude
from tests.helpers.problems import (
    CLASSIC,
    GOLDEN,
    MANIFEST,
    assert_golden,
    assert_golden_deltas,
    assert_golden_magnitude,
    assert_golden_moment,
    assert_golden_parameters,
    assert_runs_close,
    classic_optimizer,
    each,
    each_golden,
    golden,
    golden_magnitude_tree,
    gradients,
    magnitude64,
    rbm_tree,
    row,
    run,
)

# Every recorded run is filled up with zeros to the largest, which ends after 60 steps: a program for each optimizer and
# schedule serves them all. A filled element has no gradient, and the steps after the recorded ones are cut off.
STEPS, VECTORS, MATRICES = 60, 3, 2


def filled(leaf, shape):
    return np.pad(leaf, [(0, full - size) for size, full in zip(leaf.shape, shape, strict=True)])


def fill(tree, *axes):
    """The same number of leaves for every tree, with one shape for vectors and one for matrices."""
    leaves = jax.tree.leaves(tree)
    vectors, matrices = ([x for x in leaves if x.ndim - len(axes) == n] for n in (1, 2))
    dtype = leaves[0].dtype
    vectors += [np.zeros((*axes, 7), dtype)] * (VECTORS - len(vectors))
    matrices += [np.zeros((*axes, 7, 5), dtype)] * (MATRICES - len(matrices))
    return {"v": [filled(x, (*axes, 7)) for x in vectors], "m": [filled(x, (*axes, 7, 5)) for x in matrices]}


def cut(filled_tree, like):
    """The elements that `like` has, in its structure, with a leading axis of steps."""
    rest = {1: iter(filled_tree["v"]), 2: iter(filled_tree["m"])}

    def corner(leaf):
        return np.asarray(next(rest[leaf.ndim - 1]))[tuple(map(slice, leaf.shape))]

    return jax.tree.map(corner, like)


@jax.jit
def golden_run(optimizer, params, gradients, epochs):
    def scanned(carry, xs):
        params, state = carry
        gradient, epoch = xs
        updates, state = optimizer.update(gradient, state, params, epoch=epoch)
        params = apply_updates(params, updates)
        delta = jax.tree.map(jnp.negative, updates)
        return (params, state), (delta, params, state)

    return jax.lax.scan(scanned, (params, optimizer.init(params)), (gradients, epochs))[1]


@each_golden("cases")
def test_scan_replays_the_golden_run(case):
    group, name, optimizer, steps = case["group"], case["id"], classic_optimizer(case), case["steps"]
    start, g = row(golden(group, name, "param"), 0), golden(group, name, "grad")
    epochs = filled(GOLDEN[group][f"{name}/epoch"], (STEPS,))

    deltas, params, states = golden_run(optimizer, fill(start), fill(g, STEPS), epochs)

    assert_golden_deltas(cut(deltas, g), case)
    params = jax.tree.map(lambda p0, p: np.concatenate([p0[None], p]), start, cut(params, g))
    assert_golden_parameters(params, case)
    np.testing.assert_allclose(states.learning_rate[:steps], GOLDEN[group][f"{name}/eff_lr"], rtol=5e-7)
    np.testing.assert_array_equal(states.step[:steps], np.arange(steps) + 1)
    for moment in ("mean", "mean_square"):
        assert hasattr(states, moment) == (f"{name}/final_{moment}/layers/0/loc" in GOLDEN[group])
        if hasattr(states, moment):
            assert_golden_moment(row(cut(getattr(states, moment), g), -1), case, f"final_{moment}")


@jax.jit
def memory_run(gradients, mean_weight, mean_square_weight):
    def scanned(carry, gradient):
        mean, mean_square, first = carry
        mean = classic.update_mean(mean, gradient, mean_weight, first)
        mean_square = classic.update_mean_square(mean_square, gradient, mean_square_weight, first)
        forms = {"biased": (0, 0), "unbiased": (mean_weight, mean_square_weight)}
        outputs = {"mean": mean, "mean_square": mean_square}
        for form, weights in forms.items():
            outputs[f"norm_grad_{form}"] = classic.normalize(gradient, mean_square, *weights)
            outputs[f"norm_mean_{form}"] = classic.normalize(mean, mean_square, *weights)
        return (mean, mean_square, jnp.array(False)), outputs

    zeros = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)
    return jax.lax.scan(scanned, (zeros, zeros, jnp.array(True)), gradients)[1]


@each_golden("memory")
def test_memory_replays_the_golden_moments(case):
    outputs = memory_run(golden("memory", case["id"], "grad"), case["mean_weight"], case["mean_square_weight"])
    recorded = {key.split("/")[1] for key in GOLDEN["memory"].files if key.startswith(f"{case['id']}/")} - {"grad"}
    assert recorded
    for name in recorded:
        assert_golden(outputs[name], golden("memory", case["id"], name), 5e-6)


def assert_magnitude(magnitude, case):
    tree = golden_magnitude_tree(case)
    if case["raises"]:
        with pytest.raises({"ZeroDivisionError": ZeroDivisionError, "TypeError": TypeError}[case["raises"]]):
            magnitude(tree)
    else:
        result = magnitude(tree)
        chex.assert_shape(result, ())
        chex.assert_type(result, jnp.float32)
        assert_golden_magnitude(float(result), float(case["value_text"]), tree)


compiled_magnitude = jax.jit(gradient_magnitude)


@each_golden("magnitude")
def test_gradient_magnitude_is_the_golden_one(case):
    assert_magnitude(compiled_magnitude, case)


# Without jit every shape of a leaf is compiled: those of the Boltzmann machine always, other shapes when there is time.
OF_OTHER_SHAPES = {"gauss", "deep", "one", "vec_only", "mat_T", "ones_vec", "cube", "empty_layer", "extra_key"}
WITHOUT_JIT = [
    pytest.param(case, id=case["id"], marks=[pytest.mark.slow] * (case["id"] in OF_OTHER_SHAPES))
    for case in MANIFEST["magnitude"]
]


@pytest.mark.parametrize("case", WITHOUT_JIT)
def test_gradient_magnitude_is_the_golden_one_without_jit(case):
    assert_magnitude(gradient_magnitude, case)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e19, 1e30])
def test_gradient_magnitude_neither_overflows_nor_vanishes(size):
    tree = jax.tree.map(lambda x: np.float32(size) * np.asarray(x), rbm_tree())
    side_by_side = jax.tree.map(lambda x: np.stack([2 * x, x]), tree)
    for magnitude in (
        gradient_magnitude(tree),
        compiled_magnitude(tree),
        jax.vmap(gradient_magnitude)(side_by_side)[1],
    ):
        np.testing.assert_allclose(magnitude, magnitude64(tree), rtol=1e-6)


LIMITS = {
    "momentum": (classic.momentum(0.1, momentum=0.0), classic.sgd(0.1)),
    "rmsprop": (classic.rmsprop(0.1, mean_square_weight=0.0), classic.sgd(0.1)),
    "adam mean": (classic.adam(0.1, mean_weight=0.0), classic.rmsprop(0.1, mean_square_weight=0.999)),
    "adam mean square": (classic.adam(0.1, mean_square_weight=0.0), classic.momentum(0.1)),
    "adam both": (classic.adam(0.1, mean_weight=0.0, mean_square_weight=0.0), classic.sgd(0.1)),
}


def test_a_weight_of_zero_is_the_limit():
    """As an argument of the compiled run, and as a constant in it."""
    params = rbm_tree()
    g = gradients(params, 10, decades=(-4, 19))
    expected = {name: run(same, params, g)[0] for name, (_, same) in LIMITS.items()}
    limits = {name: limit for name, (limit, _) in LIMITS.items()}
    assert_runs_close({name: run(limit, params, g)[0] for name, limit in limits.items()}, expected, 1e-6)

    @jax.jit
    def closed_over(params, g):
        return {name: run(limit, params, g)[0] for name, limit in limits.items()}

    assert_runs_close(closed_over(params, g), expected, 1e-6)


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (classic.momentum(0.1, momentum=0.7), 1.0),
        (classic.rmsprop(0.1, mean_square_weight=0.84), 0.4),
        (classic.adam(0.1, mean_weight=0.5, mean_square_weight=0.36), 1.6),
        (classic.adam(0.1), 0.1**0.5),
    ],
    ids=["momentum", "rmsprop", "adam", "default adam"],
)
def test_steps_of_a_constant_gradient(optimizer, factor):
    """√(1-W)/(1-w) times stepsize sign(g) from the first step on; momentum's is stepsize g."""
    params = rbm_tree()
    g = jax.tree.map(lambda p: np.broadcast_to(100 * np.asarray(p), (10, *p.shape)), params)
    direction = g if isinstance(optimizer, classic.momentum) else jax.tree.map(np.sign, g)
    updates, _, _ = run(optimizer, params, g)
    assert_runs_close(updates, jax.tree.map(lambda d: -0.1 * factor * d, direction), 1e-5)


@each(CLASSIC)
def test_defaults_are_the_documented_ones(optimizer):
    fields = {"stepsize": 0.001, "momentum": 0.9, "mean_weight": 0.9}
    fields["mean_square_weight"] = 0.999 if hasattr(optimizer, "mean_weight") else 0.9
    default = type(optimizer)()
    assert default == type(optimizer)(**{name: value for name, value in fields.items() if hasattr(default, name)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: classic.sgd(-0.1), ValueError, "stepsize must be in"),
        (lambda: classic.momentum(momentum=1.1), ValueError, "momentum must be in"),
        (lambda: classic.rmsprop(mean_square_weight=-0.1), ValueError, "mean_square_weight must be in"),
        (lambda: classic.adam(mean_weight=float("nan")), ValueError, "mean_weight must be in"),
        (lambda: classic.adam(mean_square_weight="0.9"), TypeError, "mean_square_weight must be a number"),
        (lambda: classic.update_mean({"a": jnp.ones(2)}, {"a": jnp.ones(3)}, 0.9), ValueError, r"\['a'\].*\(2,\)"),
        (lambda: classic.update_mean_square({}, {"a": jnp.ones(3)}, 0.9), ValueError, r"\['a'\]: unexpected"),
        (lambda: classic.normalize({}, {"a": jnp.ones(3)}), ValueError, r"\['a'\]: missing"),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
