"""The small transforms: against optax, closed forms and float64 loops, and by the laws they promise."""

from dataclasses import replace
from functools import partial

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paysage_jax import (
    adam,
    add_decayed_weights,
    add_l1_decay,
    apply_updates,
    average_parameters,
    chain,
    clip_by_global_norm,
    exponential_average,
    freeze,
    non_negative,
    project,
    sgd,
    skip_nonfinite,
    unit_column_norm,
)
from paysage_jax.packing import pack, unpack
from tests.helpers.problems import (
    each,
    first_update,
    gradients,
    is_weight,
    rbm_tree,
    row,
    run,
    scaled,
)

PARAMS = jax.tree.map(np.asarray, rbm_tree())
ZEROS = jax.tree.map(np.zeros_like, PARAMS)


def is_hidden_bias(path):
    return path == "layers/1/loc"


def zero_gradients(steps):
    return jax.tree.map(lambda p: jnp.zeros((steps, *p.shape)), PARAMS)


# --- clip, weight decay ------------------------------------------------------------------------------


@hypothesis.given(max_norm=st.floats(1e-3, 1e3), ratio=st.floats(1e-6, 1e6))
@hypothesis.example(max_norm=2.0, ratio=0.9)
@hypothesis.example(max_norm=2.0, ratio=1.1)
def test_clip_is_that_of_optax(max_norm, ratio):
    """For a gradient whose norm is that many times max_norm."""
    g = scaled(PARAMS, ratio * max_norm / norm64(PARAMS))
    expected = optax_clip(np.float32(max_norm), g)
    clipped = first_update(clip_by_global_norm(max_norm), g, PARAMS)
    chex.assert_trees_all_close(clipped, expected, rtol=1e-5)


@jax.jit
def optax_clip(max_norm, g):
    return optax.clip_by_global_norm(max_norm).update(g, optax.EmptyState())[0]


