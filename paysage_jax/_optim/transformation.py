"""The (init, update) pair: what every optimizer and transform of this package is."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._core.pytree import Pytree, accepted, converted, static
from .._core.trees import check_addable, check_same_tree, is_inexact, moment_dtype, real_dtype
from .._core.types import Extra, Leaf, Params, State, Tree, Updates

# The stages of a chain.
BEFORE, OPTIMIZER, PROJECTION, AVERAGE, LAST = range(5)
_PLACES = dict.fromkeys((PROJECTION, AVERAGE), "after all that changes the updates") | {LAST: "last"}


class GradientTransformation(Protocol):
    """A pair (init, update), of this package, of optax or of yours."""

    @property
    def init(self) -> Callable[[Params], State]: ...
    @property
    def update(self) -> Callable[..., tuple[Updates, State]]: ...


class Transformation(Pytree, ABC):
    """A pure pair that turns gradients into updates; `init, update = transformation` unpacks it.

    Updates are added to the parameters (`apply_updates`): an optimizer returns minus its step. A subclass declares
    its hyperparameters as fields (`number`, `rate`, `count`, `static`), writes `init` and `apply`, and is a frozen
    dataclass and a pytree. With a `state_type`, `update` refuses other states; with `needs_params` it needs `params`.

    The gradient of a complex parameter x + iy is ∂/∂x + i ∂/∂y, the direction in which a real loss rises fastest.
    `jax.grad` gives its conjugate: hand over `jax.tree.map(jnp.conj, gradient)`, as with optax.
    """

    _stage: ClassVar[int | None] = None  # where it stands in a chain, if not anywhere
    state_type: ClassVar[type[Any]] = object
    needs_params: ClassVar[bool] = False

    @abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first update.

        Args:
            params: a pytree of floating or complex arrays, which may be abstract (`jax.ShapeDtypeStruct`).

        Raises:
            TypeError, ValueError: at trace time, naming the leaf that does not fit.
        """

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: object
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
        if params is not None:
            check_same_tree("updates", updates, "params", params)
        return self._update(updates, state, params, **extra)

    @abstractmethod
    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        """What `update` does once it has checked its arguments: parameters, if given, are a tree like the updates."""

    def _update(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        """`update` as a chain or a wrapper calls it, which has checked the trees already."""
        if not isinstance(state, self.state_type):
            expected, got = self.state_type.__name__, type(state).__name__
            raise TypeError(f"{type(self).__name__}: expected a state of type {expected}, got {got}")
        if self.needs_params and params is None:
            raise ValueError(f"{type(self).__name__}: needs the parameters: update(updates, state, params)")
        return self.apply(updates, state, params, **extra)

    def __iter__(self) -> Iterator[Callable[..., Tree]]:
        return iter((self.init, self.update))

    def check_for(self, params: Params) -> None:
        """Check every number as it is when used on these parameters: 1 - 1e-9 is 1 in float32."""
        for dtype in {moment_dtype(jnp.result_type(p)) for p in jax.tree.leaves(params) if is_inexact(p)}:
            self.check_in(real_dtype(dtype))

    def _in_order(self) -> list[Transformation]:
        """What is applied one after the other."""
        return [self]

    def to_optax(self) -> Any:
        """The same pair as an `optax.GradientTransformationExtraArgs`.

        `optax.chain` takes our objects as they are, but hands extra keyword arguments only to its own type.
        """
        import optax

        return optax.GradientTransformationExtraArgs(self.init, self.update)


# --- steps and schedules -----------------------------------------------------------------------------


def next_step(step: jax.Array) -> jax.Array:
    """step + 1, staying at the largest int32 instead of wrapping."""
    return jnp.minimum(step, jnp.iinfo(step.dtype).max - 1) + 1


def at_step(name: str, value: Leaf, step: ArrayLike, extra: Extra) -> jax.Array:
    """A number, or a schedule at `step`, in the default float dtype. Raises TypeError if that returns no number."""
    if not callable(value):
        return jnp.asarray(value, dtype=float)
    scheduled = value(step, **accepted(value, extra, positional=1))
    try:
        number = jnp.asarray(scheduled)
    except (TypeError, ValueError):
        number = None
    if number is None or not jnp.isrealobj(number):
        raise TypeError(f"{name}: the schedule must return a real number, got {scheduled!r}")
    return jnp.asarray(number, dtype=float)


# --- pairs together ----------------------------------------------------------------------------------


class _Foreign(Transformation):
    """Another library's (init, update) pair."""

    pair: GradientTransformation = static()

    def init(self, params: Params) -> State:
        return self.pair.init(params)

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        extra.pop("earlier", None)  # of our own chains; a line search of optax refuses what it does not know
        return self.pair.update(updates, state, params, **accepted(self.pair.update, extra, positional=3))


def as_transformation(pair: object) -> Transformation:
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
        hint = ": call it" if callable(pair) else ""
        raise TypeError(f"expected an optimizer or transformation, with init and update, got {pair!r}{hint}")
    return _Foreign(cast(GradientTransformation, pair))


class Wrapper(Transformation):
    """Base of what goes round one `optimizer`, ours or another library's."""

    optimizer: Transformation = converted(lambda _, pair: as_transformation(pair))

    def _in_order(self) -> list[Transformation]:
        return self.optimizer._in_order()


class chain(Transformation):
    """`chain(a, b, ...)`: a, then b on the updates of a, and so on; the state is the tuple of their states.

    Args:
        *args: transformations, ours or optax's; extra keyword arguments reach the members that take them, and as
            `earlier` the new states of the members before.
        members: a sequence of them instead, as `dataclasses.replace` gives it.

    Raises:
        TypeError: if a member is no transformation.
        ValueError: if one stands where it would not do what it says: an average before the optimizer, say.

    >>> import paysage_jax as pj
    >>> optimizer = pj.chain(pj.clip_by_global_norm(1.0), pj.sgd(0.5))
    >>> updates, state = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2)))
    >>> updates.round(6)
    Array([-0.3, -0.4], dtype=float32)
    """

    members: tuple[Transformation, ...]

    def __init__(self, *args: GradientTransformation, members: Iterable[GradientTransformation] = ()) -> None:
        object.__setattr__(self, "members", tuple(map(as_transformation, (*args, *members))))
        _check_order(self._in_order())

    def _in_order(self) -> list[Transformation]:
        return [step for member in self.members for step in member._in_order()]

    def init(self, params: Params) -> State:
        return tuple(member.init(params) for member in self.members)

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        if type(state) is not tuple:
            raise TypeError(f"chain: expected a tuple of {len(self.members)} states, got {type(state).__name__}")
        if len(state) != len(self.members):
            raise ValueError(f"chain: expected a state of {len(self.members)} members, got {len(state)}")
        before, states = extra.pop("earlier", ()), ()
        for member, member_state in zip(self.members, state, strict=True):
            updates, member_state = member._update(updates, member_state, params, **extra, earlier=(before, states))
            states += (member_state,)
        return updates, states


def _check_order(steps: list[Transformation]) -> None:
    for earlier, later in itertools.combinations(steps, 2):
        stage = OPTIMIZER if later._stage is None else later._stage
        if earlier._stage is not None and stage < earlier._stage:
            names = [type(getattr(step, "pair", step)).__name__ for step in (earlier, later)]
            wrong, place = (names[0], _PLACES[earlier._stage]) if earlier._stage in _PLACES else (names[1], "before it")
            raise ValueError(f"chain: {names[1]} stands after {names[0]}; {wrong} belongs {place}")


def no_step(step: Callable[[State], tuple[Updates, State]], state: State) -> tuple[Updates, State]:
    """Zeros in the place of the updates of `step(state)`, and the state as it was."""
    updates, after = jax.eval_shape(step, state)
    # Another library's state may change its dtype at an update.
    state = jax.tree.map(lambda new, x: x if x.dtype == new.dtype else x.astype(new.dtype), after, state)
    return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), updates), state


def find_states(state: State, kind: type) -> list[State]:
    """The states of type `kind` anywhere in a chained or wrapped `state`."""
    return [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


def apply_updates(params: Params, updates: Updates) -> Params:
    """params + updates, in the parameters' dtypes. A leaf whose update is of dtype float0 stays as it is.

    Raises:
        ValueError: where a leaf is missing or has another shape.
        TypeError: for a complex update of a real leaf, or a fractional one of an integer.
    """
    check_same_tree("updates", updates, "params", params)
    check_addable("updates", updates, "params", params)

    def add(p: Leaf, u: Leaf) -> jax.Array:
        if jnp.result_type(u) == jax.dtypes.float0:  # of an integer, from jax.grad(allow_int=True)
            return p
        dtype = jnp.result_type(p)
        wide = moment_dtype(dtype)
        return (jnp.asarray(p, wide) + jnp.asarray(u, wide)).astype(dtype)

    return jax.tree.map(add, params, updates)
