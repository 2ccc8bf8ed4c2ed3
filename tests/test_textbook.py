"""The textbook optimizers: against optax, against their equations in float64, and the laws they obey.

What holds for every optimizer is asked of the 2017 ones too.
"""

import functools
import math
import pickle
from dataclasses import replace
from functools import partial

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from hypothesis import given

from paysage_jax import adam, apply_updates, classic, exponential_decay, momentum, power_law_decay, rmsprop, sgd, warmup
from tests.helpers.problems import (
    OPTIMIZERS,
    TEXTBOOK,
    assert_runs_close,
    each,
    gradients,
    rbm_tree,
    row,
    run,
    shaped,
    step,
)

PARAMS = rbm_tree()


def each_name(names):
    return pytest.mark.parametrize("name", names)


# Ten small programs take several times as long to compile as one that has them all.


def together(function):
    """function(optimizer, *args) of every optimizer of a dictionary, as one program."""

    @jax.jit
    def of_all(optimizers, *args):
        return {name: function(optimizer, *args) for name, optimizer in optimizers.items()}

    return of_all


run_all = together(run)


# --- against independent sources ---------------------------------------------------------------------


class FirstSteps(chex.TestCase):
    """By hand: two steps on the gradients 0.5 and -4, with learning rate 0.1."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.named_parameters(
        ("sgd", sgd(0.1), -0.05, 0.4),
        ("momentum", momentum(0.1, decay=0.5), -0.05, 0.375),
        ("nesterov", momentum(0.1, decay=0.5, nesterov=True), -0.075, 0.5875),
        ("rmsprop", rmsprop(0.1, decay=0.75), -0.2, 0.4 / math.sqrt(0.25 * 16 + 0.75 * 0.0625)),
        ("adam", adam(0.1, b1=0.5, b2=0.75), -0.1, 0.25 / math.sqrt((4 + 0.75 * 0.0625) / 0.4375)),
        ("adamw", adam(0.1, b1=0.5, weight_decay=0.5), -0.1 - 0.1, None),
    )
    def test_first_steps(self, optimizer, first, second):
        one_step = self.variant(step)
        params = jnp.float32(2.0)
        updates, state, params = one_step(optimizer, jnp.float32(0.5), optimizer.init(params), params)
        np.testing.assert_allclose(updates, first, rtol=1e-6)
        np.testing.assert_allclose(params, 2 + first, rtol=1e-6)
        if second is not None:
            updates, state, params = one_step(optimizer, jnp.float32(-4.0), state, params)
            np.testing.assert_allclose(updates, second, rtol=1e-6)


IN_OPTAX = {
    "sgd": (sgd, optax.sgd),
    "momentum": (partial(momentum, decay=0.9), partial(optax.sgd, momentum=0.9)),
    "nesterov": (partial(momentum, decay=0.8, nesterov=True), partial(optax.sgd, momentum=0.8, nesterov=True)),
    "rmsprop": (partial(rmsprop, decay=0.95, eps=1e-6), partial(optax.rmsprop, decay=0.95, eps=1e-6)),
    "rmsprop defaults": (rmsprop, optax.rmsprop),
    "adam": (partial(adam, b1=0.8, b2=0.99, eps=1e-6), partial(optax.adam, b1=0.8, b2=0.99, eps=1e-6)),
    "adam defaults": (adam, optax.adam),
    "adam without b1": (partial(adam, b1=0.0), partial(optax.adam, b1=0.0)),
    "adamw": (partial(adam, weight_decay=0.1), partial(optax.adamw, weight_decay=0.1)),
}


def optax_run(optimizer, params, gradients):
    def scanned(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), updates

    (params, _), updates = jax.lax.scan(scanned, (params, optimizer.init(params)), gradients)
    return updates, params


@functools.cache
def runs_here_and_in_optax(*dtypes):
    """{case: (updates, state, parameters)} of ours, and {case: (updates, parameters)} of optax.

    50 steps, gradients over five decades; with several dtypes, every leaf in each of them.
    """
    with jax.enable_x64("complex128" in dtypes):
        if dtypes:
            start, g = row(complex_gradients(PARAMS, 1), 0), complex_gradients(PARAMS, 50)
            start, g = ({d: jax.tree.map(lambda x, d=d: np.asarray(x, d), tree) for d in dtypes} for tree in (start, g))
        else:
            start, g = PARAMS, gradients(PARAMS, 50)
        ours = run_all({name: our(0.03) for name, (our, _) in IN_OPTAX.items()}, start, g)
        with jax.numpy_dtype_promotion("standard"):  # optax is not written for strict promotion
            theirs = jax.jit(lambda p, g: {name: optax_run(o(0.03), p, g) for name, (_, o) in IN_OPTAX.items()})
            return ours, theirs(start, g)


@each_name(IN_OPTAX)
def test_agrees_with_optax(name):
    ours, theirs = runs_here_and_in_optax()
    (updates, _, params), (expected, expected_params) = ours[name], theirs[name]
    assert_runs_close(updates, expected, 2e-5)
    chex.assert_trees_all_close(params, expected_params, atol=2e-5)


def complex_gradients(like, steps):
    real, imaginary = gradients(like, steps, seed=1), gradients(like, steps, seed=2)
    return jax.tree.map(jax.lax.complex, real, imaginary)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@each_name(IN_OPTAX)
def test_agrees_with_optax_on_complex_parameters(name, dtype):
    """Our mean squares are real; optax keeps their imaginary zeros."""
    ours, theirs = runs_here_and_in_optax("complex64", "complex128")
    updates, state, after = ours[name]
    updates, after = updates[dtype], after[dtype]
    chex.assert_type(jax.tree.leaves((updates, after)), jnp.dtype(dtype))
    real = jnp.finfo(dtype).dtype
    for moment in set(state._fields) & {"mean", "mean_square"}:
        moments = jax.tree.leaves(getattr(state, moment)[dtype])
        chex.assert_type(moments, real if moment == "mean_square" else jnp.dtype(dtype))
    expected, expected_after = (tree[dtype] for tree in theirs[name])
    tolerance = 2e-5 if dtype == "complex64" else 1e-12
    assert_runs_close(updates, expected, tolerance)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=tolerance), after, expected_after)


def test_the_conjugate_of_what_jax_grad_gives_descends():
    """A real loss of complex parameters. jax.grad itself would climb along the imaginary axis."""
    target = np.array([1 + 2j, -0.5j, 0.3], np.complex64)

    def loss(p):
        return jnp.sum(jnp.abs(p - target) ** 2)

    @together
    def trained(optimizer):
        def scanned(direction, carry, _):
            params, state = carry
            _, state, params = step(faster, direction(jax.grad(loss)(params)), state, params)
            return (params, state), None

        faster = replace(optimizer, **{optimizer.rate_name: 0.05})
        start = jnp.zeros(3, jnp.complex64), faster.init(target)
        down, as_it_is = (
            jax.lax.scan(partial(scanned, direction), start, length=300)[0][0] for direction in (jnp.conj, lambda g: g)
        )
        return loss(down), loss(as_it_is)

    at_start = np.sum(np.abs(target) ** 2)
    for name, (down, as_it_is) in trained(OPTIMIZERS).items():
        assert down < 0.02 * at_start, name
        assert not as_it_is <= at_start, name  # NaN, if it has run that far


def test_a_complex_parameter_with_real_gradients_is_a_real_one():
    def as_complex(tree):
        return jax.tree.map(lambda x: np.asarray(x, np.complex64), tree)

    runs, complex_runs = six_steps(), run_all(OPTIMIZERS, as_complex(START), as_complex(SIX))
    for name, (expected, state, _) in runs.items():
        updates, complex_state, _ = jax.tree.map(np.asarray, complex_runs[name])
        assert_runs_close(jax.tree.map(np.real, (updates, complex_state[2:])), (expected, state[2:]), 2e-6)
        assert_runs_close(jax.tree.map(np.imag, updates), jax.tree.map(np.zeros_like, expected), 0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_agrees_with_optax_on_its_schedule(name):
    (ours, theirs), g, schedule = IN_OPTAX[name], gradients(PARAMS, 30), optax.cosine_decay_schedule(0.03, 40)
    with jax.numpy_dtype_promotion("standard"):
        updates, state, _ = run(ours(schedule), PARAMS, g)
        assert_runs_close(updates, optax_run(theirs(schedule), PARAMS, g)[0], 2e-5)
    np.testing.assert_allclose(state.learning_rate, 0.015 * (1 + math.cos(math.pi * 29 / 40)), rtol=1e-5)


def equations(optimizer, g, p):
    """The updates of a run in float64, from the sums that the recursions of the papers compute."""
    t = np.arange(1, len(g) + 1)
    column = t.reshape(-1, *[1] * (g.ndim - 1))

    def discounted_sum(x, decay):
        """Σₛ decayᵗ⁻ˢ xₛ over the steps s up to t."""
        return np.tensordot(np.tril(decay ** np.maximum(t[:, None] - t, 0)), x, 1)

    o = optimizer
    match optimizer:
        case sgd():
            direction = g
        case momentum():
            m = discounted_sum(g, o.decay)
            direction = o.decay * m + g if o.nesterov else m
        case rmsprop():
            direction = g / np.sqrt((1 - o.decay) * discounted_sum(g**2, o.decay) + o.eps)
        case adam():
            m_hat = (1 - o.b1) * discounted_sum(g, o.b1) / (1 - o.b1**column)
            v_hat = (1 - o.b2) * discounted_sum(g**2, o.b2) / (1 - o.b2**column)
            direction = m_hat / (np.sqrt(v_hat) + o.eps)
    updates = np.empty_like(g)
    for i in range(len(g)):
        updates[i] = -o.learning_rate * (direction[i] + (getattr(o, "weight_decay", None) or 0.0) * p)
        p = p + updates[i]
    return updates


@functools.cache
def fifty_steps(x64):
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        start, g = (jax.tree.map(lambda x: np.asarray(x, dtype), tree) for tree in (PARAMS, gradients(PARAMS, 50)))
        return start, g, run_all(TEXTBOOK, start, g)


@each_name(TEXTBOOK)
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 3e-6), (True, 1e-12)], ids=["float32", "float64"])
def test_agrees_with_the_equations(name, x64, tolerance):
    start, g, runs = fifty_steps(x64)
    updates, state, _ = runs[name]
    expected = jax.tree.map(lambda g, p: equations(TEXTBOOK[name], np.float64(g), np.float64(p)), g, start)
    assert_runs_close(updates, expected, tolerance)
    for leaf in jax.tree.leaves((updates, state[1:])):
        chex.assert_type(leaf, jnp.float64 if x64 else jnp.float32)


# --- laws --------------------------------------------------------------------------------------------

START = shaped({"layers": [{"loc": (3,)}], "weights": [{"matrix": (3, 2)}]}, lambda s: np.ones(s, np.float32))
SIX = jax.tree.map(np.asarray, gradients(START, 6))


@functools.cache
def six_steps():
    """{optimizer: (updates, state, parameters)}"""
    return jax.tree.map(np.asarray, run_all(OPTIMIZERS, START, SIX))


def six_gradients():
    """Six steps of gradients in the tree of START: zero, or with magnitudes between 1e-3 and 1e3."""
    sizes = st.floats(2.0**-10, 1e3, width=32)
    elements = st.one_of(st.just(0.0), sizes, sizes.map(lambda x: -x))

    def draw(shape):
        return hnp.arrays(np.float32, (6, *shape), elements=elements)

    return st.tuples(draw((3,)), draw((3, 2))).map(lambda g: {"layers": [{"loc": g[0]}], "weights": [{"matrix": g[1]}]})


LINEAR = {name: o for name, o in OPTIMIZERS.items() if isinstance(o, sgd | momentum | classic.sgd | classic.momentum)}
SCALE_FREE = {
    "rmsprop": rmsprop(0.01, eps=1e-30),
    "adam": adam(0.01, eps=0.0),
    "adam b1": adam(0.01, b1=0.3, eps=1e-30),
}


def times(tree, factor):
    return jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), tree)


def updates_without_decay(g):
    return {name: updates for name, (updates, *_) in run_all(OPTIMIZERS, START, g).items() if name != "adamw"}


def test_zero_gradients_give_zero_updates():
    for updates in updates_without_decay(times(SIX, 0)).values():
        chex.assert_trees_all_equal(updates, times(SIX, 0))


@given(g=six_gradients())
def test_the_opposite_gradient_gives_the_opposite_update(g):
    chex.assert_trees_all_equal(updates_without_decay(times(g, -1)), times(updates_without_decay(g), -1))


@given(g=six_gradients(), factor=st.floats(1e-3, 1e3))
def test_scaling_the_loss_scales_a_linear_update(g, factor):
    scaled_loss, plain = run_all(OPTIMIZERS, START, times(g, factor)), run_all(OPTIMIZERS, START, g)
    for name in LINEAR:
        assert_runs_close(scaled_loss[name][0], times(plain[name][0], factor), 2e-6)


@given(g=six_gradients(), factor=st.floats(1e-3, 1e3))
def test_scaling_the_loss_leaves_a_normalised_update(g, factor):
    g = jax.tree.map(lambda x: np.where(x == 0, np.float32(1), x), g)  # 0 / 0 without eps
    scaled_loss, plain = run_all(SCALE_FREE, START, times(g, factor)), run_all(SCALE_FREE, START, g)
    for name in SCALE_FREE:
        assert_runs_close(scaled_loss[name][0], plain[name][0], 5e-6)


@given(g=six_gradients())
def test_leaves_are_updated_independently(g):
    """The same leaves in another order, and under other names, get the same updates."""

    def renamed(tree):
        return {"b": tree["layers"][0]["loc"], "a": tree["weights"][0]["matrix"]}

    other, same = run_all(OPTIMIZERS, renamed(START), renamed(g)), run_all(OPTIMIZERS, START, g)
    for name in OPTIMIZERS:
        assert_runs_close(other[name][0], renamed(same[name][0]), 1e-6)


# --- one run, many ways ------------------------------------------------------------------------------


def step_all(optimizers, gradient, states, params):
    """Dictionaries of the updates, the states and the parameters after one step."""
    after = {name: step(o, gradient, states[name], params[name]) for name, o in optimizers.items()}
    return tuple({name: results[i] for name, results in after.items()} for i in range(3))


def loop(one_step):
    """The updates of a Python loop over the steps, stacked like those of a scan."""
    states = {name: optimizer.init(START) for name, optimizer in OPTIMIZERS.items()}
    params, collected = {name: jax.tree.map(jnp.array, START) for name in OPTIMIZERS}, []
    for t in range(6):
        updates, states, params = one_step(row(SIX, t), states, params)
        collected.append(jax.tree.map(np.asarray, updates))
    return jax.tree.map(lambda *u: np.stack(u), *collected)


jitted_step = jax.jit(step_all)


def loop_without_jit():
    return loop(partial(step_all, OPTIMIZERS))


@functools.cache
def loop_with_jit():
    return loop(partial(jitted_step, OPTIMIZERS))


def closed_over():
    return loop(jax.jit(partial(step_all, OPTIMIZERS)))


def donated():
    return loop(partial(jax.jit(step_all, donate_argnames=("states", "params")), OPTIMIZERS))


def pickled_at_every_step():
    def one_step(gradient, states, params):
        return jitted_step(OPTIMIZERS, gradient, *pickle.loads(pickle.dumps((states, params))))

    return loop(one_step)


def continued():
    """Interrupted after three steps, and continued from NumPy copies of the state and the parameters."""

    @jax.jit
    def three_steps(optimizers, params, g, states):
        return {name: run(o, params[name], g, states[name]) for name, o in optimizers.items()}

    states = {name: optimizer.init(START) for name, optimizer in OPTIMIZERS.items()}
    params, parts = dict.fromkeys(OPTIMIZERS, START), []
    for part in (slice(3), slice(3, None)):
        states, params = jax.tree.map(np.array, (states, params))
        runs = three_steps(OPTIMIZERS, params, jax.tree.map(lambda x, part=part: x[part], SIX), states)
        updates, states, params = ({name: results[i] for name, results in runs.items()} for i in range(3))
        parts.append(updates)
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), *parts)


def vmapped():
    """The second of three models that are trained in a vmap."""
    batch = jax.tree.map(lambda p: np.stack([-p, p, 2 * p]), START)
    many = jax.tree.map(lambda x: np.stack([x[::-1], x, 3 * x]), SIX)
    runs = jax.vmap(run_all, in_axes=(None, 0, 0))(OPTIMIZERS, batch, many)
    return {name: jax.tree.map(lambda x: np.asarray(x)[1], updates) for name, (updates, *_) in runs.items()}


WAYS = [loop_without_jit, loop_with_jit, closed_over, donated, pickled_at_every_step, continued, vmapped]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_same_run(way):
    made = way()
    assert made.keys() == OPTIMIZERS.keys()
    for name, updates in made.items():
        assert_runs_close(updates, six_steps()[name][0], 2e-6)
    if way in (donated, pickled_at_every_step):
        chex.assert_trees_all_equal(made, loop_with_jit())


# --- hyperparameters are data ------------------------------------------------------------------------

SCHEDULED = {
    "scheduled": momentum(power_law_decay(0.1, 0.5, 2)),
    "warmed up": adam(warmup(exponential_decay(0.1, 0.5, 2), 3)),
    "classic scheduled": classic.adam(power_law_decay(0.1, 0.5, 2)),
}


@each(OPTIMIZERS | SCHEDULED)
def test_new_hyperparameters_cause_no_new_trace(optimizer):
    one_step = jax.jit(chex.assert_max_traces(step, n=1))
    leaves, structure = jax.tree.flatten(optimizer)
    for i, leaf in enumerate(leaves):
        changed = [*leaves[:i], 2 * leaf if isinstance(leaf, int) else leaf / 2, *leaves[i + 1 :]]
        one_step.trace(structure.unflatten(changed), PARAMS, optimizer.init(PARAMS), PARAMS)
    other = rbm_tree(visible=5)
    with pytest.raises(AssertionError, match="traced > 1"):
        one_step.trace(optimizer, other, optimizer.init(other), other)


def test_a_sweep_of_learning_rates_is_as_many_runs():
    """16 learning rates in one vmap."""

    def at(rate):
        return {name: replace(optimizer, **{optimizer.rate_name: rate}) for name, optimizer in OPTIMIZERS.items()}

    rates = np.geomspace(1e-4, 1.0, 16, dtype=np.float32)
    sweep = jax.jit(jax.vmap(lambda rate: run_all(at(rate), START, SIX)))(rates)
    for i, rate in enumerate(rates):
        runs = run_all(at(rate), START, SIX)
        for name, (updates, state, _) in runs.items():
            swept, swept_state, _ = sweep[name]
            assert_runs_close(jax.tree.map(lambda x, i=i: np.asarray(x)[i], swept), updates, 2e-6)
            assert swept_state.learning_rate[i] == state.learning_rate == rate


# Each equation and each hyperparameter once.
DIFFERENTIATED = ("nesterov", "rmsprop", "adamw", "classic_momentum", "classic_rmsprop", "classic_adam", "warmed up")


def with_floats(optimizer, values):
    """The optimizer with these values in place of its floating leaves."""
    values = iter(values)
    return jax.tree.map(lambda leaf: next(values) if isinstance(leaf, float) else leaf, optimizer)


def loss_after_five_steps(optimizer, values):
    trained, params = with_floats(optimizer, values), jnp.array([0.5, -0.7, 2.0])

    def scanned(carry, _):
        params, state = carry
        _, state, params = step(trained, params**3 - 1, state, params)
        return (params, state), None

    (params, _), _ = jax.lax.scan(scanned, (params, trained.init(params)), length=5)
    return jnp.sum(params**4 / 4 - params)


def test_derivatives_by_every_hyperparameter():
    """The loss after a run can be differentiated by the optimizer itself; central differences agree."""
    optimizers = {name: (OPTIMIZERS | SCHEDULED)[name] for name in DIFFERENTIATED}
    for name, optimizer in optimizers.items():
        if hasattr(optimizer, "eps"):
            optimizers[name] = replace(optimizer, eps=0.1)  # of a size that matters

    @jax.jit
    def differentiated(values, shifted):
        losses = {name: partial(loss_after_five_steps, optimizer) for name, optimizer in optimizers.items()}
        derivatives = {name: jax.grad(loss)(values[name]) for name, loss in losses.items()}
        return derivatives, {name: jax.vmap(jax.vmap(loss))(shifted[name]) for name, loss in losses.items()}

    with jax.enable_x64(True):
        values, shifted = {}, {}
        for name, optimizer in optimizers.items():
            values[name] = np.array([leaf for leaf in jax.tree.leaves(optimizer) if isinstance(leaf, float)])
            shifts = np.diag(1e-6 * values[name])
            shifted[name] = values[name] + np.stack([-shifts, shifts])
        derivatives, losses = differentiated(values, shifted)
        for name, (down, up) in losses.items():
            slopes = (up - down) / (2e-6 * values[name])
            np.testing.assert_allclose(derivatives[name], slopes, rtol=1e-5, atol=1e-6, err_msg=name)
            assert np.all(np.abs(derivatives[name]) > 1e-3), name


@pytest.mark.parametrize("name", ["b1", "b2"])
def test_the_derivative_by_a_weight_at_zero_is_the_limit(name):
    def after_two_steps(b):
        optimizer = adam(0.1, **{"b1": 0.5, "b2": 0.5, name: b})
        return jnp.sum(run(optimizer, jnp.zeros(2), jnp.array([[1.0, 2.0], [0.5, -3.0]]))[2])

    at_zero, nearby = jax.grad(after_two_steps)(0.0), jax.grad(after_two_steps)(1e-4)
    assert abs(nearby) > 1e-3
    np.testing.assert_allclose(at_zero, nearby, rtol=1e-2)


@each({name: OPTIMIZERS[name] for name in ("rmsprop", "adam", "classic_rmsprop", "classic_adam")})
def test_an_element_without_gradient_spoils_no_derivative(optimizer):
    """Dead pixels are common: their mean square is zero, where a root has no derivative."""

    @jax.jit
    @jax.grad
    def derivative(rate, inputs):
        trained, params = replace(optimizer, **{optimizer.rate_name: rate}), jnp.array([1.0, 2.0])
        state = trained.init(params)
        for _ in range(2):
            _, state, params = step(trained, (jnp.sum(inputs * params) - 3) * inputs, state, params)
        return jnp.sum(params)

    dead = derivative(0.1, jnp.array([1.0, 0.0]))
    nearly_dead = derivative(0.1, jnp.array([1.0, 1e-15]))
    assert jnp.isfinite(dead)
    np.testing.assert_allclose(dead, nearly_dead, rtol=1e-4)


# --- state -------------------------------------------------------------------------------------------

FIELDS = {
    "sgd": ("step", "learning_rate"),
    "momentum": ("step", "learning_rate", "mean"),
    "rmsprop": ("step", "learning_rate", "mean_square"),
    "adam": ("step", "learning_rate", "mean", "mean_square"),
}


@each(OPTIMIZERS)
def test_the_state_has_its_documented_fields(optimizer):
    state = optimizer.init(START)
    assert state._fields == FIELDS[type(optimizer).__name__]
    assert state.step == 0
    chex.assert_type([state.step, state.learning_rate], [jnp.int32, jnp.float32])
    chex.assert_shape([state.step, state.learning_rate], ())
    for moment in state[2:]:
        chex.assert_trees_all_equal(moment, jax.tree.map(jnp.zeros_like, START))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    (after,) = (six_steps()[name][1] for name, o in OPTIMIZERS.items() if o is optimizer)
    assert after.step == 6
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@each(SCHEDULED)
def test_the_state_holds_the_learning_rate_that_was_applied(optimizer):
    schedule = getattr(optimizer, optimizer.rate_name)
    state = optimizer.init(PARAMS)
    assert state.learning_rate == schedule(0)
    for t in range(25):
        _, state = optimizer.update(PARAMS, state, PARAMS)
        assert state.learning_rate == schedule(t)
        assert state.step == t + 1


def test_the_step_stays_at_the_largest_integer():
    optimizers = OPTIMIZERS | SCHEDULED
    states = {name: o.init(START)._replace(step=np.int32(2**31 - 2)) for name, o in optimizers.items()}
    for _ in range(2):
        updates, states, _ = jitted_step(optimizers, START, states, dict.fromkeys(optimizers, START))
        assert {int(state.step) for state in states.values()} == {2**31 - 1}
        chex.assert_tree_all_finite((updates, states))


DTYPES = ("bfloat16", "float16", "float32")
PAIRS = {f"{p} with {g}": (p, g) for p in DTYPES for g in DTYPES}
MIXED = {name: PAIRS[name] for name in ("bfloat16 with float16", "float16 with float32", "float32 with bfloat16")}


@jax.jit
def run_without_params(optimizer, params, gradients):
    def scanned(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state)
        return (apply_updates(params, updates), state), updates

    (params, state), updates = jax.lax.scan(scanned, (params, optimizer.init(params)), gradients)
    return updates, state, params


WITH_AND_WITHOUT = {name: (optimizer, run) for name, optimizer in OPTIMIZERS.items()} | {
    f"{name} without params": (OPTIMIZERS[name], run_without_params) for name in ("sgd", "adam")
}


# Every dtype on both sides for all, every pair for Adam.
DRIFTS = [
    pytest.param(*case, pairs, id=name + suffix, marks=[pytest.mark.slow] * (pairs is PAIRS and name != "adam"))
    for pairs, suffix in ((MIXED, ""), (PAIRS, ", every pair"))
    for name, case in WITH_AND_WITHOUT.items()
]


@pytest.mark.slow_unless("nesterov", "adamw", "classic_adam", "sgd without params", "adam, every pair")
@pytest.mark.parametrize(("optimizer", "run_either", "pairs"), DRIFTS)
def test_dtypes_never_drift(optimizer, run_either, pairs):
    """100 scanned steps with parameters and gradients of pairs of dtypes, all in one tree.

    Moments and arithmetic are at least float32: the updates equal those of float32, rounded once.
    """
    params = {name: jnp.linspace(0.5, 2.0, 4).astype(p) for name, (p, _) in pairs.items()}
    g = gradients({name: jnp.ones(4, g) for name, (_, g) in pairs.items()}, 100, decades=(-2, 1))
    updates, state, stepped = run_either(optimizer, params, g)
    chex.assert_trees_all_equal_dtypes((state, stepped), (optimizer.init(params), params))
    chex.assert_trees_all_equal_dtypes(updates, params if run_either is run else g)
    chex.assert_type(jax.tree.leaves(state[1:]), jnp.float32)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((updates, state, stepped)))

    if optimizer is not TEXTBOOK["adamw"]:  # whose updates depend on the rounded parameters
        exact, *_ = run(
            optimizer, jnp.ones((len(pairs), 4)), jnp.stack([x.astype("float32") for x in g.values()], axis=1)
        )
        for i, update in enumerate(updates[name] for name in g):
            assert_runs_close(update, exact[:, i], float(jnp.finfo(update.dtype).eps) / 2 + 2e-6)


# --- wrong hyperparameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgd(-0.1), ValueError, r"sgd: learning_rate must be in \[0, inf\), got -0.1"),
        (lambda: sgd(float("inf")), ValueError, "sgd: learning_rate must be in"),
        (lambda: sgd("0.1"), TypeError, "sgd: learning_rate must be a number"),
        (lambda: sgd(None), TypeError, "sgd: learning_rate must be a number"),
        (lambda: momentum(float("nan")), ValueError, "momentum: learning_rate must be in"),
        (lambda: momentum(0.1, decay=1.0), ValueError, r"momentum: decay must be in \[0, 1\), got 1.0"),
        (lambda: rmsprop(0.1, decay=-0.1), ValueError, "rmsprop: decay must be in"),
        (lambda: rmsprop(0.1, eps=-1e-8), ValueError, "rmsprop: eps must be in"),
        (lambda: adam(np.array([0.1, -0.1])), ValueError, "adam: learning_rate must be in"),
        (lambda: adam(0.1, b1=1.0), ValueError, "adam: b1 must be in"),
        (lambda: adam(0.1, b2=1.5), ValueError, "adam: b2 must be in"),
        (lambda: adam(0.1, eps=[1e-8]), TypeError, "adam: eps must be a number"),
        (lambda: adam(0.1, weight_decay=-1), ValueError, "adam: weight_decay must be in"),
        (
            lambda: sgd(np.full(16, 0.1)).init(PARAMS),
            ValueError,
            r"learning_rate: expected a scalar, .*\(16,\).*jax.vmap",
        ),
        (lambda: adam(jnp.ones(16)).init(PARAMS), ValueError, r"learning_rate: expected a scalar, .*\(16,\)"),
        (lambda: classic.adam(jnp.ones(16)).init(PARAMS), ValueError, r"stepsize: expected a scalar, .*\(16,\)"),
        (lambda: sgd(lambda step: jnp.ones(2)).init(PARAMS), ValueError, r"learning_rate: expected a scalar, .*\(2,\)"),
        (
            lambda: (adamw := adam(0.1, weight_decay=0.1)).update(PARAMS, adamw.init(PARAMS)),
            ValueError,
            "adam: weight_decay needs the parameters",
        ),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
