"""Shard the state of an optimizer over the devices of a mesh."""

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
    """Shard the state of an optimizer over devices, with parameters replicated on each device (ZeRO stage 1).

    Each device stores and updates its shard of the moments, and the resulting updates are gathered. The state keeps the
    structure of the wrapped optimizer's state. Each leaf is sharded along its longest axis that the number of devices
    divides; a leaf without such an axis is replicated. The moments of `shard_state(pack_moments(...))` are padded with
    zeros so that they divide. Parameters that are sharded themselves do not need this wrapper, because their moments
    have the same sharding.

    Args:
        optimizer: an optimizer, from this package or another library.
        sharding: the axis of the mesh to shard over, for example NamedSharding(mesh, PartitionSpec("data")).

    Raises:
        TypeError, ValueError: if `sharding` has another form, or if the longest axis of a leaf is already sharded over
            another axis of the mesh.

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
            # If the mesh has other axes, a parameter and its update may be sharded over them.
            updates = lay_out(updates, NamedSharding(self.sharding.mesh, PartitionSpec()))
        return updates, tree_map_with_path(self._cut, state)

    def _cut(self, path: KeyPath, x: jax.Array) -> jax.Array:
        mesh, pieces = self.sharding.mesh, pieces_of(self.sharding)
        lengths = [length if length % pieces == 0 else 0 for length in jnp.shape(x)]
        traced = isinstance(x, Tracer)
        if not any(lengths):
            return x if traced else put(x, NamedSharding(mesh, PartitionSpec()))
        # The other axes keep their sharding, which only the compiler sees if the axes of the mesh are automatic.
        axes: list[object] = [PartitionSpec.UNCONSTRAINED if traced else None] * x.ndim
        if is_explicit(self.sharding) or mesh_of(x) == mesh:
            known = jax.typeof(x).sharding.spec if traced else getattr(x.sharding, "spec", ())
            axes = [*known, *[None] * (x.ndim - len(known))]
        cut, over = lengths.index(max(lengths)), self.sharding.spec[0]
        if axes[cut] not in (None, over, PartitionSpec.UNCONSTRAINED):
            where = f"state{keystr(path)} {x.shape}"
            raise ValueError(
                f"shard_state: {where} is already sharded over {axes[cut]!r} along its longest axis; "
                f"shard the state over another axis than {over!r}"
            )
        axes[cut] = over
        return (constrain if traced else put)(x, NamedSharding(mesh, PartitionSpec(*axes)))


_PADDED = 512  # elements: the padded length is the same for the usual numbers of devices, and so are checkpoints
