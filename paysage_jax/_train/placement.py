"""The placement of data, batches and chains on devices.

A row never leaves its device. Data are split into shards; each shard is shuffled independently and contributes equally
to every batch. A run therefore depends on the number of shards, not on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from .._core.batches import batch_size_of
from .._core.devices import (
    axes_of,
    canonical,
    checked,
    constrain,
    is_explicit,
    is_partitioned,
    lay_out,
    mesh_of,
    pieces_of,
    put,
)
from .._core.permutation import permutation
from .._core.pytree import check_count
from .._core.trees import check_same_tree
from .._core.types import Batch, KeyPath, Leaf, Params, Sharding, State, Tree
from .processes import lockstep


@dataclass(frozen=True)
class Placement:
    """The sharding of the leading axis of data, batches and chains; hashable.

    sharding: the sharding over the devices of a mesh; None for the default device. shards: the number of shards of data
    in memory. state, result: the shardings of the leaves of a run's state and result (without the history), which the
    run keeps; None: the compiler chooses.
    """

    sharding: NamedSharding | None = None
    shards: int = 1
    state: tuple[NamedSharding, ...] | None = None
    result: tuple[NamedSharding, ...] | None = None

    @property
    def copy(self) -> Callable[[np.ndarray], Leaf]:
        """The function that copies a NumPy array: on the host, if the copy is put on the devices of a mesh later."""
        return jnp.array if self.sharding is None else np.array

    @property
    def devices(self) -> int:
        """The number of devices that rows are sharded over."""
        return 1 if self.sharding is None else pieces_of(self.sharding)

    @property
    def description(self) -> str:
        """The mesh and the sharded axes as text, on which all processes must agree."""
        if self.sharding is None:
            return ""
        devices = [device.id for device in np.array(self.sharding.mesh.devices).flat]
        return f"{self.sharding.spec} {dict(self.sharding.mesh.shape)} {devices}"

    # --- on the host: arrays go to their devices ---

    def put_data(self, data: Batch) -> Batch:
        """Put data in memory, which are the same in every process: sharded if they divide, otherwise replicated."""
        return self._rows(data, self.divides(batch_size_of("data", data)))

    def put_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Join the batches of all processes. A batch that does not divide is replicated."""
        processes = jax.process_count()
        for batch in lockstep(batches):
            rows = batch_size_of("batch", batch)
            if self.sharding is None or (rows * processes) % self.devices == 0:
                yield jax.tree.map(self._rows_of_all, batch)
            else:
                yield jax.tree.map(lambda x: put(process_allgather(x, tiled=True), self.replicated), batch)

    def put_whole(self, name: str, tree: Tree) -> Tree:
        """Replicate arrays on each device, unless they are already on the mesh.

        Raises ValueError for an array that is sharded over another mesh.
        """
        if self.sharding is None:
            return tree
        mesh = self.sharding.mesh

        def place(path: KeyPath, x: Leaf) -> jax.Array:
            other = mesh_of(x)
            if other == mesh:
                return x
            if other and not x.sharding.is_fully_replicated:
                raise ValueError(f"fit: {name}{keystr(path)} is on {other}, but sharding is on {mesh}; use one mesh")
            return put(x, self.replicated)

        return tree_map_with_path(place, tree)

    def put_chains(self, tree: Tree) -> Tree:
        """Put the state of an estimator on the devices. Leading axes that divide are sharded."""
        if self.sharding is None:
            return tree
        return jax.tree.map(lambda x: self._rows(x, jnp.ndim(x) > 0 and len(x) % self.devices == 0), tree)

    def put_run(self, run: Tree, params: Params, optimizer_state: State) -> tuple[Tree, Placement]:
        """Put a run on the devices with the shardings of these parameters and this optimizer state.

        Also returns the placement that keeps these shardings.
        """

        def as_of(name: str, tree: Tree, like: Tree) -> Tree:
            check_same_tree(f"fit: resume.{name}", tree, "this run's", like)
            return jax.tree.map(lambda x, y: put(x, y.sharding), tree, like)

        def whole(tree: Tree) -> Tree:
            return jax.tree.map(lambda x: put(x, self.replicated), tree)

        best = run.best
        if best != ():
            best = whole(best._replace(params=()))._replace(params=as_of("best.params", best.params, params))
        placed = run._replace(
            params=as_of("params", run.params, params),
            optimizer_state=as_of("optimizer_state", run.optimizer_state, optimizer_state),
            estimator_state=self.put_chains(run.estimator_state),
            epochs_done=whole(run.epochs_done),
            outcome=whole(run.outcome),
            best=best,
            history=(),
        )
        state, result = ([x.sharding for x in jax.tree.leaves(tree)] for tree in (placed.state, placed))
        return placed._replace(history=run.history), replace(self, state=tuple(state), result=tuple(result))

    def holds(self, tree: Tree) -> bool:
        """Whether all leaves are on the mesh."""
        return self.sharding is not None and all(mesh_of(x) == self.sharding.mesh for x in jax.tree.leaves(tree))

    def first_rows(self, data: Batch, size: int) -> Batch:
        """The first rows, replicated on all devices."""
        return _first_rows(data, size, self.replicated)

    @property
    def replicated(self) -> Any:
        """The sharding that replicates arrays on every device."""
        return self.sharding and NamedSharding(self.sharding.mesh, PartitionSpec())

    def _rows(self, tree: Tree, divides: bool) -> Tree:
        if self.sharding is None:
            return tree
        where: Any = self.sharding if divides else self.replicated
        return jax.tree.map(lambda x: put(x, where), tree)

    def _rows_of_all(self, x: Leaf) -> jax.Array:
        if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return self._rows(x, True)
        joined = jax.make_array_from_process_local_data(self.sharding, canonical(x))
        if len(joined) != len(x) * jax.process_count():
            raise ValueError(
                f"fit: sharding: {jax.process_count()} processes with {len(x)} rows each make {len(joined)} rows; "
                "the devices of each process must hold rows that no other process holds"
            )
        return joined

    # --- in the compiled program: rows of batches ---

    def divides(self, size: int) -> bool:
        """Whether every shard is on one device."""
        return self.sharding is not None and size % self.shards == 0

    def order(self, key: jax.Array, size: int, shuffle: bool) -> jax.Array:
        """The order of the rows in each shard, as row numbers (shards, rows of a shard)."""
        each = size // self.shards
        if not shuffle:
            return jnp.tile(jnp.arange(each), (self.shards, 1))
        if self.shards == 1:
            return permutation(key, each)[None]
        return jax.vmap(lambda k: permutation(k, each))(jax.random.split(key, self.shards))

    def take(self, data: Batch, chosen: jax.Array, with_remainder: bool = False) -> Batch:
        """The rows `chosen` (shards, rows) of each shard, optionally with the remaining rows that are in no shard."""
        size = batch_size_of("data", data)
        each = size // self.shards

        def rows(data: Batch, chosen: jax.Array) -> Batch:
            numbers = (chosen + each * jnp.arange(len(chosen), dtype=chosen.dtype)[:, None]).reshape(-1)
            if with_remainder and size % self.shards:
                numbers = jnp.concatenate([numbers, jnp.arange(each * self.shards, size, dtype=chosen.dtype)])
            return jax.tree.map(lambda x: x[numbers], data)

        if self.sharding is None:
            return rows(data, chosen)
        if not self.divides(size):  # the data are replicated
            batch = rows(data, chosen)
            return lay_out(batch, self.sharding) if batch_size_of("batch", batch) % self.devices == 0 else batch
        here = PartitionSpec(self.sharding.spec[0])
        if is_explicit(self.sharding):
            chosen = constrain(chosen, NamedSharding(self.sharding.mesh, here))
        of_shards = {"in_specs": (here, here), "out_specs": here, "axis_names": axes_of(self.sharding)}
        return jax.shard_map(rows, mesh=self.sharding.mesh, **of_shards)(data, chosen)