def norm64(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


@hypothesis.given(exponent=st.floats(-35, 37.6), max_norm=st.floats(1e-3, 1e3))
def test_a_clipped_norm_is_at_most_max_norm_however_large_the_gradient(exponent, max_norm):
    g = scaled(PARAMS, 10.0**exponent)
    clipped = first_update(clip_by_global_norm(max_norm), g, PARAMS)
    np.testing.assert_allclose(norm64(clipped), min(norm64(g), max_norm), rtol=1e-5)


@pytest.mark.parametrize(
    ("maybe_jit", "axis"),
    [(jax.jit, None), (lambda f: f, None), (lambda f: jax.jit(jax.vmap(f)), 1)],
    ids=["jit", "no jit", "vmap"],
)
def test_the_largest_gradients_are_clipped(maybe_jit, axis):
    """1 / norm is below the smallest normal number."""
    clipped = maybe_jit(lambda g: clip_by_global_norm(1.0).update(g, ())[0])(np.full((2, 3), 1e38, np.float32))
    norms = np.linalg.norm(clipped, axis=axis)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_clip_has_a_derivative_at_zero():
    jacobian = jax.jit(jax.jacobian(lambda g: clip_by_global_norm(1.0).update(g, ())[0]))(np.zeros(3, np.float32))
    np.testing.assert_array_equal(jacobian, np.eye(3))


def test_clip_takes_the_norm_of_moduli_and_leaves_integers():
    g = {"w": jnp.array([3 + 4j, 12j], jnp.complex64), "n": jnp.int32(7)}
    clipped = clip_by_global_norm(1.3).update(g, ())[0]
    chex.assert_trees_all_close(clipped, {"w": g["w"] / 10, "n": jnp.int32(7)}, rtol=1e-6)


def test_penalties_pull_complex_parameters_along_their_phase():
    p = jnp.array([3 + 4j, -2j, 0], jnp.complex64)
    g = jnp.zeros(3)
    chex.assert_trees_all_close(add_decayed_weights(0.5).update(g, (), p)[0], 0.5 * p, rtol=1e-6)
    expected = jnp.array([0.3 + 0.4j, -0.5j, 0], jnp.complex64)
    chex.assert_trees_all_close(add_l1_decay(0.5).update(g, (), p)[0], expected, rtol=1e-6)


def test_clip_lets_nan_through():
    matrix = PARAMS["weights"][0]["matrix"].copy()
    matrix[0, 0] = np.nan
    g = PARAMS | {"weights": [{"matrix": matrix}]}
    chex.assert_trees_all_equal(first_update(clip_by_global_norm(0.1), g, PARAMS), g)


@pytest.mark.parametrize("where", [None, is_weight])
def test_add_decayed_weights_is_that_of_optax(where):
    mask = {"layers": [{"loc": where is None}] * 2, "weights": [{"matrix": True}]}
    g = row(gradients(PARAMS, 1), 0)
    expected, _ = optax.add_decayed_weights(0.3, mask=mask).update(
        g, optax.add_decayed_weights(0.3, mask=mask).init(PARAMS), PARAMS
    )
    chex.assert_trees_all_close(first_update(add_decayed_weights(0.3, where), g, PARAMS), expected, rtol=1e-6)


def test_weights_decay_geometrically():
    """Without a gradient, p is multiplied by 1 - learning_rate weight_decay at every step."""
    _, _, params = run(chain(add_decayed_weights(0.5, is_weight), sgd(0.1)), PARAMS, zero_gradients(20))
    chex.assert_trees_all_equal(params["layers"], PARAMS["layers"])
    expected = 0.95**20 * np.asarray(PARAMS["weights"][0]["matrix"], np.float64)
    np.testing.assert_allclose(params["weights"][0]["matrix"], expected, rtol=1e-5)


def test_l1_decay_is_a_constant_pull_to_zero():
    """Without a gradient, |p| falls by learning_rate l1_decay at every step."""
    _, _, params = run(chain(add_l1_decay(0.05, is_weight), sgd(0.1)), PARAMS, zero_gradients(3))
    chex.assert_trees_all_equal(params["layers"], PARAMS["layers"])
    W = np.asarray(PARAMS["weights"][0]["matrix"], np.float64)
    assert np.abs(W).min() > 0.015
    np.testing.assert_allclose(params["weights"][0]["matrix"], W - 0.015 * np.sign(W), rtol=1e-5)


def test_l1_decay_leaves_zeros_at_zero():
    chex.assert_trees_all_equal(first_update(add_l1_decay(0.1), ZEROS, ZEROS), ZEROS)


def test_new_hyperparameters_do_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(optimizer):
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)[0]

    for x in (0.1, 0.2):
        average = average_parameters(x)
        traced_once(chain(clip_by_global_norm(x), add_decayed_weights(x, is_weight), add_l1_decay(x), sgd(x), average))


jitted_apply = jax.jit(apply_updates)


# --- project -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@each({"sgd": sgd(0.5), "adam": adam(0.5), "optax": optax.sgd(0.5)})
def test_projected_parameters_are_never_negative(optimizer, dtype):
    params = jax.tree.map(lambda p: np.abs(p).astype(dtype), PARAMS)
    g = jax.tree.map(lambda g: np.asarray(g).astype(dtype), gradients(PARAMS, 30, decades=(-2, 1)))
    updates = jax.tree.map(np.asarray, run(chain(optimizer, project(non_negative)), params, g)[0])
    zeros = 0
    for t in range(30):
        params = jax.tree.map(np.asarray, jitted_apply(params, row(updates, t)))
        assert all(np.all(p >= 0) for p in jax.tree.leaves(params))
        zeros += sum(int(np.sum(p == 0)) for p in jax.tree.leaves(params))
    assert zeros  # some of them would have been


@pytest.mark.parametrize("gradient_dtype", [jnp.float32, jnp.bfloat16])
def test_a_projected_zero_is_zero_whatever_the_dtype_of_the_gradient(gradient_dtype):
    """optax's sgd makes updates in the gradient's dtype, which may be coarser than the parameters'."""
    params = jax.tree.map(lambda p: jnp.abs(p) + 0.1, PARAMS)
    g = jax.tree.map(lambda p: jnp.full(p.shape, 10, gradient_dtype), PARAMS)
    optimizer = chain(optax.sgd(1.0), project(non_negative))
    chex.assert_trees_all_equal(apply_updates(params, first_update(optimizer, g, params)), ZEROS)


