"""Frozen dataclasses that are pytrees: declared leaves, declared static fields, intervals checked in one place."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, Self, cast, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import GetAttrKey
from jax.typing import DTypeLike

from .types import Extra, Leaf, Tree

Number = float | jax.Array
Count = int | jax.Array
Converter = Callable[..., Any]  # convert(where, value)
Schedule = Any  # a callable step -> value. Any, because in a rule the field contains the value, not the schedule.


# --- what a field may hold ---------------------------------------------------------------------------


# `default` is keyword-only, because type checkers recognize it only by name (PEP 681).


def converted(convert: Converter, *, default: Any = dataclasses.MISSING, static: bool = False) -> Any:
    """Declare a field that stores `convert(where, value)`.

    Args:
        convert: a function (where, value) -> value; `where` names the field, for error messages.
        default: the default value.
        static: whether the field belongs to the structure of the pytree. Then its value must be hashable.
    """
    return dataclasses.field(default=default, metadata={"convert": convert, "static": static})


def number(interval: str = "[0, inf)", *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field for a number or a scalar array in an interval. It is a leaf of the pytree.

    Args:
        interval: the allowed values, for example "[0, 1)".
        default: the default value. With the default None, the field may be None, for a term that is absent.
    """
    return converted(_Number(_Interval.of(interval), optional=default is None), default=default)


