"""Arrays over the devices of a mesh, and an optimizer's state in pieces over them.

The mesh is the caller's, and so are its axes, `Auto` or `Explicit`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_map_with_path

from ._base import State, Wrapper
from ._packing import Packed, padded
from ._pytree import static
from ._trees import Params, Updates


def checked(name: str, sharding: Any) -> NamedSharding:
    """The sharding; TypeError or ValueError for what does not cut a leading axis, and it alone."""
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f'{name}: sharding must be NamedSharding(mesh, PartitionSpec("data")), got {sharding!r}')
    first, *others = sharding.spec or [None]
    if any(others) or not isinstance(first, str | tuple):
        expected = 'PartitionSpec("data"), say'
        raise ValueError(f"{name}: sharding must cut the leading axis and no other: {expected}; got {sharding.spec}")
    return NamedSharding(sharding.mesh, PartitionSpec(first))


def put(x: Any, sharding: Any) -> jax.Array:
    """On its devices, of a NumPy array without a copy on another one; every process has all of it."""
    if not isinstance(x, jax.Array | np.ndarray):
        x = np.asarray(x)
    if isinstance(x, jax.Array) and (jax.process_count() == 1 or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    x = canonical(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda where: x[where])


def canonical(x: Any) -> np.ndarray:
    return np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def mesh_of(x: Any) -> Any:
    return getattr(x.sharding, "mesh", None) if isinstance(x, jax.Array) and not isinstance(x, Tracer) else None


def is_spread(x: Any) -> bool:
    """Whether it is an array of which some device has a part only; a traced one has no devices yet."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and not x.sharding.is_fully_replicated


def lay_out(tree: Any, sharding: Any) -> Any:
    """The tree in the compiled program with its leaves in one layout, or each in its own of a tuple; None: as it is."""
    if sharding is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    shardings = sharding if isinstance(sharding, tuple) else (sharding,) * len(leaves)
    return structure.unflatten([constrain(x, s) for x, s in zip(leaves, shardings, strict=True)])


def pieces_of(sharding: NamedSharding) -> int:
    return math.prod(sharding.mesh.shape[axis] for axis in axes_of(sharding))


def axes_of(sharding: NamedSharding) -> set[str]:
    axes = sharding.spec[0]
    return {axes} if isinstance(axes, str) else set(axes)


def is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types


def constrain(x: jax.Array, sharding: Any) -> jax.Array:
    return (jax.sharding.reshard if is_explicit(sharding) else jax.lax.with_sharding_constraint)(x, sharding)


def _explicit_sharding_of(x: jax.Array) -> Any:
    """That of a mesh with explicit axes; None where the compiler knows the layout by itself."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def whole(x: jax.Array) -> jax.Array:
    """x on each device, for what cannot be computed of pieces on explicit axes."""
    sharding = _explicit_sharding_of(x)
    return x if sharding is None else jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def take_rows(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """x[chosen] in the layout of x."""
    sharding = _explicit_sharding_of(x)
    return x[chosen] if sharding is None else x.at[chosen].get(out_sharding=sharding)


# --- the optimizer's state in pieces -----------------------------------------------------------------


class shard_state(Wrapper):
    """The state of an optimizer in pieces over devices, parameters whole on each (ZeRO stage 1).

    Each device holds and updates its piece of the moments; what comes of it, the updates, is gathered. The state is
    that of the optimizer itself: of each leaf the longest axis that divides is cut, and a leaf without one is whole.
    The moments of `shard_state(pack_moments(...))` get zeros at their end, so that they divide. (Parameters in pieces
    need none of this: their moments lie where they lie.)

    Args:
        optimizer: ours or another library's.
        sharding: NamedSharding(mesh, PartitionSpec("data")), say: the axis of the mesh that the state is cut over.

    Raises:
        TypeError, ValueError: for another sharding, and for a leaf whose longest axis is in pieces already.

    Source: Rajbhandari, Rasley, Ruwase & He, "ZeRO: memory optimizations toward training trillion parameter models"
    (2020).
    """

    sharding: NamedSharding = static()

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["sharding"] = checked("shard_state", self.sharding)

    def init(self, params: Params) -> State:
        state = self.optimizer.init(params)
        if not any(map(_is_packed, jax.tree.leaves(params, is_leaf=_is_packed))):
            multiple = math.lcm(_PADDED, pieces_of(self.sharding))
            state = jax.tree.map(lambda x: padded(x, multiple) if _is_packed(x) else x, state, is_leaf=_is_packed)
        return tree_map_with_path(self._cut, state)

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        updates, state = self.optimizer.update(updates, state, params, **extra)
        if set(self.sharding.mesh.axis_names) == axes_of(self.sharding):
            # With other axes in the mesh a parameter may lie in pieces over them, and so may its update.
            updates = lay_out(updates, NamedSharding(self.sharding.mesh, PartitionSpec()))
        return updates, tree_map_with_path(self._cut, state)

    def _cut(self, path: Any, x: jax.Array) -> jax.Array:
        mesh, pieces = self.sharding.mesh, pieces_of(self.sharding)
        lengths = [length if length % pieces == 0 else 0 for length in jnp.shape(x)]
        traced = isinstance(x, Tracer)
        if not any(lengths):
            return x if traced else put(x, NamedSharding(mesh, PartitionSpec()))
        # The other axes as they are; in a mesh of automatic axes only the compiler knows how.
        axes: list[Any] = [PartitionSpec.UNCONSTRAINED if traced else None] * x.ndim
        if is_explicit(self.sharding) or mesh_of(x) == mesh:
            known = jax.typeof(x).sharding.spec if traced else getattr(x.sharding, "spec", ())
            axes = [*known, *[None] * (x.ndim - len(known))]
        cut, over = lengths.index(max(lengths)), self.sharding.spec[0]
        if axes[cut] not in (None, over, PartitionSpec.UNCONSTRAINED):
            where = f"state{keystr(path)} {x.shape}"
            raise ValueError(f"shard_state: {where} lies over {axes[cut]!r} along its longest axis: cut another axis")
        axes[cut] = over
        return (constrain if traced else put)(x, NamedSharding(mesh, PartitionSpec(*axes)))


_PADDED = 512  # elements: one length for all usual numbers of devices, so that a checkpoint goes from one to another


def _is_packed(x: Any) -> bool:
    return isinstance(x, Packed)
