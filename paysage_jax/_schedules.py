"""Schedules: callable pytrees `step -> value`, to stand where an optimizer takes a learning rate.

Their numbers are leaves, so a jitted step is not traced again when they change. `step` is an integer or
an integer array; the epoch is found by integer arithmetic, exact however large the step grows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._pytree import Count, Number, Schedule, at_step, check_count, check_number, pytree_dataclass


def _check_finite(owner: str, **numbers: Any) -> None:
    largest = float(np.finfo(np.float32).max)
    for name, value in numbers.items():
        check_number(owner, name, value, -largest, largest)


def _epoch_of(step: Any, steps_per_epoch: Any) -> jax.Array:
    step = jnp.asarray(step)
    return step // jnp.asarray(steps_per_epoch, step.dtype)


@pytree_dataclass
class constant:
    """value at every step."""

    value: Number

    def __post_init__(self):
        _check_finite("constant", value=self.value)

    def __call__(self, step):
        del step
        return jnp.asarray(self.value, float)


@pytree_dataclass
class power_law_decay:
    """init_value / (1 + decay_rate * epoch) with epoch = step // steps_per_epoch (paysage, 2017)."""

    init_value: Number
    decay_rate: Number = 0.1
    steps_per_epoch: Count = 1

    def __post_init__(self):
        _check_finite("power_law_decay", init_value=self.init_value, decay_rate=self.decay_rate)
        check_count("power_law_decay", "steps_per_epoch", self.steps_per_epoch)

    def __call__(self, step):
        init_value, decay_rate = jnp.asarray(self.init_value, float), jnp.asarray(self.decay_rate, float)
        epoch = _epoch_of(step, self.steps_per_epoch).astype(float)
        return init_value / (1 + decay_rate * epoch)


@pytree_dataclass
class exponential_decay:
    """init_value * decay_rate ** epoch with epoch = step // steps_per_epoch (paysage, 2017)."""

    init_value: Number
    decay_rate: Number = 0.9
    steps_per_epoch: Count = 1

    def __post_init__(self):
        _check_finite("exponential_decay", init_value=self.init_value, decay_rate=self.decay_rate)
        check_count("exponential_decay", "steps_per_epoch", self.steps_per_epoch)

    def __call__(self, step):
        init_value, decay_rate = jnp.asarray(self.init_value, float), jnp.asarray(self.decay_rate, float)
        epoch = _epoch_of(step, self.steps_per_epoch).astype(float)
        # 0⁰ = 1 has no derivative: epoch 0 does not depend on decay_rate.
        return init_value * jnp.where(epoch == 0, 1, decay_rate ** jnp.maximum(epoch, 1))


@pytree_dataclass
class per_epoch:
    """schedule(epoch): any schedule, an optax one included, counted in epochs.

    epoch = step // steps_per_epoch; without steps_per_epoch it is the `epoch` that the training loop hands
    to the optimizer's `update` as an extra keyword argument (`fit` does), and its absence is a ValueError.
    """

    schedule: Schedule
    steps_per_epoch: Count | None = None

    def __post_init__(self):
        if not callable(self.schedule):
            raise TypeError(f"per_epoch: schedule must be a callable step -> value, got {self.schedule!r}")
        if self.steps_per_epoch is not None:
            check_count("per_epoch", "steps_per_epoch", self.steps_per_epoch)

    def __call__(self, step, epoch=None):
        if self.steps_per_epoch is not None:
            epoch = _epoch_of(step, self.steps_per_epoch)
        if epoch is None:
            raise ValueError("per_epoch: give steps_per_epoch, or call update(..., epoch=epoch)")
        return self.schedule(epoch)


@pytree_dataclass
class warmup:
    """schedule(step) * min(1, (step + 1) / steps): a linear rise over the first `steps` steps.

    `schedule` may be a number. The first step already has a rate above zero.
    """

    schedule: Schedule | Number
    steps: Count

    def __post_init__(self):
        if not callable(self.schedule):
            _check_finite("warmup", schedule=self.schedule)
        check_count("warmup", "steps", self.steps)

    def __call__(self, step, **extra):
        step = jnp.asarray(step)
        steps = jnp.asarray(self.steps, step.dtype)
        # min before the addition: the largest step must not wrap.
        risen = (jnp.minimum(step, steps - 1) + 1).astype(float) / steps.astype(float)
        return at_step(self.schedule, step, extra) * risen
