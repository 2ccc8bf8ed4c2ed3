"""The state of an optimizer in pieces over the devices of a mesh."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_map_with_path

from .._core.devices import axes_of, checked, constrain, is_explicit, lay_out, mesh_of, pieces_of, put
from .._core.pytree import converted
from .._core.types import KeyPath, Params, State, Updates
from .packing import is_packed, padded
from .transformation import Wrapper


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

    sharding: NamedSharding = converted(checked, static=True)

    def init(self, params: Params) -> State:
        state = self.optimizer.init(params)
        if not any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed))):
            multiple = math.lcm(_PADDED, pieces_of(self.sharding))
            state = jax.tree.map(lambda x: padded(x, multiple) if is_packed(x) else x, state, is_leaf=is_packed)
        return tree_map_with_path(self._cut, state)

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        updates, state = self.optimizer._update(updates, state, params, **extra)
        if set(self.sharding.mesh.axis_names) == axes_of(self.sharding):
            # With other axes in the mesh a parameter may lie in pieces over them, and so may its update.
            updates = lay_out(updates, NamedSharding(self.sharding.mesh, PartitionSpec()))
        return updates, tree_map_with_path(self._cut, state)

    def _cut(self, path: KeyPath, x: jax.Array) -> jax.Array:
        mesh, pieces = self.sharding.mesh, pieces_of(self.sharding)
        lengths = [length if length % pieces == 0 else 0 for length in jnp.shape(x)]
        traced = isinstance(x, Tracer)
        if not any(lengths):
            return x if traced else put(x, NamedSharding(mesh, PartitionSpec()))
        # The other axes as they are; in a mesh of automatic axes only the compiler knows how.
        axes: list[object] = [PartitionSpec.UNCONSTRAINED if traced else None] * x.ndim
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
