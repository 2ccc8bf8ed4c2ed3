"""Shared test problems: a zoo of optimizers and trees, gradients, runs, comparisons, and the golden data."""

from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    adam,
    apply_updates,
    classic,
    exponential_decay,
    momentum,
    per_epoch,
    power_law_decay,
    rmsprop,
    sgd,
)
from tests.helpers.golden import leaves, load, nest

# --- optimizers --------------------------------------------------------------------------------------

TEXTBOOK = {
    "sgd": sgd(0.1),
    "momentum": momentum(0.1),
    "nesterov": momentum(0.1, nesterov=True),
    "rmsprop": rmsprop(0.01),
    "adam": adam(0.01),
    "adamw": adam(0.01, weight_decay=0.1),
}
CLASSIC = {
    "classic_sgd": classic.sgd(0.1),
    "classic_momentum": classic.momentum(0.1),
    "classic_rmsprop": classic.rmsprop(0.01),
    "classic_adam": classic.adam(0.01),
}
OPTIMIZERS = TEXTBOOK | CLASSIC


def each(optimizers):
    """Parametrize a test over the values of a dictionary, named by its keys."""
    return pytest.mark.parametrize("optimizer", optimizers.values(), ids=optimizers.keys())


# --- trees and gradients -----------------------------------------------------------------------------


class Pair(NamedTuple):
    first: object
    second: object


def shaped(shapes, make):
    """make(shape) for every tuple in a tree of shapes."""
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


def rbm_tree(visible=4, hidden=3, seed=0):
    """Parameters of a small Boltzmann machine, in paysage's form."""
    rng = np.random.default_rng(seed)
    shapes = {"layers": [{"loc": (visible,)}, {"loc": (hidden,)}], "weights": [{"matrix": (visible, hidden)}]}
    return shaped(shapes, lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32))


TREES = {
    "rbm": rbm_tree(),
    "one array": jnp.arange(3.0),
    "scalar": jnp.float32(2.0),
    "none leaves": {"a": jnp.ones(2), "b": None, "c": [None, jnp.ones((2, 1))]},
    "tuples": Pair(first=(jnp.ones(2), ()), second=[jnp.ones((1, 2, 2))]),
    "empty array": {"a": jnp.zeros((0, 3)), "b": jnp.ones(1)},
    "empty": {"layers": [], "weights": []},
}


