"""Hyperparameters: numbers, arrays and schedules that are the leaves of frozen dataclasses."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

Number = float | jax.Array
Count = int | jax.Array
Schedule = Callable[..., Any]


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field of a `pytree_dataclass` that belongs to its structure (a flag), not to its leaves."""
    return dataclasses.field(default=default, metadata={"static": True})


def absent_at_zero(default: Any = 0.0) -> Any:
    """A numeric field whose value, if it is the Python number 0, leaves the term it scales out altogether."""
    return dataclasses.field(default=default, metadata={"absent_at_zero": True})


def is_absent(value: Any) -> bool:
    """Whether a hyperparameter is the Python number 0, known to be so while tracing."""
    return isinstance(value, int | float) and value == 0


def _is_static(field: dataclasses.Field, value: Any) -> bool:
    if "static" in field.metadata:
        return True
    if "absent_at_zero" in field.metadata and is_absent(value):
        return True
    if isinstance(value, float | jax.Array):
        return False
    # A plain function (an optax schedule, say) is no array: it belongs to the structure.
    return any(callable(leaf) for leaf in jax.tree.leaves(value))


@dataclass_transform(frozen_default=True, field_specifiers=(static, absent_at_zero))
def pytree_dataclass(cls):
    """Make a class a frozen dataclass and a pytree whose numbers, arrays and schedules are children.

    So an object of it can be closed over, passed through `jax.jit` (a new value does not retrace),
    mapped by `jax.vmap` and differentiated. With float fields it hashes and compares by value, and pickles.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)

    def flatten(self):
        names, children, fixed = [], [], []
        for field in fields:
            value = getattr(self, field.name)
            if _is_static(field, value):
                fixed.append((field.name, value))
            else:
                names.append(field.name)
                children.append(value)
        return children, (tuple(names), tuple(fixed))

    def flatten_with_keys(self):
        children, structure = flatten(self)
        return list(zip(map(GetAttrKey, structure[0]), children, strict=True)), structure

    def unflatten(structure, children):
        names, fixed = structure
        self = object.__new__(cls)  # not __init__: children may be tracers or placeholders
        for name, value in (*zip(names, children, strict=True), *fixed):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def check_number(owner: str, name: str, value: Any, low: float, high: float, *, open_above: bool = False) -> None:
    """Raise unless low <= value <= high (< high if open_above). What is not yet known (a tracer) passes."""
    if isinstance(value, jax.Array):
        return
    interval = f"[{low}, {high}{')' if open_above else ']'}"
    if not isinstance(value, int | float | np.number | np.ndarray):
        raise TypeError(f"{owner}: {name} must be a number in {interval}, got {value!r}")
    inside = (np.asarray(low) <= value) & ((value < high) if open_above else (value <= high))
    if not np.all(inside):
        raise ValueError(f"{owner}: {name} must be in {interval}, got {value}")


def check_count(owner: str, name: str, value: Any) -> None:
    """Raise unless value is a whole number from 1 on. What is not yet known (a tracer) passes."""
    if isinstance(value, float):
        raise TypeError(f"{owner}: {name} must be a whole number, got {value!r}")
    check_number(owner, name, value, 1, np.iinfo(np.int32).max)


def check_learning_rate(owner: str, name: str, value: Any) -> None:
    """Raise unless value is a number >= 0, an array or a callable `step -> value`."""
    if not callable(value):
        check_number(owner, name, value, 0, np.inf, open_above=True)


def accepted(function: Callable, extra: dict[str, Any], positional: int = 0) -> dict[str, Any]:
    """The keyword arguments among `extra` that `function` takes after its first `positional` arguments."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken = {p.name for p in parameters[:positional]}
        return {name: value for name, value in extra.items() if name not in taken}
    names = {p.name for p in parameters[positional:]}
    return {name: value for name, value in extra.items() if name in names}


def at_step(value: Any, step: Any, extra: dict[str, Any]) -> jax.Array:
    """A number, or a schedule at `step`, in the default float dtype."""
    if callable(value):
        value = value(step, **accepted(value, extra, positional=1))
    return jnp.asarray(value, dtype=float)


def as_scalar(name: str, value: Any) -> jax.Array:
    """`value` as a scalar array of the default float dtype."""
    value = jnp.asarray(value, dtype=float)
    if value.shape != ():
        raise ValueError(f"{name}: expected a scalar, got shape {value.shape}; use jax.vmap for many values")
    return value