@partial(jax.jit, static_argnames=("size", "whole"))
def _first_rows(data: Batch, size: int, whole: NamedSharding | None) -> Batch:
    def take(data: Batch) -> Batch:
        return jax.tree.map(lambda x: x[:size], data)

    if whole is None:
        return take(data)
    return jax.sharding.auto_axes(take, out_sharding=whole)(data) if is_explicit(whole) else lay_out(take(data), whole)


def placement(sharding: Sharding | None, shards: Leaf) -> Placement:
    """The placement for the arguments `sharding` and `shards` of `fit`.

    Raises:
        TypeError, ValueError: if the sharding does not shard the leading axis, or if the shards do not divide.
    """
    if sharding is not None:
        sharding = checked("sharding", sharding)
    elif jax.process_count() > 1:
        raise ValueError(
            f"sharding must be given for {jax.process_count()} processes, which would otherwise train separate models; "
            'pass NamedSharding(mesh, PartitionSpec("data")) with a mesh over the devices of all processes'
        )
    pieces = 1 if sharding is None else pieces_of(sharding)
    if shards is None:
        return Placement(sharding, pieces)
    check_count("shards", shards)
    if shards % pieces:
        raise ValueError(f"shards must be a multiple of the {pieces} shards of sharding, got {shards}")
    return Placement(sharding, int(shards))


def check_not_partitioned(name: str, tree: Tree) -> None:
    """Raise ValueError for sharded arrays, which would be replicated without `sharding=`."""
    for path, x in tree_flatten_with_path(tree)[0]:
        if is_partitioned(x):
            where, devices = name + keystr(path), len(x.sharding.device_set)
            raise ValueError(f"fit: {where} is sharded over {devices} devices, {x.sharding}; pass sharding= as well")