def test_columns_have_unit_norm_after_every_update():
    updates, _, _ = run(chain(sgd(0.5), project(unit_column_norm)), PARAMS, gradients(PARAMS, 30, decades=(-2, 1)))
    params, plain = PARAMS, PARAMS
    for t in range(30):
        params = apply_updates(params, row(updates, t))
        W = np.asarray(params["weights"][0]["matrix"], np.float64)
        np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, atol=1e-6)
        plain = apply_updates(plain, row(updates, t))
    chex.assert_trees_all_equal(params["layers"], plain["layers"])


def test_unit_column_norm():
    W = np.array([[3, 0, 1e-30, 1e30], [4, 0, 0, 1e30]], np.float32)
    scaled = unit_column_norm({"bias": jnp.arange(3.0), "matrix": jnp.asarray(W)})
    np.testing.assert_array_equal(scaled["bias"], np.arange(3.0))
    root = 0.5**0.5
    np.testing.assert_allclose(scaled["matrix"], [[0.6, 0, 1, root], [0.8, 0, 0, root]], rtol=1e-6)
    assert unit_column_norm(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.bfloat16


def test_columns_of_moduli():
    W = np.array([[3j, 0], [4, 1 + 1j]], np.complex64)
    np.testing.assert_allclose(jax.jit(unit_column_norm)(W), [[0.6j, 0], [0.8, (1 + 1j) * 0.5**0.5]], rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda w: jnp.sum(unit_column_norm(w))))(np.zeros((3, 2), np.float32))).all()
    with pytest.raises(TypeError, match=r"non_negative: params\['w'\]: expected real numbers, got complex64"):
        non_negative({"w": W})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_projected_parameters_are_in_the_set(dtype, seed):
    """They equal the projected ones exactly in low precision, and if both have similar magnitudes."""
    rng = np.random.default_rng(seed)
    p, q = (jnp.asarray(10 ** rng.uniform(-2, 2, 50) * rng.choice([-1, 0, 1], 50), dtype) for _ in "pq")
    moved = np.float64(apply_updates(p, project(lambda params: q).update(jnp.zeros_like(p), (), p)[0]))
    p, q = np.float64(p), np.float64(q)
    near = ((p / 2 <= q) & (q <= 2 * p)) | (q == 0) if dtype == "float32" else q == q
    np.testing.assert_array_equal(moved[near], q[near])
    assert (np.abs(moved - q) <= np.finfo(np.float32).eps * np.abs(q - p)).all()


def test_predicates_and_projections_see_the_leaves_of_packed_parameters():
    """A predicate that selects no leaf, for example by the name of a buffer, is an error."""
    g = row(gradients(PARAMS, 1), 0)
    for optimizer in (
        freeze(adam(0.1), is_weight),
        add_decayed_weights(0.1, is_weight),
        add_l1_decay(0.1, lambda path: not is_weight(path)),
        chain(sgd(0.1), project(unit_column_norm)),
        chain(sgd(0.1), project(non_negative, is_hidden_bias)),
    ):
        packed = unpack(first_update(optimizer, pack(g), pack(PARAMS)))
        chex.assert_trees_all_close(packed, first_update(optimizer, g, PARAMS), rtol=1e-6)
        state, abstract = optimizer.init(pack(PARAMS)), optimizer.init(jax.eval_shape(pack, PARAMS))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, abstract)
    for make in (partial(freeze, sgd(0.1)), partial(add_decayed_weights, 0.1), partial(project, non_negative)):
        with pytest.raises(ValueError, match=r"the predicate selects none of the leaves .*weights/0/matrix"):
            make(where=lambda path: "buffers" in path).init(pack(PARAMS))


@each(
    {
        "add_decayed_weights": add_decayed_weights(0.1),
        "add_l1_decay": add_l1_decay(0.1),
        "project": project(non_negative),
    }
)
def test_integers_that_would_have_to_move_are_named(optimizer):
    params = {"w": jnp.ones(2), "n": jnp.ones(2, int)}
    with pytest.raises(TypeError, match=r"params\['n'\]: expected a floating or complex dtype, got int32"):
        optimizer.update(params, (), params)
    only_w = replace(optimizer, where=lambda path: path == "w")
    chex.assert_trees_all_equal(only_w.update(params, (), params)[0]["n"], params["n"])


