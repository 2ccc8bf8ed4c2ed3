"""Schedules: callable pytrees `step -> value`, accepted wherever an optimizer takes a learning rate.

Their numbers are leaves, so a jitted step is not traced again when they change. `step` is an integer or an integer
array, from 0; the epoch is found by integer arithmetic, exact however large the step grows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._core.pytree import Count, Number, Pytree, Schedule, count, number, rate
from .transformation import at_step

_FINITE = "(-inf, inf)"


def _epoch_of(step: ArrayLike, steps_per_epoch: ArrayLike | None) -> jax.Array:
    step = jnp.asarray(step)
    return step // jnp.asarray(steps_per_epoch, step.dtype)


class constant(Pytree):
    """The same value at every step.

    Args:
        value: a finite number.
    """

    value: Number = number(_FINITE)

    def __call__(self, step: ArrayLike) -> jax.Array:
        del step
        return jnp.asarray(self.value, float)


class power_law_decay(Pytree):
    """Hyperbolic decay with the epoch (paysage, 2017).

        init_value / (1 + decay_rate * epoch),  epoch = step // steps_per_epoch

    Args:
        init_value: the value in epoch 0, a finite number.
        decay_rate: a finite number.
        steps_per_epoch: a positive integer.
    """

    init_value: Number = number(_FINITE)
    decay_rate: Number = number(_FINITE, default=0.1)
    steps_per_epoch: Count = count(default=1)

    def __call__(self, step: ArrayLike) -> jax.Array:
        init_value, decay_rate = jnp.asarray(self.init_value, float), jnp.asarray(self.decay_rate, float)
        epoch = _epoch_of(step, self.steps_per_epoch).astype(float)
        return init_value / (1 + decay_rate * epoch)


class exponential_decay(Pytree):
    """Exponential decay with the epoch (paysage, 2017).

        init_value * decay_rate ** epoch,  epoch = step // steps_per_epoch

    Args:
        init_value: the value in epoch 0, a finite number.
        decay_rate: a finite number.
        steps_per_epoch: a positive integer.
    """

    init_value: Number = number(_FINITE)
    decay_rate: Number = number(_FINITE, default=0.9)
    steps_per_epoch: Count = count(default=1)

    def __call__(self, step: ArrayLike) -> jax.Array:
        init_value, decay_rate = jnp.asarray(self.init_value, float), jnp.asarray(self.decay_rate, float)
        epoch = _epoch_of(step, self.steps_per_epoch).astype(float)
        # 0⁰ = 1 has no derivative: epoch 0 does not depend on decay_rate.
        return init_value * jnp.where(epoch == 0, 1, decay_rate ** jnp.maximum(epoch, 1))


class linear_decay(Pytree):
    """Constant for a share of the run, then linearly to zero.

        init_value * min(1, (1 - step / steps) / (1 - hold)),   zero from step `steps` on

    Args:
        init_value: the value at first, a finite number.
        steps: the length of the run, a positive integer; under `per_epoch` in epochs.
        hold: the share of the run before the decay, in [0, 1).
    """

    init_value: Number = number(_FINITE)
    steps: Count = count()
    hold: Number = number("[0, 1)", default=0.0)

    def __call__(self, step: ArrayLike) -> jax.Array:
        init_value, hold = jnp.asarray(self.init_value, float), jnp.asarray(self.hold, float)
        steps = jnp.asarray(self.steps)
        left = jnp.maximum(steps - jnp.asarray(step), 0).astype(float) / steps.astype(float)
        return init_value * jnp.minimum(1, left / (1 - hold))


class per_epoch(Pytree):
    """Any schedule, one of optax included, counted in epochs: schedule(epoch).

    Args:
        schedule: a callable epoch -> value.
        steps_per_epoch: then epoch = step // steps_per_epoch. If None, the epoch is what the training loop hands to
            `update(..., epoch=epoch)`, as `fit` does.

    Raises:
        TypeError: if the schedule is not callable.
        ValueError: when called without an epoch and without steps_per_epoch.
    """

    schedule: Schedule = rate()
    steps_per_epoch: Count | None = count(default=None)

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise TypeError(f"per_epoch: schedule must be a callable epoch -> value, got {self.schedule!r}")
        super().__post_init__()

    def __call__(self, step: ArrayLike, epoch: ArrayLike | None = None) -> jax.Array:
        if self.steps_per_epoch is not None:
            epoch = _epoch_of(step, self.steps_per_epoch)
        if epoch is None:
            raise ValueError("per_epoch: give steps_per_epoch, or call update(..., epoch=epoch)")
        return self.schedule(epoch)


class warmup(Pytree):
    """A linear rise over the first `steps` steps; the first step already has a rate above zero.

        schedule(step) * min(1, (step + 1) / steps)

    Args:
        schedule: a callable step -> value, or a finite number.
        steps: a positive integer.
    """

    schedule: Schedule | Number = rate(_FINITE)
    steps: Count = count()

    def __call__(self, step: ArrayLike, **extra: object) -> jax.Array:
        step = jnp.asarray(step)
        steps = jnp.asarray(self.steps, step.dtype)
        # min before the addition: the largest step must not wrap.
        risen = (jnp.minimum(step, steps - 1) + 1).astype(float) / steps.astype(float)
        return at_step("warmup: schedule", self.schedule, step, extra) * risen