def rate(interval: str = "[0, inf)", *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field for a learning rate: a `number`, or a schedule `step -> value`, whose numbers are leaves.

    Args:
        interval: the allowed numbers, for example "[0, 1)".
        default: the default value.
    """
    convert = _Rate(_Number(_Interval.of(interval)))
    return dataclasses.field(default=default, metadata={"convert": convert, "rate": True})


def count(*, default: Any = dataclasses.MISSING, static: bool = False) -> Any:
    """Declare a field for a positive integer. It is a leaf of the pytree unless `static` is true.

    Args:
        default: the default value. With the default None, the field may be None.
        static: whether the field belongs to the structure of the pytree.
    """
    return converted(_Count(optional=default is None), default=default, static=static)


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that belongs to the structure of the pytree, for example a flag. Its value must be hashable.

    Args:
        default: the default value.
    """
    return dataclasses.field(default=default, metadata={"static": True})


def function(*, default: Any = dataclasses.MISSING) -> Any:
    """Declare a `static` field for a function.

    Args:
        default: the default value. With the default None, the field may be None.
    """
    return converted(_Callable(optional=default is None), default=default, static=True)


@dataclasses.dataclass(frozen=True)
class _Interval:
    text: str
    low: float
    high: float

    @classmethod
    def of(cls, text: str) -> _Interval:
        low, high = text[1:-1].split(",")
        return cls(text, float(low), float(high))

    def contains(self, values: np.ndarray) -> bool:
        above = values >= self.low if self.text[0] == "[" else values > self.low
        below = values <= self.high if self.text[-1] == "]" else values < self.high
        return bool(np.all(above & below))


@dataclasses.dataclass(frozen=True)
class _Number:
    interval: _Interval
    optional: bool = False

    def __call__(self, where: str, value: Leaf, dtype: DTypeLike | None = None) -> Leaf:
        """`value`, as a float if it is a scalar of Python or NumPy. Tracers pass unchecked."""
        if isinstance(value, Tracer) or (self.optional and value is None):
            return value
        if not _is_of(value, np.floating, np.integer):
            raise TypeError(f"{where} must be a number in {self.interval.text}, got {value!r}")
        dtype = jnp.result_type(float) if dtype is None else dtype
        with np.errstate(over="ignore"):
            used = np.asarray(value).astype(dtype)
        if not self.interval.contains(used):
            rounded = f", which is {used} in {jnp.dtype(dtype)}" if self.interval.contains(np.asarray(value)) else ""
            raise ValueError(f"{where} must be in {self.interval.text}, got {value}{rounded}")
        # Floats have one type, so that a jitted function is traced once. NumPy arrays are copied, because their owner
        # may write to them.
        return jnp.array(value, float) if isinstance(value, np.ndarray) else _python(float, value)


@dataclasses.dataclass(frozen=True)
class _Rate:
    number: _Number

    def __call__(self, where: str, value: Leaf, dtype: DTypeLike | None = None) -> Leaf:
        if isinstance(value, type):
            raise TypeError(f"{where} must be a number or a schedule, got the class {value.__name__}: call it")
        return as_pytree(value) if callable(value) else self.number(where, value, dtype)


@dataclasses.dataclass(frozen=True)
class _Count:
    optional: bool = False

    def __call__(self, where: str, value: Leaf) -> Leaf:
        if isinstance(value, Tracer) or (self.optional and value is None):
            return value
        if not _is_of(value, np.integer):
            raise TypeError(f"{where} must be a positive integer, got {value!r}")
        largest = np.iinfo(np.int32).max
        if not np.all(np.asarray(value) >= 1):
            raise ValueError(f"{where} must be a positive integer, got {value}")
        if not np.all(np.asarray(value) <= largest):
            raise ValueError(f"{where} must be a positive integer of at most {largest}, got {value}")
        return jnp.array(value) if isinstance(value, np.ndarray) else _python(int, value)


@dataclasses.dataclass(frozen=True)
class _Callable:
    optional: bool = False

    def __call__(self, where: str, value: Leaf) -> Leaf:
        if not callable(value) and not (self.optional and value is None):
            raise TypeError(f"{where} must be a function, got {value!r}")
        return value


def _is_of(value: object, *kinds: type) -> bool:
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # NumPy's text, objects and dates
        return False
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _python(kind: type, value: Leaf) -> Leaf:
    return value if isinstance(value, jax.Array) else kind(value)


def as_number(where: str, value: Leaf, interval: str = "[0, inf)") -> Leaf:
    """Convert a number as a field does. Raises TypeError or ValueError for other values."""
    return _Number(_Interval.of(interval))(where, value)


def as_rate(where: str, value: Leaf, dtype: DTypeLike | None = None) -> Leaf:
    """Convert a learning rate as a field does, checked in `dtype`. Raises TypeError or ValueError for other values."""
    return _A_RATE(where, value, dtype)


_A_RATE = _Rate(_Number(_Interval.of("[0, inf)")))


def check_count(where: str, value: Leaf) -> None:
    """Raise TypeError or ValueError unless `value` is one positive integer."""
    _Count()(where, value)
    if np.ndim(value):
        raise TypeError(f"{where} must be one positive integer, got {value!r}")


# --- the dataclass -----------------------------------------------------------------------------------


@dataclass_transform(frozen_default=True, field_specifiers=(converted, number, rate, count, static, function))
class Pytree:
    """Base class of the objects of this package. Every subclass is a frozen dataclass and a pytree.

    Fields declared with `static` belong to the structure of the pytree; all other fields are children. An object can
    therefore be closed over, passed through `jax.jit` (a new value does not retrace), mapped by `jax.vmap`, and
    differentiated. If its numbers are floats, it hashes and compares by value, and can be pickled. Fields declared with
    `number`, `rate` or `count` are checked when the object is created.

    Raises:
        TypeError, ValueError: if the value of a field is not allowed; the message names the field.
    """

    _converters: ClassVar[dict[str, Converter]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        fields = dataclasses.fields(cast(Any, cls))
        cls._converters = {field.name: field.metadata["convert"] for field in fields if "convert" in field.metadata}
        fixed = [field.name for field in fields if field.metadata.get("static")]
        children = [field.name for field in fields if field.name not in fixed]
        get_children, get_fixed = _getter(children), _getter(fixed)
        keys = [GetAttrKey(name) for name in children]

        def flatten(self: Pytree) -> Tree:
            return get_children(self), get_fixed(self)

        def flatten_with_keys(self: Pytree) -> Tree:
            return list(zip(keys, get_children(self), strict=True)), get_fixed(self)

        def unflatten(values: Tree, leaves: Tree) -> Pytree:
            self = object.__new__(cls)  # not __init__: the children may be tracers or placeholders
            vars(self).update(zip(children, leaves, strict=True))
            vars(self).update(zip(fixed, values, strict=True))
            return self

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    def __post_init__(self) -> None:
        for name, convert in self._converters.items():
            vars(self)[name] = convert(f"{type(self).__name__}: {name}", getattr(self, name))

    def check_in(self, dtype: DTypeLike) -> None:
        """Check every number again in the given dtype: 1 - 1e-9 is 1 in float32."""
        for name, convert in self._converters.items():
            if isinstance(convert, _Number | _Rate):
                convert(f"{type(self).__name__}: {name}", getattr(self, name), dtype)

    def replace_unchecked(self, **values: Tree) -> Self:
        """A copy with new values in some fields. They are not checked and may be tracers."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), **values)
        return twin


def _getter(names: list[str]) -> Callable[[Pytree], tuple[Tree, ...]]:
    """`attrgetter` that returns a tuple for any number of names."""
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda self: (getattr(self, names[0]),)) if names else (lambda self: ())


def as_pytree(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Return a callable pytree unchanged; wrap a plain function, for example a schedule of optax, as a pytree.

    Functions are compared by identity, as in `jax.jit`, so a new lambda is a different function.
    """
    is_pytree = not any(callable(leaf) for leaf in jax.tree.leaves(function))
    return function if is_pytree else Function(function)


class Function(Pytree):
    """A plain function as a pytree without leaves. A call drops keyword arguments that the function does not accept."""

    function: Callable[..., Tree] = static()

    def __call__(self, *args: object, **extra: object) -> Tree:
        return self.function(*args, **accepted(self.function, extra, positional=len(args)))

    def __repr__(self) -> str:
        return repr(self.function)


def accepted(function: Callable[..., Tree], extra: Extra, positional: int = 0) -> Extra:
    """The keyword arguments in `extra` that `function` accepts after its first `positional` arguments.

    Keywords already bound by a `functools.partial` keep their values.
    """
    given = getattr(function, "keywords", {})
    extra = {name: value for name, value in extra.items() if name not in given}
    parameters = list(inspect.signature(function).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken = {p.name for p in parameters[:positional]}
        return {name: value for name, value in extra.items() if name not in taken}
    names = {p.name for p in parameters[positional:]}
    return {name: value for name, value in extra.items() if name in names}
