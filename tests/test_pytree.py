"""Declared fields: their values, the values they reject, and their `help`."""

import dataclasses
import pydoc
import re
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paysage_jax import (
    adam,
    classic,
    clip_by_global_norm,
    exponential_average,
    exponential_decay,
    momentum,
    power_law_decay,
    sgd,
    track_convergence,
    warmup,
)
from paysage_jax._core.pytree import function
from paysage_jax.extend import Leafwise, Number, Pytree, count, number, static
from paysage_jax.states import SgdState
from tests.helpers.problems import OPTIMIZERS, each


class Box(Pytree):
    """One field of each kind."""

    inside: Number = number("[0, 1)", default=0.5)
    positive: Number = number("(0, inf]", default=1.0)
    maybe: Number | None = number(default=None)
    times: int = count(default=1)
    fixed: int = count(default=2, static=True)
    name: str = static(default="box")


def refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- intervals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.array, jnp.float32], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [("inside", 0.0, 1.0), ("inside", 0.99, -0.01), ("positive", np.inf, 0.0), ("positive", 1e-30, -1.0)],
)
def test_an_interval_holds_for_every_kind_of_number(kind, field, good, bad):
    assert float(getattr(Box(**{field: kind(good)}), field)) == np.float32(good) or kind in (float, np.float64)
    for value in (bad, np.nan):
        refuses(lambda value=value: Box(**{field: kind(value)}), ValueError, f"Box: {field} must be in")


@pytest.mark.parametrize("wrong", ["1", None, 1j, True, [0.5], jnp.array(1j), jnp.array(True), {}])
def test_an_argument_that_is_not_a_number_is_rejected(wrong):
    refuses(lambda: Box(inside=wrong), TypeError, r"Box: inside must be a number in \[0, 1\), got")


def test_every_element_of_an_array_is_checked():
    Box(inside=jnp.array([0.1, 0.9]))
    refuses(lambda: Box(inside=jnp.array([0.1, 1.0])), ValueError, "inside must be in")


@pytest.mark.parametrize("wrong", [2.5, 2.0, np.float32(2.0), jnp.array(2.0), "2", True])
def test_a_count_is_a_whole_number(wrong):
    refuses(lambda: Box(times=wrong), TypeError, "Box: times must be a positive integer")
    refuses(
        lambda: power_law_decay(0.1, steps_per_epoch=wrong), TypeError, "steps_per_epoch must be a positive integer"
    )
    refuses(lambda: track_convergence(1.0, patience=wrong), TypeError, "patience must be a positive integer")
    refuses(lambda: warmup(1.0, wrong), TypeError, "steps must be a positive integer")


def test_a_function_is_structure_and_checked():
    class Rule(Pytree):
        apply: Callable = function()
        maybe: Callable | None = function(default=None)

    assert jax.tree.leaves(Rule(jnp.abs)) == []
    assert Rule(jnp.abs) == Rule(jnp.abs)
    refuses(lambda: Rule(None), TypeError, "Rule: apply must be a function, got None")
    refuses(lambda: Rule(jnp.abs, 5), TypeError, "Rule: maybe must be a function, got 5")


def test_a_static_count_is_checked_and_is_structure():
    refuses(lambda: Box(fixed=0), ValueError, "fixed must be a positive integer, got 0")
    assert jax.tree.leaves(Box(fixed=3)) == [0.5, 1.0, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: adam(0.1, b2=1 - 1e-9),
        lambda: momentum(0.1, decay=1 - 1e-9),
        lambda: exponential_average(1 - 1e-8),
        lambda: sgd(1e39),
        lambda: exponential_decay(1e39),
        lambda: clip_by_global_norm(1e-60),
    ],
)
def test_a_number_is_checked_as_it_will_be_used(make):
    """In float32, 1 - 1e-9 is 1 and 1e39 is infinite."""
    refuses(make, ValueError, "must be in .*, which is .* in float32")


def test_a_number_is_checked_in_the_dtype_of_the_moments():
    with jax.enable_x64(True):
        optimizer = adam(0.1, b2=1 - 1e-9)
        optimizer.init({"w": jnp.ones(2, jnp.float64)})
        refuses(lambda: optimizer.init({"w": jnp.ones(2, jnp.float32)}), ValueError, "b2 must be in .* in float32")


# --- leaves and structure ----------------------------------------------------------------------------


def test_none_is_absent_and_a_value_is_a_leaf():
    assert jax.tree.leaves(Box()) == [0.5, 1.0, 1]
    assert jax.tree.leaves(Box(maybe=0.0)) == [0.5, 1.0, 0.0, 1]
    with pytest.raises(ValueError, match=r"weight_decay|Expected None, got 0\.1"):  # jax 0.9 does not name the field
        jax.tree.map(jnp.add, adam(1e-3), adam(1e-3, weight_decay=0.1))


def test_numbers_of_any_kind_are_traced_once():
    traces = []

    @jax.jit
    def f(optimizer):
        traces.append(optimizer)
        return optimizer.learning_rate

    for value in (0.1, 1, np.float32(0.2), np.float64(0.3), np.int64(2)):
        f(sgd(value))
    assert len(traces) == 1


def test_a_numpy_array_is_copied():
    value = np.array(0.5, np.float32)
    box = Box(inside=value)
    value[...] = 0.1
    assert box.inside == 0.5


def test_a_foreign_schedule_is_structure():
    schedule = optax.constant_schedule(0.1)
    assert jax.tree.leaves(sgd(schedule)) == []
    assert sgd(schedule) == sgd(schedule)
    assert sgd(schedule).learning_rate(3, epoch=2) == 0.1


def test_a_class_in_place_of_its_object_is_named():
    refuses(lambda: sgd(power_law_decay), TypeError, "got the class power_law_decay: call it")


def test_an_optimizer_needs_a_rate():
    def declare():
        class wrong(Leafwise):
            speed: Number = number()
            state_type = SgdState

            def rule(self, t, g, p):
                return (g,)

    refuses(declare, TypeError, "wrong: expected one field declared by `rate`")


def test_a_subclass_may_be_made_inside_jit():
    @jax.jit
    def f(x):
        return adam(x, b1=x).b1

    assert f(2.0) == 2.0  # a tracer: not yet known


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sgd(0.1).learning_rate = 0.2


def test_a_users_own_pytree():
    class Line(Pytree):
        slope: Number = number()
        name: str = static(default="line")

        def __call__(self, x):
            return self.slope * x

    line = Line(2.0, name="steep")
    assert jax.tree.leaves(line) == [2.0]
    assert jax.jit(lambda line, x: line(x))(line, 3.0) == 6.0
    assert jax.grad(lambda line: line(3.0))(line) == Line(3.0, name="steep")
    chex.assert_trees_all_equal(jax.vmap(lambda line: line(3.0))(Line(jnp.arange(3.0))), 3 * jnp.arange(3.0))


# --- what `help` shows -------------------------------------------------------------------------------


@each(OPTIMIZERS)
def test_help_shows_signature_equation_and_arguments(optimizer):
    kind = type(optimizer)
    text = pydoc.plain(pydoc.render_doc(kind))
    name = "stepsize" if kind.__module__ == classic.__name__ else "learning_rate"
    assert re.search(rf"{kind.__name__}\([\s|]*{name}: 'Number \| Schedule'", text)  # Python 3.13 breaks the line
    assert "u = -" in text
    assert f"{name}: a nonnegative number, or a schedule." in text
