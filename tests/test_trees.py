"""Functions of trees: paths, checks that name the leaf, dtypes of moments, norms, roots, finiteness."""

from collections import OrderedDict

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax._core import trees as _trees
from paysage_jax._core.trees import norm
from tests.helpers.problems import TREES, Pair, rbm_tree

TREE = rbm_tree()
PATHS = ["layers/0/loc", "layers/1/loc", "weights/0/matrix"]


# --- paths -------------------------------------------------------------------------------------------


def test_paths_are_written_with_slashes_in_the_order_of_the_leaves():
    assert _trees.leaf_paths(TREE) == PATHS
    assert _trees.leaf_paths(Pair(first=1.0, second=(2.0, None))) == ["first", "second/0"]
    assert _trees.leaf_paths(OrderedDict(b=1.0, a=2.0)) == ["b", "a"]
    assert _trees.leaf_paths(TREES["one array"]) == [""]
    by_path = _trees.by_path(TREE)
    assert list(by_path) == PATHS
    assert all(a is b for a, b in zip(by_path.values(), jax.tree.leaves(TREE), strict=True))


def test_a_predicate_selects_leaves_by_their_paths():
    assert _trees.selected("freeze", None, TREE) == [True] * 3
    assert _trees.selected("freeze", lambda path: path.startswith("layers/"), TREE) == [True, True, False]
    assert _trees.selected("freeze", lambda path: False, {}) == []
    with pytest.raises(ValueError, match=r"freeze: the predicate selects none of the leaves \['layers/0/loc', "):
        _trees.selected("freeze", lambda path: False, TREE)


def test_two_leaves_of_one_path_are_refused():
    """A slash in a key is fine, as in haiku, until it makes two paths the same."""
    assert _trees.leaf_paths({"linear/~/0": {"w": 1.0}}) == ["linear/~/0/w"]
    for confused in ({"a/b": 1.0, "a": {"b": 1.0}}, {"a": {"0": 1.0}, "a/0": 1.0}):
        assert _trees.selected("freeze", None, confused) == [True, True]
        with pytest.raises(ValueError, match=r"two leaves have the path 'a/.': rename the key that contains a slash"):
            _trees.selected("freeze", lambda path: True, confused)


# --- checks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [int, bool])
def test_a_leaf_that_is_neither_floating_nor_complex_is_named(dtype):
    _trees.check_floating("params", TREES | {"complex": jnp.ones(2, complex)})
    with pytest.raises(TypeError, match=r"params\['b'\]\[1\]: expected a floating or complex dtype, got (int|bool)"):
        _trees.check_floating("params", {"a": jnp.ones(2), "b": [jnp.ones(2), jnp.ones(2, dtype)]})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": jnp.ones(3), "b": [jnp.ones(2)]}, r"g\['a'\]: expected shape \(2,\) as in p, got \(3,\)"),
        ({"a": jnp.ones(2), "b": []}, r"g\['b'\]\[0\]: missing; p has it, of shape \(2,\)"),
        ({"a": jnp.ones(2), "b": [jnp.ones(2)], "c": 1.0}, r"g\['c'\]: unexpected; p has no such leaf"),
        ({"a": jnp.ones(2), "b": (jnp.ones(2),)}, "g: expected the tree structure of p, "),
    ],
    ids=["shape", "missing", "unexpected", "node"],
)
def test_a_tree_that_is_not_like_the_other_is_named(tree, message):
    reference = {"a": np.ones(2), "b": [jax.ShapeDtypeStruct((2,), float)]}
    _trees.check_same_tree("g", {"a": jnp.zeros(2, int), "b": [np.zeros(2)]}, "p", reference)
    with pytest.raises(ValueError, match=message):
        _trees.check_same_tree("g", tree, "p", reference)


def test_a_scalar_is_a_copy():
    """A step that donates its state may free a copy, but not the array of a hyperparameter."""
    rate = jnp.array(0.5)
    copy = _trees.as_scalar("rate", rate)
    assert copy == rate
    assert copy.unsafe_buffer_pointer() != rate.unsafe_buffer_pointer()
    chex.assert_type([_trees.as_scalar("rate", value) for value in (1, np.float64(2))], jnp.float32)
    with pytest.raises(ValueError, match=r"rate: expected a scalar, got shape \(2,\); use jax.vmap"):
        _trees.as_scalar("rate", jnp.ones(2))


