"""The (init, update) pair: what every optimizer and transform of this package is."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp

from ._pytree import Pytree, accepted, static
from ._trees import (
    Params,
    Updates,
    as_scalar,
    check_floating,
    check_same_tree,
    moment_dtype,
    zeros_like_moments,
)

State = Any


class Transformation(Pytree):
    """A pure pair that turns gradients into updates; `init, update = transformation` unpacks it.

    Updates are added to the parameters (`apply_updates`): an optimizer returns minus its step. A subclass declares
    its hyperparameters as fields (`number`, `rate`, `count`, `static`) and is a frozen dataclass and a pytree.
    """

    @abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first update.

        Args:
            params: a pytree of floating arrays, which may be abstract (`jax.ShapeDtypeStruct`).

        Raises:
            TypeError, ValueError: at trace time, naming the leaf that does not fit.
        """

    @abstractmethod
    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        """(updates, state) after one step; no argument is modified.

        Args:
            updates: the gradients, or what the transform before this one made of them.
            state: what `init` or the last `update` returned.
            params: the parameters, for the transforms that need them.
            **extra: what the training loop knows (`epoch`, `statistics`); each takes what it needs.

        Raises:
            TypeError, ValueError: at trace time, naming the leaf that does not fit.
        """

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.update))

    def to_optax(self) -> Any:
        """The same pair as an `optax.GradientTransformationExtraArgs`.

        `optax.chain` takes our objects as they are, but hands extra keyword arguments only to its own type.
        """
        import optax

        return optax.GradientTransformationExtraArgs(self.init, self.update)


# --- an optimizer is its fields and its rule ---------------------------------------------------------


class Leafwise(Transformation):
    """An optimizer that is one equation, applied to every leaf.

    A subclass declares its numbers as fields, one of them by `rate`; names its state; and writes its `rule`:

        class signsgd(Leafwise):
            learning_rate: Number | Schedule = rate()
            state_type = SgdState

            def rule(self, t, g, p):
                return (-self.learning_rate * jnp.sign(g),)

    The state is a NamedTuple of `step`, `learning_rate` (the one last applied) and the moments, which start at zero
    and are at least float32, whatever the parameters are.
    """

    state_type: ClassVar[type[Any]]
    _rate: ClassVar[str]
    _moments: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        rates = [field.name for field in dataclasses.fields(cast(Any, cls)) if "rate" in field.metadata]
        if len(rates) != 1 or not hasattr(cls, "state_type"):
            raise TypeError(f"{cls.__name__}: expected one field declared by `rate` and a `state_type`, got {rates}")
        cls._rate = rates[0]
        cls._moments = tuple(name for name in cls.state_type._fields if name not in ("step", "learning_rate"))

    # Of a method with `*moments: Any, **_: Any` type checkers allow an override that names its moments.
    @abstractmethod
    def rule(self, t: jax.Array, g: jax.Array, p: jax.Array | None, *moments: Any, **_: Any) -> tuple[jax.Array, ...]:
        """(u, *moments) of one leaf: the update that is added to the parameter, and the moments after it.

        All are in the dtype of the moments, and so are the fields of self: the numbers of this step.

        Args:
            t: the number of this step, from 1.
            g: the gradient.
            p: the parameter; None where `update` was called without.
            *moments: in the order of `state_type`.
        """

    def init(self, params: Params) -> State:
        check_floating("params", params)
        for dtype in {moment_dtype(jnp.result_type(p)) for p in jax.tree.leaves(params)}:
            self._check(dtype)
        step = jnp.zeros((), jnp.int32)
        moments = {name: zeros_like_moments(params) for name in self._moments}
        return self.state_type(step=step, learning_rate=self._rate_at(step, {"epoch": step}), **moments)

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if not isinstance(state, self.state_type):
            name, expected = type(self).__name__, self.state_type.__name__
            raise TypeError(f"{name}: expected a state of type {expected}, got {type(state).__name__}")
        rate, t = self._rate_at(state.step, extra), next_step(state.step)
        now = self._with(**{self._rate: rate})
        before = [getattr(state, name) for name in self._moments]
        updates, *moments = update_leaves(type(self).rule, now, t, updates, params, *before)
        return updates, self.state_type(step=t, learning_rate=rate, **dict(zip(self._moments, moments, strict=True)))

    def _rate_at(self, step: jax.Array, extra: dict[str, Any]) -> jax.Array:
        return as_scalar(self._rate, at_step(getattr(self, self._rate), step, extra))


