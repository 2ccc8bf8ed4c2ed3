"""The schedules of paysage 0.2.

`next(schedule)` returns the current value and advances the schedule. Values are float32, as in paysage; the recursion
is computed in float64.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np


def schedule_from_config(config: Any) -> Schedule:
    """Create a schedule from the result of `get_config`.

    Args:
        config: [name of the class, arguments of its constructor].

    Raises:
        ValueError: if no schedule has that name.
    """
    name, arguments = config
    schedules = {cls.__name__: cls for cls in Schedule.__subclasses__()}
    if name not in schedules:
        raise ValueError(f"schedule_from_config: no schedule {name!r}, expected one of {', '.join(schedules)}")
    return schedules[name](**arguments)


class Schedule:
    """Base class of the schedules. Subclasses define `__next__`."""

    initial: float
    value: float

    def get_config(self) -> list[Any]:
        """[name of the class, its attributes], for `schedule_from_config`. The attributes include the current value."""
        return [type(self).__name__, dict(vars(self))]

    def copy(self) -> Any:
        """A copy that continues from the current value."""
        return copy.deepcopy(self)

    def reset(self) -> None:
        """Go back to the initial value."""
        self.value = self.initial

    def set_value(self, value: float) -> None:
        """Set the current value; the schedule continues from it."""
        self.value = _number(self, "value", value)

    def _start(self, initial: float, value: float | None) -> None:
        self.initial = _number(self, "initial", initial)
        self.value = self.initial if value is None else _number(self, "value", value)


class Constant(Schedule):
    """x(t) = initial.

    Args:
        initial: the value after `reset`.
        value: the value before `reset`; `initial` if not given.
    """

    def __init__(self, initial: float = 1.0, value: float | None = None) -> None:
        self._start(initial, value)

    def __next__(self) -> np.float32:
        return np.float32(self.value)


class Linear(Schedule):
    """x(0) = initial, x(t+1) = clip(x(t) - delta, minval, maxval). The first value is not clipped.

    Args:
        initial: the first value, also after `reset`.
        delta: the amount subtracted at every step.
        value: the value to start at; `initial` if not given.
        minval: the smallest value.
        maxval: the largest value.
    """

    def __init__(
        self,
        initial: float = 1.0,
        delta: float = 0.0,
        value: float | None = None,
        minval: float = 0.0,
        maxval: float = 1.0,
    ) -> None:
        self._start(initial, value)
        self.delta: float = _number(self, "delta", delta)
        self.minval: float = _number(self, "minval", minval)
        self.maxval: float = _number(self, "maxval", maxval)

    def __next__(self) -> np.float32:
        value = self.value
        self.value: float = float(np.clip(value - self.delta, self.minval, self.maxval))
        return np.float32(value)


class Step(Schedule):
    """x(t) = initial for t < steps + 2, then final.

    Args:
        initial: the first value, also after `reset`.
        final: the last value.
        steps: the schedule returns `initial` steps + 2 times.
        value: replaces the first value; `initial` if not given.
        t: the number of values returned so far.
    """

    def __init__(
        self, initial: float = 1.0, final: float = 0.0, steps: float = 1, value: float | None = None, *, t: int = 0
    ) -> None:
        self._start(initial, value)
        self.final: float = _number(self, "final", final)
        self.steps: float = _number(self, "steps", steps)
        self.t: int = t

    def reset(self) -> None:
        """Go back to the initial value and restart the count."""
        super().reset()
        self.t = 0

    def __next__(self) -> np.float32:
        value = self.value
        self.value: float = self.initial if self.t <= self.steps else self.final
        self.t += 1
        return np.float32(value)


class ExponentialDecay(Schedule):
    """x(0) = initial, x(t+1) = coefficient x(t).

    Args:
        initial: the first value, also after `reset`.
        coefficient: the factor at every step.
        value: the value to start at; `initial` if not given.
    """

    def __init__(self, initial: float = 1.0, coefficient: float = 0.9, value: float | None = None) -> None:
        self._start(initial, value)
        self.coefficient: float = _number(self, "coefficient", coefficient)

    def __next__(self) -> np.float32:
        value = self.value
        self.value: float = value * self.coefficient
        return np.float32(value)


class PowerLawDecay(Schedule):
    """x(0) = initial, 1 / x(t+1) = 1 / x(t) + coefficient, so x(t) = initial / (1 + initial coefficient t).

    `paysage_jax.power_law_decay(initial, initial * coefficient)` is the same.

    Args:
        initial: the first value, also after `reset`.
        coefficient: the amount that every step adds to the reciprocal.
        value: the value to start at; `initial` if not given.
    """

    def __init__(self, initial: float = 1.0, coefficient: float = 0.9, value: float | None = None) -> None:
        self._start(initial, value)
        self.coefficient: float = _number(self, "coefficient", coefficient)

    def __next__(self) -> np.float32:
        value = self.value
        self.value: float = value / (1 + self.coefficient * value)
        return np.float32(value)


def _number(schedule: Schedule, name: str, value: Any) -> float:
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array) or np.ndim(value) > 0:
        raise TypeError(f"{type(schedule).__name__}: {name} must be a number, got {value!r}")
    return float(value)
