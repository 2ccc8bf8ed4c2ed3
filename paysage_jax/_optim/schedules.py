"""Schedules: callable pytrees `step -> value`, accepted wherever an optimizer takes a learning rate.

The numbers of a schedule are leaves, so changing them does not retrace a jitted step. `step` is an integer or an
integer array, and the first step is 0. The epoch is computed in integer arithmetic, which is exact for every step.
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
    """Hold the value for a fraction of the run, then decay linearly to zero.

        init_value * max(0, min(1, (1 - step / steps) / (1 - hold)))

    Args:
        init_value: the initial value, a finite number.
        steps: the length of the run in steps (in epochs under `per_epoch`), a positive integer.
        hold: the fraction of the run before the decay, in [0, 1).
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
    """Evaluate a schedule at the epoch instead of the step.

        schedule(epoch)

    Args:
        schedule: a callable epoch -> value, for example a schedule of this package or of optax.
        steps_per_epoch: a positive integer; the epoch is step // steps_per_epoch. If None, the epoch is the extra
            argument of `update(..., epoch=epoch)`, which `fit` passes.

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
    """Linear warm-up over the first `steps` steps. The factor of the first step is 1 / steps, not 0.

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
        # The minimum comes before the addition, so that the largest step does not wrap around.
        risen = (jnp.minimum(step, steps - 1) + 1).astype(float) / steps.astype(float)
        return at_step("warmup: schedule", self.schedule, step, extra) * risen