# --- dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("complex64", "complex64"),
        ("complex128", "complex128"),
        ("int32", "int32"),
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_moments_are_at_least_float32(dtype, expected):
    with jax.enable_x64(True):
        assert _trees.moment_dtype(jnp.dtype(dtype)) == expected
        zeros = _trees.zeros_like_moments({"a": jnp.ones((2, 3), dtype), "b": None})
        chex.assert_trees_all_equal(zeros, {"a": jnp.zeros((2, 3)), "b": None})
        assert zeros["a"].dtype == expected
        if not expected.startswith("int"):
            real = _trees.zeros_like_moments({"a": jnp.ones((2, 3), dtype)}, real=True)
            assert real["a"].dtype == {"complex64": "float32", "complex128": "float64"}.get(expected, expected)


# --- the norm ----------------------------------------------------------------------------------------


@hypothesis.given(size=st.sampled_from([1, 100, 10_000]), exponent=st.floats(-36, 37))
def test_norm_is_that_of_float64_whatever_the_scale(size, exponent):
    x = np.float32(10**exponent) * np.random.default_rng(size).uniform(-1, 1, size).astype(np.float32)
    expected = np.linalg.norm(x.astype(np.float64))
    hypothesis.assume(expected < np.finfo(np.float32).max)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 10_000])
def test_norm_of_zero_of_nan_and_of_infinity(size):
    x = np.ones(size, np.float32)
    assert norm(0 * x) == 0
    for value in (np.nan, np.inf, -np.inf):
        x[1] = value
        np.testing.assert_equal(np.asarray(norm(jnp.asarray(x))), np.abs(value))


@hypothesis.given(size=st.sampled_from([1, 100, 10_000]), exponent=st.floats(-36, 37))
def test_norm_of_complex_numbers_is_that_of_their_moduli(size, exponent):
    rng = np.random.default_rng(size)
    x = np.complex64(10**exponent) * (rng.normal(size=size) + 1j * rng.normal(size=size)).astype(np.complex64) / size
    expected = np.sqrt(np.sum(np.abs(x.astype(np.complex128)) ** 2))
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5)
    np.testing.assert_allclose(_trees.abs_sq(jnp.complex64(3 - 4j)), 25)
    assert _trees.abs_sq(jnp.complex64(3 - 4j)).dtype == jnp.float32


@pytest.mark.parametrize("size", [3, 10_000])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_derivative_of_the_norm(size, scale):
    x = scale * jax.random.normal(jax.random.key(0), (size,))
    chex.assert_trees_all_close(jax.grad(norm)(x), x / norm(x), rtol=1e-5)


def test_the_sum_of_weights_and_its_derivative_hold_at_the_ends():
    """1 - bᵗ to all digits for b near 1; -t bᵗ⁻¹ also at b = 0."""
    b, t = np.array([0.0, 0.5, 0.999, 1 - 1e-6], np.float32), np.float32([1, 2, 7])[:, None]
    t, b = np.broadcast_arrays(t, b)
    exact = 1 - np.float64(b) ** np.float64(t)
    np.testing.assert_allclose(_trees.sum_of_weights(b, t), exact, rtol=2e-6)
    derivative = jax.vmap(jax.grad(_trees.sum_of_weights))(b.ravel(), t.ravel())
    np.testing.assert_allclose(derivative.reshape(b.shape), -t * np.float64(b) ** (t - 1), rtol=1e-6)


def test_root_has_a_derivative_at_zero():
    v = jnp.array([0.0, 1e-30, 0.25, 4.0])
    np.testing.assert_allclose(_trees.root(v), jnp.sqrt(v), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(_trees.root))(v), [0, 0.5e15, 1, 0.25], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_element_that_is_not_finite_is_seen(value):
    assert _trees.all_finite(TREE)
    assert _trees.all_finite({})
    assert _trees.all_finite(TREES["empty array"])
    assert not _trees.all_finite({**TREE, "more": jnp.array([[1, value]], jnp.bfloat16)})
