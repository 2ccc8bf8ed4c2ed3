"""packing: pack and unpack are inverse, and an optimizer does the same on a packed tree."""

import pickle
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import paysage_jax as pj
from paysage_jax._optim.packing import LARGEST
from paysage_jax.packing import Packed, pack, pack_all_like, pack_like, pack_moments, unpack, unpack_all
from tests.helpers.problems import OPTIMIZERS, each, run


def tree(seed=0):
    """In NumPy, so that making it compiles nothing."""
    rng = np.random.default_rng(seed)

    def normal(*shape, dtype=np.float32):
        return rng.normal(size=shape).astype(dtype)

    return {
        "layers": [{"loc": normal(7)}, {"loc": normal(5)}],
        "weights": [{"matrix": normal(7, 5)}],
        "half": [normal(3, 2, dtype=jnp.bfloat16), normal(4, dtype=jnp.bfloat16)],
        "large": normal(100, 100),
        "none": None,
        "empty": np.zeros((0, 3), np.float32),
    }


def test_unpack_inverts_pack():
    packed = pack(tree())
    chex.assert_trees_all_equal(unpack(packed), tree())
    chex.assert_trees_all_equal_dtypes(unpack(packed), tree())
    # float32 small, bfloat16 small, and the large leaf with its own shape
    assert sorted(b.shape for b in packed.buffers) == [(10,), (47,), (100, 100)]


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=8), st.sampled_from([0, 3, 10_000]))
def test_unpack_inverts_pack_for_any_shapes(shapes, largest):
    numbers = iter(range(10**6))
    original = [np.array([next(numbers) for _ in range(int(np.prod(s)))], np.float32).reshape(s) for s in shapes]
    chex.assert_trees_all_equal(unpack(pack(original, largest)), original)


def test_layout_is_static_hashable_and_pickles():
    packed = pack(tree())
    again = pickle.loads(pickle.dumps(packed))
    assert hash(again.layout) == hash(packed.layout)
    assert again.layout == packed.layout
    assert pack(tree(1)).layout == packed.layout
    step = jax.jit(chex.assert_max_traces(lambda p: jax.tree.map(jnp.square, p), n=1))
    step(packed)
    chex.assert_trees_all_close(unpack(step(pack(tree(1)))), jax.tree.map(jnp.square, tree(1)))


def test_gradient_through_unpack_is_the_packed_gradient():
    def loss(t):
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32)) * (i + 1)) for i, x in enumerate(jax.tree.leaves(t)))

    packed = pack(tree())
    expected = jax.jit(jax.grad(loss))(tree())
    actual = jax.jit(jax.grad(lambda p: loss(unpack(p))))(packed)
    chex.assert_trees_all_close(unpack(actual), expected, rtol=1e-6)


packed_of = jax.jit(pack)


@pytest.mark.slow_unless("momentum", "adamw")
@each({name: OPTIMIZERS[name] for name in ("sgd", "momentum", "rmsprop", "adam", "adamw", "classic_adam")})
def test_same_parameters_packed_or_not(optimizer):
    def last(optimizer, params, gradients):
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *gradients)
        _, (state,), params = run(pj.chain(optimizer), params, stacked)
        return params, state

    gradients, start = [tree(seed) for seed in range(5)], tree(9)
    plain, plain_state = last(optimizer, start, gradients)
    packed, packed_state = last(optimizer, packed_of(start), list(map(packed_of, gradients)))
    chex.assert_trees_all_close(unpack(packed), plain, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(unpack_all(packed_state), plain_state, rtol=1e-6, atol=1e-7)
    moments, moments_state = last(pack_moments(optimizer), start, gradients)
    chex.assert_trees_all_close(moments, plain, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal_dtypes(moments, plain)
    chex.assert_trees_all_close(unpack_all(moments_state), plain_state, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal(pack_all_like(unpack_all(moments_state), moments_state), moments_state)


def test_a_checkpoint_of_either_kind_resumes_as_the_other():
    params, gradient = tree(9), tree(1)
    plain, packed = pj.adam(0.01), pack_moments(pj.adam(0.01))
    _, state = plain.update(gradient, plain.init(params), params)
    restored = pack_all_like(state, packed.init(params))
    expected, _ = plain.update(gradient, state, params)
    chex.assert_trees_all_close(packed.update(gradient, restored, params)[0], expected, rtol=1e-6)
    packed_state = packed.update(gradient, packed.init(params), params)[1]
    chex.assert_trees_all_close(plain.update(gradient, unpack_all(packed_state), params)[0], expected, rtol=1e-6)


@dataclass
class Variable:
    """A wrapper of one array, as flax's nnx uses for every parameter."""

    value: object


jax.tree_util.register_dataclass(Variable, ["value"], [])


def is_variable(x):
    return isinstance(x, Variable)


def wrapped(tree):
    return jax.tree.map(lambda x: x if is_variable(x) else Variable(x), tree, is_leaf=is_variable)


def bare(tree):
    return jax.tree.map(lambda x: x.value if is_variable(x) else x, tree, is_leaf=is_variable)


def test_a_state_made_of_variables_continues_with_their_arrays():
    """As in `nnx.Optimizer`: variables at the start, then arrays; the state is wrapped between the updates."""
    optimizer = pj.chain(pack_moments(pj.adam(0.1)), pj.average_parameters(0.9), pj.track_convergence(0.0))
    params = tree(9)
    state, expected = wrapped(optimizer.init(wrapped(params))), optimizer.init(params)
    for seed in range(3):
        updates, state = optimizer.update(tree(seed), bare(state), params)
        state = wrapped(state)
        expected_updates, expected = optimizer.update(tree(seed), expected, params)
        chex.assert_trees_all_equal(updates, expected_updates)
    chex.assert_trees_all_equal(bare(pj.averaged_parameters(state)), pj.averaged_parameters(expected))
    assert not pj.converged(state)


def test_a_state_made_of_variables_refuses_another_tree():
    optimizer = pack_moments(pj.adam(0.1))
    state = optimizer.init(wrapped({"a": jnp.ones(3), "b": jnp.ones(3)}))
    for other in ({"a": jnp.ones(3), "c": jnp.ones(3)}, {"a": jnp.ones(3)}, [jnp.ones(3), jnp.ones(3)]):
        with pytest.raises(ValueError, match=r"^updates\["):
            optimizer.update(other, state)


def test_init_is_abstract_where_params_are():
    optimizer = pack_moments(pj.adam(0.01))
    chex.assert_trees_all_equal_shapes_and_dtypes(optimizer.init(jax.eval_shape(tree)), optimizer.init(tree()))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(optimizer.init, tree()), optimizer.init(tree()))


def test_magnitude_of_a_packed_tree_is_that_of_the_tree():
    original = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4.0)}
    expected = np.sqrt((55 / 2 + 14 / 4) / 2)
    np.testing.assert_allclose(pj.gradient_magnitude(original), expected, rtol=1e-6)
    np.testing.assert_allclose(pj.gradient_magnitude(pack(original)), expected, rtol=1e-6)


