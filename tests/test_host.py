"""The step of the classes: NumPy and JAX agree, no argument is modified, copies are independent."""

import copy

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import optimizers
from paysage_jax._optim.stepper import Stepper, as_given
from tests.helpers.problems import CLASSIC, each, gradients, rbm_tree, row, step

DTYPES = [np.float16, np.float32, np.float64]
RATES = [0.125, 0.5, 0.25, 0.25, 1.0]


def as_numpy(tree, dtype=np.float32):
    return jax.tree.map(lambda x: np.array(x, dtype), tree)


def five_gradients(array=np.array, dtype=np.float32, decades=(-2, 1)):
    stacked = gradients(rbm_tree(), len(RATES), decades=decades)
    return [jax.tree.map(lambda x: array(x, dtype), row(stacked, t)) for t in range(len(RATES))]


def deltas(stepper, gradients):
    return [stepper(rate, g) for rate, g in zip(RATES, gradients, strict=True)]


def is_in_numpy(stepper):
    """Whether the state is kept in NumPy."""
    return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(stepper.state))


# --- the two paths -----------------------------------------------------------------------------------


@each(CLASSIC)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_numpy_and_jax_make_the_same_steps(optimizer, dtype):
    on_host, in_jax = Stepper(optimizer), Stepper(optimizer)
    made = deltas(on_host, five_gradients(np.array, dtype))
    expected = deltas(in_jax, five_gradients(jnp.array, dtype))
    assert is_in_numpy(on_host)
    assert not is_in_numpy(in_jax)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, expected)
    chex.assert_trees_all_close(made, expected, rtol=max(1e-6, float(np.finfo(dtype).eps)))


@each(CLASSIC)
def test_float64_is_computed_like_float32_in_the_default_mode_and_like_float64_under_x64(optimizer):
    """As JAX computes it with the same arrays; a float64 array is returned as float64 in both."""
    for x64, precision in ((False, 1e-6), (True, 1e-14)):
        with jax.enable_x64(x64):
            on_host, in_jax = Stepper(optimizer), Stepper(optimizer)
            made = deltas(on_host, five_gradients(dtype=np.float64))
            expected = deltas(in_jax, five_gradients(jnp.array, np.float64 if x64 else np.float32))
            assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype(np.float64)}
            chex.assert_trees_all_close(made, as_numpy(expected, np.float64), rtol=precision)


@each(CLASSIC)
def test_delta_is_minus_the_update_of_the_functional_optimizer(optimizer):
    """Also its state, whether the steps were made in NumPy or in JAX."""
    params = rbm_tree()
    state, updates = optimizer.init(params), []
    for rate, g in zip(RATES, five_gradients(jnp.array), strict=True):
        update, state, params = step(optimizer.replace_unchecked(stepsize=rate), g, state, params)
        updates.append(jax.tree.map(jnp.negative, update))
    for array in (np.array, jnp.array):
        stepper = Stepper(optimizer)
        chex.assert_trees_all_close(deltas(stepper, five_gradients(array)), as_numpy(updates), rtol=1e-6)
        moments = stepper.moments_as_trees()
        assert type(moments) is type(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(moments, state)
        chex.assert_trees_all_close(moments, state, rtol=1e-6)
        assert moments.step == len(RATES)
        assert moments.learning_rate == np.float32(RATES[-1])


@each(CLASSIC)
def test_there_are_no_moments_before_the_first_step(optimizer):
    assert Stepper(optimizer).moments_as_trees() is None


@each(CLASSIC)
def test_a_large_or_mixed_model_is_computed_in_jax(optimizer):
    large = {"a": np.ones(2**14 - 1, np.float32), "b": np.ones(2, np.float32)}
    mixed = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float64)}
    small = {"a": np.ones(2**14 - 1, np.float32), "b": np.ones(1, np.float32)}
    for g, expected in ((large, False), (mixed, False), ({"a": jnp.ones(2)}, False), (small, True)):
        stepper = Stepper(optimizer)
        delta = stepper(0.1, g)
        assert is_in_numpy(stepper) == expected
        assert all(type(d) is type(x) and d.dtype == x.dtype for d, x in zip(delta.values(), g.values(), strict=True))


@each(CLASSIC)
def test_a_state_moved_to_jax_stays_there_and_continues(optimizer):
    """Two steps in NumPy, one in JAX, two with NumPy arrays again."""
    kinds = [np.array, np.array, jnp.array, np.array, np.array]
    changing, steady = Stepper(optimizer), Stepper(optimizer)
    both = zip(RATES, kinds, five_gradients(), strict=True)
    for t, (rate, kind, g) in enumerate(both):
        given = jax.tree.map(kind, g)
        delta, expected = changing(rate, given), steady(rate, g)
        assert is_in_numpy(changing) == (t < 2)
        assert jax.tree.map(type, delta) == jax.tree.map(type, given)
        chex.assert_trees_all_close(as_numpy(delta), expected, rtol=1e-6)
    chex.assert_trees_all_close(as_numpy(changing.moments_as_trees()), as_numpy(steady.moments_as_trees()), rtol=1e-6)