def gradients(like, steps, seed=1, decades=(-4, 1)):
    """One gradient per step (the leading axis); the elements' sizes are spread over these decades."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        sizes = 10 ** rng.uniform(*decades, size=np.shape(leaf))
        return jnp.asarray(sizes * rng.normal(size=(steps, *np.shape(leaf))), jnp.result_type(leaf))

    return jax.tree.map(draw, like)


def row(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


def scaled(tree, factor):
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def poisoned(g, value):
    """The gradient of an `rbm_tree` with one element of the weights replaced."""
    return g | {"weights": [{"matrix": g["weights"][0]["matrix"].at[1, 2].set(value)}]}


# --- runs --------------------------------------------------------------------------------------------


def step(optimizer, gradient, state, params, **extra):
    """(updates, state, params) after one step."""
    updates, state = optimizer.update(gradient, state, params, **extra)
    return updates, state, apply_updates(params, updates)


@jax.jit
def run(optimizer, params, gradients, state=None):
    """(updates of every step, the last state, the last parameters); compiled once per structure and shape."""

    def scanned(carry, gradient):
        updates, *carry = step(optimizer, gradient, *carry)
        return carry, updates

    state = optimizer.init(params) if state is None else state
    (state, params), updates = jax.lax.scan(scanned, [state, params], gradients)
    return updates, state, params


def is_weight(path):
    return path.startswith("weights/")


@jax.jit
def first_update(optimizer, updates, params):
    return optimizer.update(updates, optimizer.init(params), params)[0]


def assert_trees_close(actual, expected, atol=1e-6):
    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=atol), actual, expected)


def assert_runs_close(actual, expected, tolerance):
    """Every element is within tolerance times its largest expected value over the steps (the leading axis)."""
    chex.assert_trees_all_equal_shapes(actual, expected)

    def check(actual, expected):
        wide = np.complex128 if jnp.iscomplexobj(expected) else np.float64
        actual, expected = np.asarray(actual, wide), np.asarray(expected, wide)
        scale = np.max(np.abs(expected), axis=0, initial=np.finfo(np.float64).tiny)
        np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=tolerance)

    jax.tree.map(check, actual, expected)


# --- golden data -------------------------------------------------------------------------------------

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"
MANIFEST, GOLDEN = load(GOLDEN_FOLDER)
GOLDEN["rbm_replay"] = np.load(GOLDEN_FOLDER / "rbm_replay.npz")


def golden(file, *key):
    """The golden tree under a key: leaves have a leading axis of steps."""
    return nest(leaves(GOLDEN[file], "/".join(key)))


CLASSIC_BY_CLASS = {
    "StochasticGradientDescent": classic.sgd,
    "Momentum": classic.momentum,
    "RMSProp": classic.rmsprop,
    "ADAM": classic.adam,
}
SCHEDULES = {"PowerLawDecay": power_law_decay, "ExponentialDecay": exponential_decay}


def classic_optimizer(case):
    """The functional optimizer of a golden case; its schedule wants the epoch."""
    kwargs = dict(case["kwargs"])
    schedule = SCHEDULES[case["scheduler"]["class"]](kwargs.pop("stepsize", 0.001), case["scheduler"]["lr_decay"])
    return CLASSIC_BY_CLASS[case["optimizer"]](per_epoch(schedule), **kwargs)


def each_golden(section):
    cases = MANIFEST[section]
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def assert_golden(actual, expected, tolerance, floor=0.0):
    """|actual - expected| <= tolerance * max |expected leaf at that step| + floor; NaN and infinities equal."""

    def check(path, e, a):
        a, e, where = np.asarray(a, np.float64), np.asarray(e, np.float64), jax.tree_util.keystr(path)
        finite = np.isfinite(e)
        np.testing.assert_array_equal(a[~finite], e[~finite], err_msg=where)
        assert np.isfinite(a[finite]).all(), where
        a, e = np.where(finite, a, 0), np.where(finite, e, 0)
        scale = np.abs(e).max(axis=tuple(range(1, e.ndim)), keepdims=True)
        wrong = np.abs(a - e) > tolerance * scale + floor
        assert not wrong.any(), f"{where}: off by up to {np.abs(a - e).max()}, first at {np.argwhere(wrong)[0]}"

    jax.tree_util.tree_map_with_path(check, expected, actual)


def assert_golden_deltas(actual, case):
    tolerance = {"optimizers": 5e-6, "edge": 1e-5}[case["group"]]
    assert_golden(actual, golden(case["group"], case["id"], "delta"), tolerance)


def assert_golden_parameters(actual, case):
    """Float32 sums drift: 1e-5 (max |param| + max |delta|) over the run is allowed."""

    def check(a, e, delta):
        largest = sum(np.abs(x[np.isfinite(x)]).max(initial=0) for x in (e, delta))
        assert_golden([a], [e], 0, floor=1e-5 * float(largest))

    param, delta = (golden(case["group"], case["id"], what) for what in ("param", "delta"))
    jax.tree.map(check, actual, param, delta)


def assert_golden_moment(actual, case, name):
    """The moment after the last step; below the smallest normal float32 it may have been flushed to zero."""
    floor = float(np.finfo(np.float32).tiny)
    assert_golden(jax.tree.map(lambda x: x[None], actual), golden(case["group"], case["id"], name), 1e-5, floor)


def magnitude64(tree):
    """The magnitude as the golden README defines it, in float64."""
    parts = [np.sum(np.asarray(leaf, np.float64) ** 2) / len(leaf) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(np.mean(parts)))


def assert_golden_magnitude(actual, recorded, tree):
    """1e-6 relative to the recorded value.

    2017 took each leaf's norm in float32, which loses digits under 1e-18 and may overflow above 1e18:
    there the float64 formula on the recorded tree is the measure.
    """
    assert isinstance(actual, float)
    exact = magnitude64(tree)
    if 0 < exact < 1e-18:
        assert abs(actual - recorded) <= 1e-20
    expected = recorded if exact == 0 or 1e-18 <= exact <= 1e18 or np.isnan(exact) else exact
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def golden_magnitude_tree(case):
    """The recorded tree, with the empty groups and layers that an archive of arrays cannot hold."""
    recorded = golden("magnitude", case["id"], "tree")
    return {group: (recorded.get(group, []) + [{}] * size)[:size] for group, size in case["groups"].items()}