def test_errors_name_the_leaf():
    packed = pack(tree())
    wrong = tree() | {"weights": [{"matrix": jnp.zeros((5, 7))}]}
    with pytest.raises(ValueError, match=r"\['weights'\]\[0\]\['matrix'\]: expected shape \(7, 5\)"):
        pack_like(wrong, packed)
    optimizer = pack_moments(pj.adam(0.01))
    with pytest.raises(ValueError, match=r"updates\['weights'\]\[0\]\['matrix'\]: expected shape .* in the state"):
        optimizer.update(wrong, optimizer.init(tree()))
    integer = tree() | {"large": jnp.zeros((100, 100), int)}
    with pytest.raises(TypeError, match=r"params\['large'\]: expected a floating or complex dtype"):
        optimizer.init(integer)
    with pytest.raises(TypeError, match=r"updates\['large'\]: expected a floating or complex dtype"):
        optimizer.update(integer, optimizer.init(tree()))
    complex_tree = jax.tree.map(lambda x: x.astype("complex64"), tree())
    with pytest.raises(TypeError, match=r"updates\['empty'\]: complex64 cannot be added to float32, as params is"):
        optimizer.update(complex_tree, optimizer.init(tree()), tree())
    with pytest.raises(ValueError, match="pack_moments: expected the state of the optimizer on packed parameters"):
        optimizer.update(tree(), pj.adam(0.01).init(tree()))
    with pytest.raises(TypeError, match="init and update"):
        pack_moments(0.01)


def test_real_gradients_of_some_complex_parameters():
    params = {"a": jnp.ones(2, "complex64"), "b": jnp.ones(3, "complex64"), "c": jnp.ones(2)}
    gradient = {"a": jnp.array([1j, 2]), "b": jnp.arange(3.0), "c": jnp.ones(2)}
    optimizer = pack_moments(pj.adam(0.1))
    packed, state = optimizer.update(gradient, optimizer.init(params), params)
    plain, plain_state = pj.adam(0.1).update(gradient, pj.adam(0.1).init(params), params)
    chex.assert_trees_all_close((packed, unpack_all(state)), (plain, plain_state), rtol=1e-6)
    chex.assert_trees_all_equal_dtypes(unpack_all(state), plain_state)


def test_large_leaves_are_not_copied():
    packed = pack({"large": jnp.ones(LARGEST + 1), "limit": jnp.ones(LARGEST), "small": jnp.ones(3)})
    assert sorted(b.size for b in packed.buffers) == [LARGEST + 1, LARGEST + 3]


@pytest.mark.parametrize("size", [5, 9])
@pytest.mark.parametrize("maybe_jit", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_buffer_that_does_not_fit_is_refused(size, maybe_jit):
    packed = pack({"a": jnp.ones(3), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=rf"\(6,\), got \({size},\)"):
        maybe_jit(unpack)(Packed((jnp.ones(size),), packed.layout))
