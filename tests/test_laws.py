"""Laws that every optimizer and transform obeys, over random trees, shapes and dtypes, real and complex.

Random trees are updated without jit, where a compiled leaf serves all trees. What compiles a whole step sees one tree.
"""

from functools import partial

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import paysage_jax as pj
from tests.helpers.problems import CLASSIC, OPTIMIZERS, TEXTBOOK, each, row, step

SHAPES = {"scalar": (), "two": (2,), "three": (3,), "matrix": (2, 3), "empty": (0, 2)}
# A dtype and a shape are a leaf to compile for each optimizer. A rule sees one element at a time: every dtype goes with
# one shape, every shape with a dtype.
LEAVES = [
    *("float16 matrix", "bfloat16 scalar", "float32 matrix", "float64 matrix", "complex64 matrix", "complex128 scalar"),
    "float32 empty",
]
MORE_LEAVES = [*LEAVES, "float32 scalar", "complex64 scalar", "bfloat16 matrix", "complex128 matrix"]
each_leaves = pytest.mark.parametrize(
    "words",
    [pytest.param(LEAVES, id="few leaves"), pytest.param(MORE_LEAVES, id="more leaves", marks=pytest.mark.slow)],
)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def draw(rng, shape, dtype, decades=(-2, 1)):
    """Numbers whose magnitudes span these decades."""
    x = 10 ** rng.uniform(*decades, size=shape) * rng.choice([-1, 1], size=shape)
    if dtype.startswith("complex"):
        x = x * np.exp(1j * rng.uniform(0, 2 * np.pi, size=shape))
    return jnp.asarray(x, dtype)


def built(specs, seed):
    """A tree of arrays from a tree of words such as "float32 matrix"."""
    rng = np.random.default_rng(seed)

    def array(spec):
        dtype, shape = spec.split()
        return draw(rng, SHAPES[shape], dtype)

    return jax.tree.map(array, specs)


def drawn_like(tree, seed, decades=(-2, 1)):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: draw(rng, x.shape, x.dtype.name, decades), tree)


def trees(words):
    """Random trees of these leaves, which include every shape and every dtype."""
    nested = st.recursive(
        st.sampled_from(words),
        lambda x: st.lists(x, max_size=3) | st.tuples(x, st.none()) | st.dictionaries(st.sampled_from("abc"), x),
        max_leaves=5,
    )

    return st.builds(built, nested, SEEDS)


# One tree with a leaf of every dtype, and three that `center` knows.
SPECS = {
    "layers": [{"loc": "float32 two"}, {"loc": "float16 three"}],
    "weights": [{"matrix": "bfloat16 matrix"}],
    "more": ("float64 matrix", "complex64 matrix", None, "complex128 matrix"),
    "empty": "float32 empty",
}
with jax.enable_x64(True):
    EVERYTHING = built(SPECS, 0)
    FEW = built(SPECS | {"more": "complex64 matrix", "empty": None}, 0)


def is_matrix(path):
    return path.endswith("matrix")


def is_bias(path):
    return path.endswith("loc")


WITHOUT_DECAY = {name: optimizer for name, optimizer in OPTIMIZERS.items() if name != "adamw"}
COMPOSED = {
    "before": pj.chain(
        pj.clip_by_global_norm(1.0), pj.add_decayed_weights(0.1, is_matrix), pj.add_l1_decay(0.1), pj.sgd(0.1)
    ),
    "after": pj.chain(
        pj.adam(pj.power_law_decay(0.1)),
        pj.project(pj.unit_column_norm, is_matrix),
        pj.average_parameters(0.5),
        pj.track_convergence(1e-3, patience=2),
    ),
    "skip": pj.skip_nonfinite(pj.rmsprop(0.01)),
    "freeze": pj.freeze(pj.adam(0.01), is_bias),
    "pack_moments": pj.packing.pack_moments(pj.adam(0.01, weight_decay=0.1)),
    "center": pj.chain(pj.center(), pj.momentum(0.1)),
}


