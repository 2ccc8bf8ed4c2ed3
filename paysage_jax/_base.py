"""The (init, update) pair: what every optimizer and transform of this package is."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, keystr, tree_flatten_with_path

from ._pytree import accepted, as_scalar, at_step, pytree_dataclass

Params = Any  # a pytree of floating arrays
Updates = Any  # a pytree like Params
State = Any


# --- steps and leaves --------------------------------------------------------------------------------


def next_step(step: jax.Array) -> jax.Array:
    """step + 1, staying at the largest int32 instead of wrapping."""
    return jnp.minimum(step, jnp.iinfo(step.dtype).max - 1) + 1


def moment_dtype(dtype: Any) -> Any:
    """The dtype in which a parameter's arithmetic is done and its moments are kept: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def zeros_like_moments(params: Params) -> Params:
    """Zeros in the shape of every leaf and in its `moment_dtype`."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=moment_dtype(jnp.result_type(p))), params)


def leaf_paths(tree: Any) -> list[str]:
    """The paths of the leaves in their order, written "weights/0/matrix"."""
    return [keystr(path, simple=True, separator="/") for path, _ in tree_flatten_with_path(tree)[0]]


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves under their paths."""
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def check_floating(name: str, tree: Any) -> None:
    """Raise TypeError for the first leaf of `tree` that is not of a floating dtype."""
    for path, leaf in tree_flatten_with_path(tree)[0]:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}{keystr(path)}: expected a floating dtype, got {dtype}")


def _structure_and_shapes(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def check_same_tree(name: str, tree: Any, reference_name: str, reference: Any) -> None:
    """Raise ValueError where `tree` has not the structure and the shapes of `reference`."""
    if _structure_and_shapes(tree) == _structure_and_shapes(reference):
        return
    got, got_structure = tree_flatten_with_path(tree)
    expected, structure = tree_flatten_with_path(reference)
    got_shapes = {keystr(path): jnp.shape(leaf) for path, leaf in got}
    shapes = {keystr(path): jnp.shape(leaf) for path, leaf in expected}
    for path, shape in shapes.items():
        if path not in got_shapes:
            raise ValueError(f"{name}{path}: missing; {reference_name} has it, of shape {shape}")
    for path in got_shapes:
        if path not in shapes:
            raise ValueError(f"{name}{path}: unexpected; {reference_name} has no such leaf")
    if got_structure != structure:
        raise ValueError(f"{name}: expected the tree structure of {reference_name}, {structure}, got {got_structure}")
    for path, shape in shapes.items():
        if got_shapes[path] != shape:
            raise ValueError(f"{name}{path}: expected shape {shape} as in {reference_name}, got {got_shapes[path]}")


def update_leaves(
    rule: Callable[..., tuple[jax.Array, ...]],
    scalars: dict[str, Any],
    updates: Updates,
    params: Params | None,
    *moments: Params,
) -> tuple[Any, ...]:
    """(updates, *moments), leaf by leaf, from `rule(h, g, p, *m) -> (u, *m)`.

    The rule sees gradient g, parameter p (None where `params` is) and moments in the moments' dtype, and
    `scalars` as attributes of h in the same dtype. The update comes back in the parameter's dtype (the
    gradient's where `params` is None). Raises ValueError or TypeError for a leaf that does not fit.
    """
    check_floating("updates", updates)
    if moments:
        check_same_tree("updates", updates, "the state", moments[0])
    if params is not None:
        check_same_tree("updates", updates, "params", params)
    leaves, structure = jax.tree.flatten(updates)
    columns = [[None] * len(leaves) if tree is None else jax.tree.leaves(tree) for tree in (params, *moments)]
    rows = [_update_leaf(rule, scalars, *row) for row in zip(leaves, *columns, strict=True)]
    outputs = zip(*rows, strict=True) if rows else [()] * (1 + len(moments))
    return tuple(structure.unflatten(column) for column in outputs)


@jax.jit  # traced once for all leaves of one shape and dtype, and one call a leaf outside jit
def _update_leaf(rule, scalars, g, p, *m):
    out_dtype = g.dtype if p is None else p.dtype
    dtype = m[0].dtype if m else moment_dtype(out_dtype)
    h = SimpleNamespace(**{name: jnp.asarray(value, dtype) for name, value in scalars.items()})
    u, *m = rule(h, g.astype(dtype), None if p is None else p.astype(dtype), *m)
    return u.astype(out_dtype), *m


def norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm, right also where squares overflow or vanish; NaN and inf come through."""
    if x.size < 4096:  # a second pass costs less than a branch
        return _scaled_norm(x)
    square = jnp.sum(x**2)
    # Under this, squares that vanished may be more than a rounding error of the sum.
    smallest = x.size * float(jnp.finfo(x.dtype).tiny / jnp.finfo(x.dtype).eps)
    return jax.lax.cond((square > smallest) & (square < np.inf), lambda: jnp.sqrt(square), lambda: _scaled_norm(x))


def _scaled_norm(x):
    largest = jnp.max(jnp.abs(x), initial=0)
    # The norm does not depend on the scale; its derivative must not pick up what rounding leaves of that.
    scale = jax.lax.stop_gradient(jnp.where((largest > 0) & (largest < np.inf), largest, 1))
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2))


def all_finite(tree: Any) -> jax.Array:
    """Whether no element of any leaf is NaN or infinite; a bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] or [jnp.array(True)]))