def test_numbers_are_checked_in_the_dtype_of_the_parameters():
    """Under x64 too, 1 - 1e-9 is 1 for parameters of float32: an average of nothing."""
    with jax.enable_x64(True):
        average = exponential_average(1 - 1e-9)
        average.init({"w": jnp.ones(2, "float64")})
        with pytest.raises(ValueError, match=r"decay must be in .* in float32"):
            average.init({"w": jnp.ones(2, "float32")})
        with pytest.raises(ValueError, match=r"weight_decay must be in .* in float32"):
            add_decayed_weights(1e39).init({"w": jnp.ones(2, "bfloat16")})


def test_projections_of_optax():
    def in_ball(params):
        return optax.projections.projection_l2_ball(params, 0.5)

    g = scaled(PARAMS, 2.0)
    for projection in (optax.projections.projection_non_negative, in_ball):
        updates = first_update(chain(sgd(0.1), project(projection)), g, PARAMS)
        expected = projection(jax.tree.map(lambda p: p - 0.2 * p, PARAMS))
        chex.assert_trees_all_close(apply_updates(PARAMS, updates), expected, atol=1e-6)


def test_project_only_where_selected():
    updates = first_update(chain(sgd(1.0), project(non_negative, is_weight)), scaled(PARAMS, 2), PARAMS)
    params = apply_updates(PARAMS, updates)  # -p without the projection
    chex.assert_trees_all_close(params["layers"], scaled(PARAMS["layers"], -1), rtol=1e-6)
    np.testing.assert_allclose(
        params["weights"][0]["matrix"], np.maximum(-PARAMS["weights"][0]["matrix"], 0), rtol=1e-6
    )


# --- mistakes ----------------------------------------------------------------------------------------


def nothing(path):
    return False


@each(
    {
        "add_decayed_weights": add_decayed_weights(0.1, nothing),
        "add_l1_decay": add_l1_decay(0.1, nothing),
        "project": project(non_negative, nothing),
        "freeze": freeze(sgd(0.1), nothing),
    }
)
def test_a_predicate_that_selects_nothing_is_an_error(optimizer):
    name = type(optimizer).__name__
    with pytest.raises(ValueError, match=f"{name}: the predicate selects none.*layers/0/loc.*weights/0/matrix"):
        optimizer.init(PARAMS)


@each(
    {
        "add_decayed_weights": add_decayed_weights(0.1),
        "add_l1_decay": add_l1_decay(0.1),
        "project": project(non_negative),
        "average_parameters": average_parameters(),
        "exponential_average": exponential_average(),
    }
)
def test_missing_or_misshapen_parameters_are_an_error(optimizer):
    name = type(optimizer).__name__
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=f"{name}: needs the parameters"):
        optimizer.update(PARAMS, state)
    with pytest.raises(ValueError, match=r"\['weights'\]\[0\]\['matrix'\]: expected shape \(4, 4\).*got \(4, 3\)"):
        optimizer.update(PARAMS, state, rbm_tree(4, 4) | {"layers": PARAMS["layers"]})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: clip_by_global_norm(0.0), ValueError, "max_norm must be"),
        (lambda: clip_by_global_norm(-1.0), ValueError, "max_norm must be"),
        (lambda: add_decayed_weights(-0.1), ValueError, "weight_decay must be in"),
        (lambda: add_l1_decay("0.1"), TypeError, "l1_decay must be a number"),
        (lambda: exponential_average(1.0), ValueError, "decay must be in"),
        (lambda: skip_nonfinite(0.1), TypeError, "expected an optimizer or transformation"),
        (lambda: freeze(None, is_weight), TypeError, "expected an optimizer or transformation"),
        (lambda: freeze(sgd(0.1), "weights"), TypeError, "freeze: where must be a function, got 'weights'"),
        (lambda: add_decayed_weights(0.1, True), TypeError, "where must be a function, got True"),
        (lambda: add_l1_decay(0.1, 3), TypeError, "where must be a function, got 3"),
        (lambda: project(0.0), TypeError, "project: projection must be a function, got 0.0"),
        (
            lambda: project(lambda p: p["layers"]).update(PARAMS, (), PARAMS),
            ValueError,
            r"projection\(params\).*(missing|unexpected)",
        ),
        (
            lambda: project(lambda p: jax.tree.map(jnp.sum, p)).update(PARAMS, (), PARAMS),
            ValueError,
            r"projection\(params\)\['layers'\]\[0\]\['loc'\]: expected shape \(4,\) as in params, got \(\)",
        ),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
