"""The (init, update) pair, the base of every optimizer and transform of this package."""

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
_PLACES = dict.fromkeys((PROJECTION, AVERAGE), "after all members that change the updates") | {LAST: "last"}


class GradientTransformation(Protocol):
    """A pair (init, update), from this package, from optax, or written by a user."""

    @property
    def init(self) -> Callable[[Params], State]: ...
    @property
    def update(self) -> Callable[..., tuple[Updates, State]]: ...


class Transformation(Pytree, ABC):
    """A pair of pure functions that turns gradients into updates; `init, update = transformation` unpacks it.

    Updates are added to the parameters (`apply_updates`), so an optimizer returns minus its step. A subclass is a
    frozen dataclass and a pytree. It declares its hyperparameters as fields (`number`, `rate`, `count`, `static`) and
    defines `init` and `apply`. If it sets `state_type`, `update` rejects states of other types; if it sets
    `needs_params`, `update` rejects calls without `params`.

    The gradient of a complex parameter x + iy is ∂/∂x + i ∂/∂y, the direction in which a real loss rises fastest.
    `jax.grad` returns its conjugate: pass `jax.tree.map(jnp.conj, gradient)`, as with optax.
    """

    _stage: ClassVar[int | None] = None  # its place in a chain; None: anywhere
    state_type: ClassVar[type[Any]] = object
    needs_params: ClassVar[bool] = False

    @abstractmethod
    def init(self, params: Params) -> State:
        """Return the state before the first update.

        Args:
            params: a pytree of floating or complex arrays, which may be abstract (`jax.ShapeDtypeStruct`).

        Raises:
            TypeError, ValueError: if a leaf does not fit; it names the leaf and is raised at trace time.
        """

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: object
    ) -> tuple[Updates, State]:
        """Return (updates, state) after one step; no argument is modified.

        Args:
            updates: the gradients, or the updates from the previous transform in a chain.
            state: the state that `init` or the last `update` returned.
            params: the parameters, for transforms that need them.
            **extra: values from the training loop, for example `epoch` and `statistics`; each transform takes those
                that it needs.

        Raises:
            TypeError, ValueError: if a leaf does not fit; it names the leaf and is raised at trace time.
        """
        if params is not None:
            check_same_tree("updates", updates, "params", params)
        return self._update(updates, state, params, **extra)

    @abstractmethod
    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        """Return (updates, state). `update` calls it after checking that `params`, if given, matches `updates`."""

    def _update(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        """`update` without the check of the trees, for chains and wrappers, which have checked them already."""
        if not isinstance(state, self.state_type):
            expected, got = self.state_type.__name__, type(state).__name__
            raise TypeError(f"{type(self).__name__}: expected a state of type {expected}, got {got}")
        if self.needs_params and params is None:
            raise ValueError(f"{type(self).__name__}: needs the parameters: update(updates, state, params)")
        return self.apply(updates, state, params, **extra)

    def __iter__(self) -> Iterator[Callable[..., Tree]]:
        return iter((self.init, self.update))

    def check_for(self, params: Params) -> None:
        """Check every number in the dtype in which these parameters use it: 1 - 1e-9 is 1 in float32."""
        for dtype in {moment_dtype(jnp.result_type(p)) for p in jax.tree.leaves(params) if is_inexact(p)}:
            self.check_in(real_dtype(dtype))

    def _in_order(self) -> list[Transformation]:
        """The members in the order in which they are applied."""
        return [self]

    def to_optax(self) -> Any:
        """Convert to an `optax.GradientTransformationExtraArgs`.

        `optax.chain` also accepts this object itself, but then passes it no extra keyword arguments.
        """
        import optax

        return optax.GradientTransformationExtraArgs(self.init, self.update)


# --- steps and schedules -----------------------------------------------------------------------------


def next_step(step: jax.Array) -> jax.Array:
    """step + 1, which saturates at the largest int32."""
    return jnp.minimum(step, jnp.iinfo(step.dtype).max - 1) + 1


def at_step(name: str, value: Leaf, step: ArrayLike, extra: Extra) -> jax.Array:
    """A number, or a schedule at `step`, in the default float dtype.

    Raises TypeError if the schedule does not return a number.
    """
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


# --- combining pairs ---------------------------------------------------------------------------------


class _Foreign(Transformation):
    """Another library's (init, update) pair."""

    pair: GradientTransformation = static()

    def init(self, params: Params) -> State:
        return self.pair.init(params)

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        extra.pop("earlier", None)  # only for our transforms; optax's line search rejects unknown arguments
        return self.pair.update(updates, state, params, **accepted(self.pair.update, extra, positional=3))


def as_transformation(pair: object) -> Transformation:
    """Return a `Transformation` unchanged, or wrap a pair from another library as one.

    Raises:
        TypeError: for any other object. If it is a class, the message names the function to call.
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
    """Base class of wrappers of one `optimizer`, from this package or another library."""

    optimizer: Transformation = converted(lambda _, pair: as_transformation(pair))

    def _in_order(self) -> list[Transformation]:
        return self.optimizer._in_order()


class chain(Transformation):
    """Apply transformations in sequence: `chain(a, b, ...)` applies a, then b to the updates of a, and so on.

    The state is the tuple of the states of the members. Extra keyword arguments of `update` reach the members that
    accept them. The extra argument `earlier` contains the new states of the preceding members.

    Args:
        *args: transformations, from this package or from optax.
        members: a sequence of transformations, instead of `args`; `dataclasses.replace` uses it.

    Raises:
        TypeError: if a member is not a transformation.
        ValueError: if a member is in a place where it cannot work, for example an average before the optimizer.

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
            raise ValueError(f"chain: {names[1]} comes after {names[0]}; {wrong} belongs {place}")


def no_step(step: Callable[[State], tuple[Updates, State]], state: State) -> tuple[Updates, State]:
    """Zeros in the shapes of the updates of `step(state)`, and the unchanged state."""
    updates, after = jax.eval_shape(step, state)
    # An update of another library may change the dtype of its state.
    state = jax.tree.map(lambda new, x: x if x.dtype == new.dtype else x.astype(new.dtype), after, state)
    return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), updates), state


def find_states(state: State, kind: type) -> list[State]:
    """The states of type `kind` anywhere in a chained or wrapped `state`."""
    return [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


def apply_updates(params: Params, updates: Updates) -> Params:
    """Add the updates to the parameters, in the dtypes of the parameters.

        params + updates

    A leaf whose update has dtype float0 stays unchanged.

    Args:
        params: a pytree of arrays.
        updates: a pytree of the same structure and shapes.

    Raises:
        ValueError: if a leaf is missing or has another shape.
        TypeError: for a complex update of a real leaf, or a floating update of an integer leaf.
    """
    check_same_tree("updates", updates, "params", params)
    check_addable("updates", updates, "params", params)

    def add(p: Leaf, u: Leaf) -> jax.Array:
        if jnp.result_type(u) == jax.dtypes.float0:  # the gradient of an integer, from jax.grad(allow_int=True)
            return p
        dtype = jnp.result_type(p)
        wide = moment_dtype(dtype)
        return (jnp.asarray(p, wide) + jnp.asarray(u, wide)).astype(dtype)

    return jax.tree.map(add, params, updates)