def find_states(state: State, kind: type) -> list[Any]:
    """The states of type `kind` anywhere in a chained or wrapped `state`."""
    return [s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


# --- the pair ----------------------------------------------------------------------------------------


class Transformation(ABC):
    """A pure pair that turns gradients into updates; `init, update = transformation` unpacks it.

    `init(params)` is the state before the first update, where `params` may also be abstract
    (`jax.ShapeDtypeStruct`). `update(updates, state, params=None, **extra)` is `(updates, state)` after one
    step. Updates are added to the parameters (`apply_updates`): an optimizer returns minus its step.
    Both raise ValueError or TypeError, at trace time, naming the leaf that does not fit.
    Subclasses are made pytrees by `pytree_dataclass`.
    """

    @abstractmethod
    def init(self, params: Params) -> State: ...

    @abstractmethod
    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]: ...

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter((self.init, self.update))

    def to_optax(self) -> Any:
        """The same pair as an `optax.GradientTransformationExtraArgs`.

        `optax.chain` takes our objects as they are, but hands extra keyword arguments only to its own type.
        """
        import optax

        return optax.GradientTransformationExtraArgs(self.init, self.update)


class Leafwise(Transformation):
    """An optimizer that is one `rule`, applied to every leaf.

    A subclass is a `pytree_dataclass` with a learning rate among its fields, names its state (a NamedTuple of
    `step`, `learning_rate` and the moments, which start at zero) and writes the equation:
    `rule(h, g, p, *moments) -> (u, *moments)`. There h holds every numeric field under its own name, the
    learning rate at this step, t (the number of this step, from 1) and what `scalars` adds.
    """

    state_type: ClassVar[type[Any]]
    moments: ClassVar[int] = 0
    rate: ClassVar[str] = "learning_rate"
    rule: Callable[..., tuple[jax.Array, ...]]

    def scalars(self, t: jax.Array) -> dict[str, Any]:
        """What the rule needs once per step, the same for every leaf."""
        del t
        return {}

    def init(self, params):
        check_floating("params", params)
        step = jnp.zeros((), jnp.int32)
        rate = as_scalar(self.rate, at_step(getattr(self, self.rate), step, {"epoch": step}))
        return self.state_type(step, rate, *(zeros_like_moments(params) for _ in range(self.moments)))

    def update(self, updates, state, params=None, **extra):
        if not isinstance(state, self.state_type):
            name, expected = type(self).__name__, self.state_type.__name__
            raise TypeError(f"{name}: expected a state of type {expected}, got {type(state).__name__}")
        rate = as_scalar(self.rate, at_step(getattr(self, self.rate), state.step, extra))
        t = next_step(state.step)
        fields = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self)) if "static" not in f.metadata
        }
        scalars = fields | {self.rate: rate, "t": t} | self.scalars(t)
        updates, *moments = update_leaves(Partial(type(self).rule, self), scalars, updates, params, *state[2:])
        return updates, self.state_type(t, rate, *moments)


@pytree_dataclass
class _Foreign(Transformation):
    """Another library's (init, update) pair."""

    pair: Any

    def init(self, params):
        return self.pair.init(params)

    def update(self, updates, state, params=None, **extra):
        return self.pair.update(updates, state, params, **accepted(self.pair.update, extra, positional=3))


def as_transformation(pair: Any) -> Transformation:
    """One of ours as it is, another library's pair so that it can stand where ours do."""
    if isinstance(pair, Transformation):
        return pair
    if not (hasattr(pair, "init") and hasattr(pair, "update")):
        raise TypeError(f"expected an optimizer or transformation, with init and update, got {pair!r}")
    return _Foreign(pair)


@pytree_dataclass
class chain(Transformation):
    """`chain(a, b, ...)`: a, then b on the updates of a, and so on; the state is the tuple of their states.

    Members are ours or optax's; extra keyword arguments reach the members that take them.
    """

    members: tuple[Transformation, ...]

    def __init__(self, *members: Any):
        object.__setattr__(self, "members", tuple(as_transformation(member) for member in members))

    def init(self, params):
        return tuple(member.init(params) for member in self.members)

    def update(self, updates, state, params=None, **extra):
        if len(state) != len(self.members):
            raise ValueError(f"chain: expected a state of {len(self.members)} members, got {len(state)}")
        states = []
        for member, member_state in zip(self.members, state, strict=True):
            updates, member_state = member.update(updates, member_state, params, **extra)
            states.append(member_state)
        return updates, tuple(states)


def apply_updates(params: Params, updates: Updates) -> Params:
    """params + updates, in the parameters' dtypes. Raises ValueError where a leaf is missing or misshapen."""
    check_same_tree("updates", updates, "params", params)

    def add(p, u):
        dtype = jnp.result_type(p)
        wide = moment_dtype(dtype)
        return (jnp.asarray(p, wide) + jnp.asarray(u, wide)).astype(dtype)

    return jax.tree.map(add, params, updates)
