"""Schedules against their closed forms in float64, the golden learning rates and optax."""

import pickle
from dataclasses import replace

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from hypothesis import given

from paysage_jax import constant, exponential_decay, linear_decay, per_epoch, power_law_decay, sgd, warmup
from tests.helpers.problems import GOLDEN, each_golden

LAST = 2**31 - 1  # where the step counter stays

# Every schedule with its closed form as a function of the step.
CLOSED_FORMS = {
    "constant": (constant(0.3), lambda s: 0.3 + 0 * s),
    "power_law_decay": (power_law_decay(0.2, 0.5, 10), lambda s: 0.2 / (1 + 0.5 * (s // 10))),
    "exponential_decay": (exponential_decay(0.2, 0.7, 3), lambda s: 0.2 * 0.7 ** (s // 3)),
    "linear_decay": (linear_decay(0.2, 100), lambda s: 0.2 * np.maximum(0, 1 - s / 100)),
    "held": (linear_decay(0.2, 100, hold=0.75), lambda s: 0.2 * np.clip((100 - s) / 25, 0, 1)),
    "rising exponential": (exponential_decay(1e-9, 1.1, 2**28), lambda s: 1e-9 * 1.1 ** (s // 2**28)),
    "per_epoch": (per_epoch(power_law_decay(0.2, 0.5), 10), lambda s: 0.2 / (1 + 0.5 * (s // 10))),
    "warmup of a number": (warmup(0.4, 8), lambda s: 0.4 * np.minimum(1, (s + 1) / 8)),
    "warmup of a schedule": (
        warmup(power_law_decay(0.2, 0.5, 10), 8),
        lambda s: 0.2 / (1 + 0.5 * (s // 10)) * np.minimum(1, (s + 1) / 8),
    ),
}
each_schedule = pytest.mark.parametrize(("schedule", "closed_form"), CLOSED_FORMS.values(), ids=CLOSED_FORMS.keys())
STEPS = np.array([0, 1, 2, 3, 6, 7, 8, 9, 10, 19, 20, 999, 10**6, 2**24 + 1, LAST - 1, LAST])


class ClosedForms(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters((name, *pair) for name, pair in CLOSED_FORMS.items())
    def test_closed_form(self, schedule, closed_form):
        at = self.variant(lambda schedule, step: schedule(step))
        for step in STEPS:
            value = at(schedule, jnp.int32(step))
            chex.assert_shape(value, ())
            chex.assert_type(value, jnp.float32)
            assert not value.weak_type
            np.testing.assert_allclose(value, closed_form(float(step)), rtol=2e-6, atol=1e-37)


@each_schedule
@pytest.mark.parametrize("kind", [int, np.int32, np.int64, jnp.uint32])
def test_any_integer_is_a_step(schedule, closed_form, kind):
    np.testing.assert_allclose(schedule(kind(17)), closed_form(17), rtol=2e-6)


@each_schedule
def test_an_array_of_steps_and_vmap(schedule, closed_form):
    expected = np.broadcast_to(closed_form(STEPS.astype(float)), STEPS.shape)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(STEPS)), expected, rtol=2e-6, atol=1e-37)
    values = schedule(jnp.asarray(STEPS))
    np.testing.assert_allclose(jnp.broadcast_to(values, STEPS.shape), expected, rtol=2e-6, atol=1e-37)


@jax.jit
def evaluated(schedule, step):
    return schedule(step)


@given(
    init_value=st.floats(1e-6, 10),
    decay_rate=st.floats(0, 5),
    steps_per_epoch=st.integers(1, LAST),
    step=st.integers(0, LAST),
)
def test_power_law_decay_anywhere(init_value, decay_rate, steps_per_epoch, step):
    value = evaluated(power_law_decay(init_value, decay_rate, steps_per_epoch), step)
    np.testing.assert_allclose(value, init_value / (1 + decay_rate * (step // steps_per_epoch)), rtol=1e-6)


@given(decay_rate=st.floats(0.5, 1.05), epoch=st.integers(0, 300), steps_per_epoch=st.integers(1, 7_000_000))
def test_exponential_decay_anywhere(decay_rate, epoch, steps_per_epoch):
    """Both the first and the last step of an epoch; rounding decay_rate to float32 is amplified epoch-fold."""
    tolerance = 2e-6 + epoch * 2.0**-24
    for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
        value = evaluated(exponential_decay(0.1, decay_rate, steps_per_epoch), step)
        np.testing.assert_allclose(value, 0.1 * decay_rate**epoch, rtol=tolerance, atol=1e-37)


@each_golden("schedulers")
def test_golden_learning_rates(case):
    schedule = {"PowerLawDecay": power_law_decay, "ExponentialDecay": exponential_decay}[case["cls"]](
        1.0, float(case["lr_decay"])
    )
    epochs, expected = (GOLDEN["schedulers"][f"{case['id']}/{name}"] for name in ("epoch", "lr"))
    for epoch, lr in zip(epochs, expected, strict=True):
        tolerance = 1e-6 + abs(int(epoch)) * 2.0**-24
        np.testing.assert_allclose(evaluated(schedule, int(epoch)), lr, rtol=tolerance, atol=1e-37)


@pytest.mark.parametrize(
    ("schedule", "step", "derivatives"),
    [
        (constant(0.3), 4, {"value": 1}),
        (power_law_decay(0.2, 0.5, 10), 35, {"init_value": 1 / 2.5, "decay_rate": -0.2 * 3 / 2.5**2}),
        (exponential_decay(0.2, 0.7, 10), 35, {"init_value": 0.7**3, "decay_rate": 0.2 * 3 * 0.7**2}),
        (exponential_decay(0.2, 0.0, 10), 5, {"init_value": 1, "decay_rate": 0}),
        (exponential_decay(0.2, 0.0, 10), 15, {"init_value": 0, "decay_rate": 0.2}),
        (warmup(0.2, 10), 3, {"schedule": 0.4}),
    ],
)
def test_derivatives(schedule, step, derivatives):
    def value(numbers):
        return replace(schedule, **numbers)(step)

    gradient = jax.jit(jax.grad(value))({name: getattr(schedule, name) for name in derivatives})
    chex.assert_trees_all_close(gradient, jax.tree.map(np.float32, derivatives), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        constant,
        power_law_decay,
        exponential_decay,
        lambda x: warmup(x, 5),
        lambda x: per_epoch(warmup(constant(x), 5), 2),
    ],
)
def test_many_values_in_one_vmap(make):
    values = jnp.linspace(0.1, 0.9, 4)
    expected = jnp.stack([make(x)(jnp.int32(3)) for x in values])
    chex.assert_trees_all_close(jax.vmap(lambda x: make(x)(jnp.int32(3)))(values), expected, rtol=1e-6)


def test_new_numbers_cause_no_new_trace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def at(schedule, step):
        return schedule(step)

    for init_value, decay_rate, steps_per_epoch in ((0.1, 0.5, 10), (0.2, 0.9, 20)):
        at(warmup(power_law_decay(init_value, decay_rate, steps_per_epoch), steps_per_epoch), 3)
    with pytest.raises(AssertionError, match="traced > 1"):
        at(constant(0.1), 3)


@pytest.mark.parametrize(
    "schedule",
    [
        optax.cosine_decay_schedule(0.3, 7),
        optax.piecewise_constant_schedule(0.3, {2: 0.5, 4: 0.1}),
        optax.linear_schedule(1.0, 0.0, 5),
    ],
    ids=["cosine", "piecewise", "linear"],
)
def test_an_optax_schedule_by_the_epoch(schedule):
    ours = per_epoch(schedule, 3)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules are not written for strict promotion
        for step in range(12):
            np.testing.assert_array_equal(ours(step), schedule(step // 3))


@pytest.mark.parametrize(
    "schedule", [per_epoch(power_law_decay(0.2, 0.5)), warmup(per_epoch(power_law_decay(0.2, 0.5)), 1)]
)
def test_the_epoch_of_the_training_loop(schedule):
    optimizer, params = sgd(schedule), {"w": jnp.ones(2)}
    state = optimizer.init(params)
    assert state.learning_rate == np.float32(0.2)
    for epoch in (0, 0, 7, 3):
        _, state = optimizer.update(params, state, params, epoch=epoch)
        np.testing.assert_allclose(state.learning_rate, 0.2 / (1 + 0.5 * epoch), rtol=1e-6)
    with pytest.raises(ValueError, match="epoch=epoch"):
        optimizer.update(params, state, params)


def test_steps_per_epoch_comes_before_the_epoch_of_the_loop():
    assert per_epoch(exponential_decay(1.0, 0.5), 10)(25, epoch=9) == 0.25


@each_schedule
def test_equal_by_value_and_picklable(schedule, closed_form):
    del closed_form
    copied = pickle.loads(pickle.dumps(schedule))
    assert copied == schedule
    assert hash(copied) == hash(schedule)
    assert jax.tree.map(lambda x: 2 * x, schedule) != schedule


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: constant(float("nan")), ValueError, "constant: value must be in"),
        (lambda: constant("0.1"), TypeError, "constant: value must be a number"),
        (lambda: power_law_decay(float("inf")), ValueError, "power_law_decay: init_value must be in"),
        (lambda: power_law_decay(0.1, None), TypeError, "power_law_decay: decay_rate must be a number"),
        (
            lambda: power_law_decay(0.1, steps_per_epoch=0),
            ValueError,
            "steps_per_epoch must be a positive integer",
        ),
        (lambda: exponential_decay(0.1, steps_per_epoch=2.5), TypeError, "steps_per_epoch must be a positive integer"),
        (lambda: exponential_decay(0.1, steps_per_epoch=2**31), ValueError, "exponential_decay: steps_per_epoch"),
        (lambda: per_epoch(0.1), TypeError, "per_epoch: schedule must be a callable"),
        (
            lambda: per_epoch(constant(0.1), -1),
            ValueError,
            "steps_per_epoch must be a positive integer",
        ),
        (lambda: per_epoch(constant(0.1))(3), ValueError, "per_epoch: give steps_per_epoch"),
        (lambda: warmup(0.1, 0), ValueError, "warmup: steps must be a positive integer"),
        (lambda: warmup(None, 5), TypeError, "warmup: schedule must be a number"),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
