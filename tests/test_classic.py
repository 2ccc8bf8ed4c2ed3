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


@jax.jit
def golden_run(optimizer, params, gradients, epochs):
    def scanned(carry, xs):
        params, state = carry
        gradient, epoch = xs
        updates, state = optimizer.update(gradient, state, params, epoch=epoch)
        params = apply_updates(params, updates)
        delta = jax.tree.map(jnp.negative, updates)
        return (params, state), (delta, params, state.learning_rate)

    (_, state), outputs = jax.lax.scan(scanned, (params, optimizer.init(params)), (gradients, epochs))
    return *outputs, state


@each_golden("cases")
def test_scan_replays_the_golden_run(case):
    group, name, optimizer = case["group"], case["id"], classic_optimizer(case)
    start = row(golden(group, name, "param"), 0)
    epochs = GOLDEN[group][f"{name}/epoch"]

    deltas, params, rates, state = golden_run(optimizer, start, golden(group, name, "grad"), epochs)

    assert_golden_deltas(deltas, case)
    assert_golden_parameters(jax.tree.map(lambda p0, p: np.concatenate([p0[None], p]), start, params), case)
    np.testing.assert_allclose(rates, GOLDEN[group][f"{name}/eff_lr"], rtol=5e-7)
    assert int(state.step) == case["steps"]
    for moment in ("mean", "mean_square"):
        assert hasattr(state, moment) == (f"{name}/final_{moment}/layers/0/loc" in GOLDEN[group])
        if hasattr(state, moment):
            assert_golden_moment(getattr(state, moment), case, f"final_{moment}")


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


@pytest.mark.parametrize("maybe_jit", [jax.jit, lambda f: f], ids=["jit", "no jit"])
@each_golden("magnitude")
def test_gradient_magnitude_is_the_golden_one(case, maybe_jit):
    tree, magnitude = golden_magnitude_tree(case), maybe_jit(gradient_magnitude)
    if case["raises"]:
        with pytest.raises({"ZeroDivisionError": ZeroDivisionError, "TypeError": TypeError}[case["raises"]]):
            magnitude(tree)
    else:
        result = magnitude(tree)
        chex.assert_shape(result, ())
        chex.assert_type(result, jnp.float32)
        assert_golden_magnitude(float(result), float(case["value_text"]), tree)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e19, 1e30])
def test_gradient_magnitude_neither_overflows_nor_vanishes(size):
    tree = jax.tree.map(lambda x: size * x, rbm_tree())
    np.testing.assert_allclose(gradient_magnitude(tree), magnitude64(tree), rtol=1e-6)


@pytest.mark.parametrize(
    ("limit", "same"),
    [
        (classic.momentum(0.1, momentum=0.0), classic.sgd(0.1)),
        (classic.rmsprop(0.1, mean_square_weight=0.0), classic.sgd(0.1)),
        (classic.adam(0.1, mean_weight=0.0), classic.rmsprop(0.1, mean_square_weight=0.999)),
        (classic.adam(0.1, mean_square_weight=0.0), classic.momentum(0.1)),
        (classic.adam(0.1, mean_weight=0.0, mean_square_weight=0.0), classic.sgd(0.1)),
    ],
    ids=["momentum", "rmsprop", "adam mean", "adam mean square", "adam both"],
)
def test_a_weight_of_zero_is_the_limit(limit, same):
    params = rbm_tree()
    g = gradients(params, 10, decades=(-4, 19))
    expected, _, _ = run(same, params, g)
    assert_runs_close(run(limit, params, g)[0], expected, 1e-6)
    closed_over, _, _ = jax.jit(lambda params, g: run(limit, params, g))(params, g)
    assert_runs_close(closed_over, expected, 1e-6)


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
    g = jax.tree.map(lambda p: jnp.broadcast_to(100 * p, (5, *p.shape)), params)
    direction = g if isinstance(optimizer, classic.momentum) else jax.tree.map(jnp.sign, g)
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