@each(CLASSIC)
def test_the_host_passes_nonfinite_numbers_without_a_warning(optimizer):
    g = {"a": np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45, 0], np.float32)}
    on_host, in_jax = Stepper(optimizer), Stepper(optimizer)
    for _ in range(2):
        made, expected = on_host(1e3, g)["a"], np.asarray(in_jax(1e3, jax.tree.map(jnp.array, g))["a"])
        np.testing.assert_array_equal(np.isnan(made), np.isnan(expected))
        np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-37)  # XLA flushes what is not normal


@each(CLASSIC)
def test_the_count_of_steps_stays_at_the_largest_integer(optimizer):
    stepper, g = Stepper(optimizer), as_numpy(rbm_tree())
    expected = stepper(0.1, g)
    stepper.state = stepper.state._replace(step=2**31 - 2)
    for _ in range(3):
        stepper(0.1, g)
    assert stepper.moments_as_trees().step == 2**31 - 1
    chex.assert_trees_all_equal_shapes_and_dtypes(stepper(0.1, g), expected)


# --- what is given, and what is handed out -----------------------------------------------------------


@each(CLASSIC)
@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_nothing_given_is_modified_and_nothing_handed_out_is_kept(optimizer, array):
    """A model may write into its gradients and into the deltas."""
    given, untouched = five_gradients(array), five_gradients()
    stepper, undisturbed = Stepper(optimizer), Stepper(optimizer)
    expected = deltas(undisturbed, five_gradients(array))
    for rate, g, same, delta in zip(RATES, given, untouched, expected, strict=True):
        made = stepper(rate, g)
        chex.assert_trees_all_equal(as_numpy(g), same)
        chex.assert_trees_all_equal(made, delta)
        for leaf in [x for x in jax.tree.leaves((g, made)) if isinstance(x, np.ndarray)]:
            assert leaf.flags.writeable
            leaf[...] = np.nan


@each(CLASSIC)
def test_numpy_arrays_that_go_through_jax_are_not_aliased(optimizer):
    """On CPU, JAX may alias the memory of the caller's array."""
    given = [{"a": np.full(20_000, t + 1, np.float32)} for t in range(3)]
    stepper, undisturbed = Stepper(optimizer), Stepper(optimizer)
    for t, g in enumerate(given):
        made, expected = stepper(0.1, g), undisturbed(0.1, {"a": np.full(20_000, t + 1, np.float32)})
        np.testing.assert_array_equal(g["a"], t + 1)
        np.testing.assert_array_equal(made["a"], expected["a"])
        g["a"][:] = made["a"][:] = np.nan


def test_the_computed_comes_in_the_kinds_of_the_given():
    given = {"f32": np.ones(2, np.float32), "f64": np.ones(2), "jax": jnp.ones(2)}
    made = as_given(given, {name: 2 * jnp.ones(2) for name in given})
    assert {name: (type(x), x.dtype) for name, x in made.items()} == {
        "f32": (np.ndarray, np.float32),
        "f64": (np.ndarray, np.float64),
        "jax": (type(given["jax"]), np.float32),
    }
    assert made["f32"].flags.writeable
    copied = as_given(given, given)
    copied["f32"][:] = 5
    assert given["f32"][0] == 1


# --- copies ------------------------------------------------------------------------------------------


@each(CLASSIC)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_a_copy_of_a_stepper_and_the_original_go_separate_ways(optimizer, array, before):
    """A step in JAX donates the state, which two steppers therefore cannot share."""
    g = five_gradients(array)
    original, expected = Stepper(optimizer), Stepper(optimizer)
    for t in range(before):
        original(RATES[t], g[t])
        expected(RATES[t], g[t])
    twin = copy.copy(original)
    twin(1.0, g[4])  # a step that must not change the original
    kept = twin.moments_as_trees()
    for t in range(before, 4):
        chex.assert_trees_all_equal(original(RATES[t], g[t]), expected(RATES[t], g[t]))
    chex.assert_trees_all_equal(twin.moments_as_trees(), kept)
    assert twin.moments_as_trees().step == before + 1


class Model:
    """Its data are its gradients."""

    def gradient(self, v_data, v_model):
        return v_data

    def parameter_update(self, delta):
        pass


@pytest.mark.parametrize("name", ["SGD", "Momentum", "RMSProp", "ADAM"])
@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_a_copy_of_a_class_and_the_original_go_separate_ways(name, array):
    g, model = five_gradients(array), Model()

    def updated(optimizer, *steps):
        for t in steps:
            optimizer.update(model, g[t], None, 0)
        return optimizer

    def new():
        return getattr(optimizers, name)(model, scheduler=optimizers.PowerLawDecay(0.0))

    original = updated(new(), 0, 1)
    twin = copy.copy(original)
    updated(twin, 4)
    updated(original, 2, 3)
    updated(twin, 3)
    chex.assert_trees_all_equal(original.delta, updated(new(), 0, 1, 2, 3).delta)
    chex.assert_trees_all_equal(twin.delta, updated(new(), 0, 1, 4, 3).delta)