def update_leaves(
    rule: Callable[..., tuple[jax.Array, ...]],
    numbers: Any,
    t: jax.Array,
    updates: Updates,
    params: Params | None,
    *moments: Params,
) -> tuple[Any, ...]:
    """(updates, *moments), leaf by leaf, from `rule(numbers, t, g, p, *m) -> (u, *m)`.

    The rule sees everything in the moments' dtype. The update comes back in the parameter's dtype (the gradient's
    where `params` is None). Raises ValueError or TypeError for a leaf that does not fit.
    """
    check_floating("updates", updates)
    if moments:
        check_same_tree("updates", updates, "the state", moments[0])
    if params is not None:
        check_same_tree("updates", updates, "params", params)
    leaves, structure = jax.tree.flatten(updates)
    columns = [[None] * len(leaves) if tree is None else jax.tree.leaves(tree) for tree in (params, *moments)]
    rows = [_update_leaf(rule, numbers, t, *row) for row in zip(leaves, *columns, strict=True)]
    outputs = zip(*rows, strict=True) if rows else [()] * (1 + len(moments))
    return tuple(structure.unflatten(column) for column in outputs)


@partial(jax.jit, static_argnums=0)  # traced once for all leaves of a shape and dtype; one call a leaf outside jit
def _update_leaf(rule, numbers, t, g, p, *m):
    out_dtype = g.dtype if p is None else p.dtype
    dtype = m[0].dtype if m else moment_dtype(out_dtype)
    numbers, t, g, p = jax.tree.map(lambda x: jnp.asarray(x, dtype), (numbers, t, g, p))
    u, *m = rule(numbers, t, g, p, *m)
    return u.astype(out_dtype), *m


# --- steps and schedules -----------------------------------------------------------------------------


def next_step(step: jax.Array) -> jax.Array:
    """step + 1, staying at the largest int32 instead of wrapping."""
    return jnp.minimum(step, jnp.iinfo(step.dtype).max - 1) + 1


def at_step(value: Any, step: Any, extra: dict[str, Any]) -> jax.Array:
    """A number, or a schedule at `step`, in the default float dtype."""
    if callable(value):
        value = value(step, **accepted(value, extra, positional=1))
    return jnp.asarray(value, dtype=float)


# --- pairs together ----------------------------------------------------------------------------------


class _Foreign(Transformation):
    """Another library's (init, update) pair."""

    pair: Any = static()

    def init(self, params: Params) -> State:
        return self.pair.init(params)

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        return self.pair.update(updates, state, params, **accepted(self.pair.update, extra, positional=3))


def as_transformation(pair: Any) -> Transformation:
    """Return a `Transformation` unchanged; wrap another library's pair as one.

    Raises:
        TypeError: for anything else; the message says which function to call where a class was given.
    """
    if isinstance(pair, Transformation):
        return pair
    if functional := getattr(pair, "functional", None):  # a class of an old script, or an object of one
        name = pair.__name__ if isinstance(pair, type) else type(pair).__name__
        raise TypeError(f"expected an optimizer, a pair (init, update); {name} is a class: use {functional}(...)")
    if isinstance(pair, type):
        raise TypeError(f"expected an optimizer or transformation, got the class {pair.__name__}: call it")
    if not (hasattr(pair, "init") and hasattr(pair, "update")):
        raise TypeError(f"expected an optimizer or transformation, with init and update, got {pair!r}")
    return _Foreign(pair)


class Wrapper(Transformation):
    """Base of what goes round one `optimizer`, ours or another library's."""

    optimizer: Transformation

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["optimizer"] = as_transformation(self.optimizer)


class chain(Transformation):
    """`chain(a, b, ...)`: a, then b on the updates of a, and so on; the state is the tuple of their states.

    Args:
        *members: transformations, ours or optax's; extra keyword arguments reach the members that take them.

    Raises:
        TypeError: if a member is no transformation.
    """

    members: tuple[Transformation, ...]

    def __init__(self, *members: Any) -> None:
        vars(self)["members"] = tuple(as_transformation(member) for member in members)

    def init(self, params: Params) -> State:
        return tuple(member.init(params) for member in self.members)

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if type(state) is not tuple:
            raise TypeError(f"chain: expected a tuple of {len(self.members)} states, got {type(state).__name__}")
        if len(state) != len(self.members):
            raise ValueError(f"chain: expected a state of {len(self.members)} members, got {len(state)}")
        states = []
        for member, member_state in zip(self.members, state, strict=True):
            updates, member_state = member.update(updates, member_state, params, **extra)
            states.append(member_state)
        return updates, tuple(states)


def find_states(state: State, kind: type) -> list[Any]:
    """The states of type `kind` anywhere in a chained or wrapped `state`."""
    return [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


def apply_updates(params: Params, updates: Updates) -> Params:
    """params + updates, in the parameters' dtypes.

    Raises:
        ValueError: where a leaf is missing or has another shape.
    """
    check_same_tree("updates", updates, "params", params)

    def add(p: Any, u: Any) -> jax.Array:
        dtype = jnp.result_type(p)
        wide = moment_dtype(dtype)
        return (jnp.asarray(p, wide) + jnp.asarray(u, wide)).astype(dtype)

    return jax.tree.map(add, params, updates)