def assert_close(actual, expected, ulps=4, shared=0.0):
    """Equal but for some units in the last place of each leaf's largest element, or of `shared` if that is coarser."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)

    def check(a, e):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        inexact = jnp.issubdtype(e.dtype, jnp.inexact)
        wide = np.complex128 if jnp.iscomplexobj(e) else np.float64
        a, e, eps = (
            np.asarray(a, wide),
            np.asarray(e, wide),
            max(float(jnp.finfo(e.dtype).eps), shared) if inexact else 0.0,
        )
        np.testing.assert_allclose(a, e, rtol=0, atol=ulps * eps * np.max(np.abs(e), initial=0))

    jax.tree.map(check, actual, expected)


def assert_equal(actual, expected):
    assert_close(actual, expected, ulps=0)


def times(tree, factor):
    return jax.tree.map(lambda x: np.asarray(x) * np.asarray(factor, x.dtype), tree)


def updates_of(optimizer, params, gradients):
    """The updates in a Python loop, without jit."""
    state, collected = optimizer.init(params), []
    for gradient in gradients:
        updates, state, params = step(optimizer, gradient, state, params)
        collected.append(updates)
    return collected


# --- over random trees -------------------------------------------------------------------------------


@each(WITHOUT_DECAY | {"average": pj.average_parameters(), "EMA": pj.exponential_average(0.9)})
@each_leaves
@given(data=st.data())
def test_zero_gradients_give_zero_updates(optimizer, words, data):
    params = data.draw(trees(words))
    zeros = times(params, 0)
    for updates in updates_of(optimizer, params, [zeros] * 2):
        assert_equal(updates, zeros)


# Powers of two, so that the laws hold to the last digit.
EXPONENTS = st.integers(-3, 3)


@each({name: OPTIMIZERS[name] for name in ("sgd", "momentum", "nesterov", "classic_sgd", "classic_momentum")})
@each_leaves
@given(data=st.data(), seed=SEEDS, exponent=EXPONENTS)
def test_a_linear_optimizer_scales_with_the_gradient(optimizer, words, data, seed, exponent):
    params = data.draw(trees(words))
    g = [drawn_like(params, seed + i) for i in range(2)]
    expected = [times(u, 2.0**exponent) for u in updates_of(optimizer, params, g)]
    assert_equal(updates_of(optimizer, params, [times(x, 2.0**exponent) for x in g]), expected)


@each({"rmsprop": pj.rmsprop(0.01, eps=0.0), "adam": pj.adam(0.01, eps=0.0)})
@each_leaves
@given(data=st.data(), seed=SEEDS, exponent=EXPONENTS)
def test_a_normalised_optimizer_does_not_know_the_scale(optimizer, words, data, seed, exponent):
    params = data.draw(trees(words))
    g = [drawn_like(params, seed + i) for i in range(2)]
    assert_close(
        updates_of(optimizer, params, [times(x, 2.0**exponent) for x in g]), updates_of(optimizer, params, g), ulps=2
    )


@jax.jit
def clipped(bound, g):
    return pj.clip_by_global_norm(bound).update(g, ())[0]


@given(seed=SEEDS, exponent=EXPONENTS)
def test_clipping_scales_with_its_bound(seed, exponent):
    g, factor = drawn_like(EVERYTHING, seed), 2.0**exponent
    assert_equal(clipped(factor, times(g, 0)), times(g, 0))
    assert_close(clipped(factor, times(g, factor)), times(clipped(1.0, g), factor))


@each(OPTIMIZERS)
@each_leaves
@given(data=st.data(), seed=SEEDS)
def test_leaves_are_updated_independently(optimizer, words, data, seed):
    """Leaves in another order get the same updates."""
    leaves = data.draw(st.lists(trees(words), min_size=2, max_size=3))
    g = drawn_like(leaves, seed)
    (forward,), (backward,) = updates_of(optimizer, leaves, [g]), updates_of(optimizer, leaves[::-1], [g[::-1]])
    assert_close(backward[::-1], forward, ulps=2)


@each({"sgd": TEXTBOOK["sgd"], "adam": TEXTBOOK["adam"], "classic_adam": CLASSIC["classic_adam"]})
@each_leaves
@given(data=st.data(), seed=SEEDS, angle=st.sampled_from([1, 2, 3]))
def test_a_turned_complex_gradient_gives_a_turned_update(optimizer, words, data, seed, angle):
    """The optimizers do not prefer an axis of the complex plane: quarter turns are exact."""
    params = data.draw(trees(words))

    def turned(tree):
        return jax.tree.map(lambda x: x * jnp.asarray(1j**angle, x.dtype) if jnp.iscomplexobj(x) else x, tree)

    g = drawn_like(params, seed)
    (updates,), (expected,) = updates_of(optimizer, turned(params), [turned(g)]), updates_of(optimizer, params, [g])
    assert_close(updates, turned(expected), ulps=2)


# --- one run, many ways ------------------------------------------------------------------------------

PARTS, STEPS = 2, 2  # of a run; in a part


def one_step(optimizer, gradient, state, params):
    """Every step passes the statistics that `center` needs."""
    statistics = pj.states.PhaseStatistics(jnp.zeros(()), jnp.zeros(()), gradient, gradient)
    return step(optimizer, gradient, state, params, statistics=statistics)


def looped(optimizer, params, gradients):
    """Without jit: the updates of every step, the last state and parameters."""
    state, collected = optimizer.init(params), []
    for gradient in gradients:
        updates, state, params = one_step(optimizer, gradient, state, params)
        collected.append(updates)
    return collected, state, params


@partial(jax.jit, donate_argnames=("states", "params"))
def part_of_a_run(optimizer, gradients, states, params):
    """A scan over several models in a vmap; the arguments are donated."""

    def scan(gradients, *start):
        def body(carry, gradient):
            updates, *carry = one_step(optimizer, gradient, *carry)
            return carry, updates

        carry, updates = jax.lax.scan(body, list(start), gradients)
        return updates, *carry

    return jax.vmap(scan)(gradients, states, params)


def run_in_parts(optimizer, params, gradients, restored):
    """As `looped`, for the second of two models; in the first, everything is negated.

    If `restored`, states and parameters go through numpy and back between the parts.
    """

    def both(x):
        return jnp.asarray(np.stack([-np.asarray(x), x]))

    params, collected = jax.tree.map(both, params), []
    states = jax.vmap(optimizer.init)(params)
    for part in range(PARTS):
        if restored:
            states, params = jax.tree.map(lambda x: jnp.array(np.array(x)), (states, params))
        steps = jax.tree.map(lambda *g: both(np.stack(g)), *gradients[part * STEPS : (part + 1) * STEPS])
        updates, states, params = part_of_a_run(optimizer, steps, states, params)
        collected += [jax.tree.map(lambda u, t=t: np.asarray(u)[1, t], updates) for t in range(STEPS)]
    return collected, *jax.tree.map(lambda x: np.asarray(x)[1], (states, params))


# The equations in every dtype are tested in test_textbook; here two of them are enough.
STANDING = {name: OPTIMIZERS[name] for name in ("adamw", "classic_adam")}
RUNS = [pytest.param(optimizer, FEW, id=name) for name, optimizer in (STANDING | COMPOSED).items()] + [
    pytest.param(optimizer, EVERYTHING, id=f"{name}, every dtype", marks=pytest.mark.slow)
    for name, optimizer in (OPTIMIZERS | COMPOSED).items()
]


@pytest.mark.slow_unless("classic_adam", "skip", "center")
@pytest.mark.parametrize(("optimizer", "params"), RUNS)
def test_every_way_is_the_same_run(optimizer, params):
    """A loop without jit, and donated parts of it that are the vmap of a scan, restored in between, on packed trees."""
    gradients = [drawn_like(params, seed) for seed in range(PARTS * STEPS)]
    expected = looped(optimizer, params, gradients)
    chex.assert_trees_all_equal_dtypes(expected[1:], (optimizer.init(params), params))
    if optimizer is not COMPOSED["after"]:  # a projection comes in float32
        chex.assert_trees_all_equal_dtypes(expected[0][0], params)
    wants_a_tree = optimizer in (COMPOSED["center"], COMPOSED["pack_moments"])
    pack, unpack = (lambda x: x, lambda x: x) if wants_a_tree else (pj.packing.pack, pj.packing.unpack_all)
    run = partial(run_in_parts, optimizer, pack(params), list(map(pack, gradients)))
    actual = run(restored=False)
    assert_equal(run(restored=True), actual)
    # What is computed of all leaves has the precision of the coarsest: the norms of clip, the magnitude.
    shared = 2.0**-8 if optimizer in (COMPOSED["before"], COMPOSED["after"]) else 0
    assert_close(unpack(actual), expected, ulps=8, shared=shared)


# --- extreme gradients -------------------------------------------------------------------------------

NORMALISED = {name: o for name, o in OPTIMIZERS.items() if hasattr(o, "eps") or hasattr(o, "mean_square_weight")}
SIZES = np.float32([1e-42, 1e-38, 1e-30, 1e-19, 1e-10, 1, 1e10, 1e18, 1e20, 1e30, np.nan, np.inf, -np.inf])


@jax.jit
def on_extremes(optimizer, sizes):
    """The updates for gradients of these sizes, and those for gradients of 1 after them, in float32."""
    state, params = optimizer.init(sizes), jnp.zeros_like(sizes)
    first, state, params = step(optimizer, sizes, state, params)
    return first, step(optimizer, jnp.ones_like(sizes), state, params)[0]


@pytest.mark.parametrize("size", [1e-36, 1e-19, 1e18, 1e30])
def test_clipping_is_the_same_in_every_way_however_extreme(size):
    """Without jit, with it, and under vmap."""
    g = {"a": np.float32(size) * np.float32([3, -4]), "b": np.float32(size) * np.float32([[12, 0]])}

    def clip(g):
        return pj.clip_by_global_norm(1.0).update(g, ())[0]

    eager = clip(g)
    chex.assert_tree_all_finite(eager)
    norm = 13 * float(np.float32(size))
    for way in (eager, jax.jit(clip)(g), row(jax.vmap(clip)(jax.tree.map(lambda x: np.stack([-x, x]), g)), 1)):
        for name in g:
            np.testing.assert_allclose(way[name], g[name] / max(norm, 1.0), rtol=1e-5, atol=1e-44)


@each({name: OPTIMIZERS[name] for name in ("sgd", "adamw", "rmsprop", "classic_adam")})
def test_extreme_gradients_give_the_same_in_every_way(optimizer):
    """Without jit, with it, and under vmap."""
    for actual, expected in zip(on_extremes.__wrapped__(optimizer, SIZES), on_extremes(optimizer, SIZES), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-44)
    both = jax.vmap(on_extremes, in_axes=(None, 0))(optimizer, np.stack([-SIZES, SIZES]))
    for actual, expected in zip(both, on_extremes(optimizer, SIZES), strict=True):
        np.testing.assert_allclose(actual[1], expected, rtol=1e-5, atol=1e-44)


@each(OPTIMIZERS)
def test_elements_are_updated_independently_even_at_extreme_values(optimizer):
    first, then = on_extremes(optimizer, SIZES)
    tame = np.where(np.isfinite(SIZES), SIZES, 1)
    expected_first, expected_then = on_extremes(optimizer, tame)
    finite = np.isfinite(SIZES)
    np.testing.assert_array_equal(first[finite], expected_first[finite])
    np.testing.assert_array_equal(then[finite], expected_then[finite])
    assert np.isfinite(first[finite]).all()
    assert (np.sign(first[finite]) <= 0).all()


@each(OPTIMIZERS)
def test_nonfinite_numbers_stay_in_the_moments(optimizer):
    first, then = (np.asarray(u)[-3:] for u in on_extremes(optimizer, SIZES))
    assert np.isnan(first[0])
    assert not np.isfinite(first[1:]).any()
    has_moments = len(optimizer.init(SIZES)) > 2
    assert (np.isfinite(then) & (then != 0)).any() != has_moments


@each(NORMALISED)
def test_an_element_whose_square_overflows_stops_moving(optimizer):
    first, then = on_extremes(optimizer, SIZES)
    overflows = np.isfinite(SIZES) & (SIZES > 1.9e19)
    assert overflows.sum() == 2
    assert (first[overflows] == 0).all()
    assert (then[overflows] == 0).all()


@each(NORMALISED)
def test_an_element_whose_square_vanishes_is_divided_by_eps_alone(optimizer):
    first = on_extremes(optimizer, SIZES)[0][2]  # of 1e-30
    eps = {"adam": 1e-8, "adamw": 1e-8, "rmsprop": 1e-4}
    names = {id(o): name for name, o in NORMALISED.items()}
    w = getattr(optimizer, "mean_weight", 0.0)  # classic: (m / (1 - w)) / √2⁻²³
    expected = -0.01 * 1e-30 / eps.get(names[id(optimizer)], 2**-11.5 * (1 - w))
    np.testing.assert_allclose(first, expected, rtol=1e-5)
