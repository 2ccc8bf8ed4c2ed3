"""Store many small leaves in a few contiguous buffers.

A jitted call on a tree of many small leaves spends most of its time on passing the arrays. A `Packed` passes one buffer
per dtype and sharding, and an optimizer treats it like any other tree. There are two ways to use it, the faster first:

- pack the parameters, and differentiate with respect to the packed ones: `loss(unpack(packed), batch)`;
- keep parameters and gradients as trees, and pack only the moments: `pack_moments(optimizer)`.

Predicates, projections and `gradient_magnitude` see the leaves of a `Packed`. `freeze` unpacks packed parameters, so
`freeze(pack_moments(optimizer), where)` is faster.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import tree_flatten_with_path

from .._core.pytree import static
from .._core.trees import check_addable, check_floating, check_same_tree, moment_dtype
from .._core.types import Leaf, Params, State, Tree, Updates
from .transformation import Wrapper, find_states

LARGEST = 8192  # elements: copying a larger leaf costs more than passing it


@dataclass(frozen=True)
class Layout:
    """The positions of the leaves of a tree in the buffers of a `Packed`; hashable.

    groups[i] lists the indices of the leaves in buffer i, in order. A single leaf keeps its shape. Buffers of several
    leaves are padded with zeros to a multiple of `multiple`.
    """

    structure: Tree
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    multiple: int = 1

    def __post_init__(self) -> None:
        # Every jitted call hashes the layout, so the hash is computed once.
        object.__setattr__(self, "_hash", hash((self.structure, self.shapes, self.groups, self.multiple)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[object, ...]:  # hashes of strings differ between processes
        return Layout, (self.structure, self.shapes, self.groups, self.multiple)

    def sizes(self, group: Sequence[int]) -> list[int]:
        """The number of elements of each leaf in a buffer, and of the padding at its end."""
        sizes = [int(np.prod(self.shapes[number])) for number in group]
        return [*sizes, -sum(sizes) % self.multiple]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["buffers"], meta_fields=["layout"])
@dataclass(frozen=True)
class Packed:
    """A tree whose small leaves share buffers; `unpack` returns the tree."""

    buffers: tuple[jax.Array, ...]
    layout: Layout


def _layout(tree: Tree, largest: int) -> Layout:
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[object, list[int]] = {}
    for number, leaf in enumerate(leaves):
        sharding = leaf.sharding if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) else None
        together = np.prod(jnp.shape(leaf)) <= largest and (sharding is None or sharding.is_fully_replicated)
        key = (jnp.result_type(leaf), sharding) if together else number
        groups.setdefault(key, []).append(number)
    return Layout(structure, tuple(map(jnp.shape, leaves)), tuple(map(tuple, groups.values())))


def _pack(tree: Tree, layout: Layout) -> Packed:
    leaves = jax.tree.leaves(tree)

    def buffer(group: Sequence[int]) -> jax.Array:
        together = [leaves[number] for number in group]
        if len(together) == 1:
            return _own(together[0])
        dtypes = {jnp.result_type(leaf) for leaf in together}
        # The gradients of parameters of one dtype may have several dtypes.
        dtype = dtypes.pop() if len(dtypes) == 1 else functools.reduce(np.promote_types, map(moment_dtype, dtypes))
        parts = [jnp.ravel(jnp.asarray(leaf, dtype)) for leaf in together]
        zeros = layout.sizes(group)[-1]
        return jnp.concatenate([*parts, jnp.zeros(zeros, dtype)] if zeros else parts)

    return Packed(tuple(map(buffer, layout.groups)), layout)


def _own(leaf: Leaf) -> Leaf:
    """A copy: the owner may write to a NumPy array, and a step donates the buffers of JAX arrays."""
    return leaf if isinstance(leaf, Tracer | jax.ShapeDtypeStruct) else jnp.array(leaf)


def pack(tree: Params, largest: int = LARGEST) -> Packed:
    """Pack the small leaves of a tree into one buffer per dtype and sharding.

    Larger leaves, and leaves that are sharded over devices, are copied into separate buffers. Call `pack` outside
    `jit`, where shardings are known.

    Args:
        tree: a pytree of arrays.
        largest: leaves of at most this many elements share a buffer.
    """
    return _pack(tree, _layout(tree, largest))


def pack_like(tree: Params, packed: Packed) -> Packed:
    """Pack `tree` in the layout of `packed`.

    A leaf may lack a wrapper that contained only this leaf: flax's nnx passes variables to `init`, but their arrays to
    `update`.

    Args:
        tree: a pytree with the structure and shapes of the tree in `packed`.
        packed: a packed tree.

    Raises:
        ValueError: if the structure or a shape differs; it names the leaf.
    """
    return _pack_as("tree", tree, "packed", packed.layout)


def _pack_as(name: str, tree: Params, reference_name: str, layout: Layout) -> Packed:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in layout.shapes]
    check_same_tree(name, tree, reference_name, _unwrapped(layout.structure.unflatten(shapes), tree))
    return _pack(tree, layout)


def _unwrapped(tree: Tree, like: Tree) -> Tree:
    """`tree` in the structure of `like`, if each path in `like` is a prefix of the corresponding path in `tree`."""
    structure = jax.tree.structure(like)
    if jax.tree.structure(tree) == structure:
        return tree
    paths, begins = ([path for path, _ in tree_flatten_with_path(t)[0]] for t in (tree, like))
    same = len(paths) == len(begins) and all(p[: len(b)] == b for p, b in zip(paths, begins, strict=True))
    return structure.unflatten(jax.tree.leaves(tree)) if same else tree


def unpack(packed: Packed) -> Params:
    """Return a copy of the tree that was packed; differentiable.

    Under `jit` on CPU, XLA compiles a kernel for each leaf, so compilation is slow for many leaves.

    Args:
        packed: a packed tree.

    Raises:
        ValueError: if a buffer has the wrong shape.
    """
    layout = packed.layout
    if any(isinstance(buffer, jax.ShapeDtypeStruct) for buffer in packed.buffers):
        return jax.eval_shape(unpack, packed)
    leaves: list[Leaf] = [None] * len(layout.shapes)
    for buffer, group in zip(packed.buffers, layout.groups, strict=True):
        if len(group) == 1:
            leaves[group[0]] = _own(buffer)
            continue
        sizes = layout.sizes(group)
        if buffer.shape != (sum(sizes),):
            raise ValueError(f"unpack: expected a buffer of shape {(sum(sizes),)}, got {buffer.shape}")
        for number, part in zip(group, _split(buffer, sizes), strict=False):
            leaves[number] = part.reshape(layout.shapes[number])
    return layout.structure.unflatten(leaves)


def padded(packed: Packed, multiple: int) -> Packed:
    """The same leaves in buffers that are padded to a multiple of `multiple`."""
    return _pack(unpack(packed), replace(packed.layout, multiple=multiple))


def _split(buffer: jax.Array, sizes: Sequence[int]) -> Sequence[jax.Array]:
    if isinstance(buffer, Tracer):
        return jax.lax.split(buffer, sizes)  # its derivative is one concatenation
    # Outside jit, slices of equal size share one program; a split would compile a kernel for each.
    starts = np.cumsum([0, *sizes[:-1]])
    return [jax.lax.dynamic_slice_in_dim(buffer, start, size) for start, size in zip(starts, sizes, strict=True)]


def unpack_all(tree: Tree) -> Tree:
    """Unpack every `Packed` in `tree`. A state becomes the state without packing.

    Args:
        tree: a pytree, for example the state of an optimizer.
    """
    return jax.tree.map(lambda x: unpack(x) if is_packed(x) else x, tree, is_leaf=is_packed)


def pack_all_like(tree: Tree, like: Tree) -> Tree:
    """Pack the parts of `tree` that are packed in `like`: the inverse of `unpack_all`.

    Use it to restore a state that was saved without packing.

    Args:
        tree: a pytree without packing.
        like: the same tree, with packing.
    """
    return jax.tree.map(lambda p, x: pack_like(x, p) if is_packed(p) else x, like, tree, is_leaf=is_packed)


def is_packed(x: Leaf) -> bool:
    return isinstance(x, Packed)


class pack_moments(Wrapper):
    """Pack the moments of an element-wise optimizer; parameters and gradients stay trees.

    The state is the state of the optimizer on packed parameters. `unpack_all` converts it to the state of the optimizer
    without packing, and `pack_all_like` converts it back.

    Args:
        optimizer: an element-wise optimizer, from this package or another library.
        largest: leaves of at most this many elements share a buffer.
    """

    largest: int = static(default=LARGEST)

    def init(self, params: Params) -> State:
        check_floating("params", params)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return self.optimizer.init(jax.eval_shape(functools.partial(pack, largest=self.largest), params))
        return self.optimizer.init(pack(params, self.largest))

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        moments = find_states(state, Packed)
        if not moments:
            self._check_nothing_to_pack(updates, state)
            return self.optimizer._update(updates, state, params, **extra)
        check_floating("updates", updates)
        if params is not None:
            check_addable("updates", updates, "params", params)
        layout = moments[0].layout
        packed_params = None if params is None else _pack_as("params", params, "the state", layout)
        packed_updates = _pack_as("updates", updates, "the state", layout)
        packed, state = self.optimizer._update(packed_updates, state, packed_params, **extra)
        like, structure = jax.tree.flatten(updates if params is None else params)
        new = [u.astype(jnp.result_type(x)) for u, x in zip(jax.tree.leaves(unpack(packed)), like, strict=True)]
        return structure.unflatten(new), state

    def _check_nothing_to_pack(self, updates: Updates, state: State) -> None:
        """Raise ValueError if the optimizer has moments, because then the state should be packed."""
        if find_states(jax.eval_shape(self.init, updates), Packed):
            raise ValueError(
                "pack_moments: expected the state of the optimizer on packed parameters; "
                "use pack_all_like(state, init(params)) to pack a state of the optimizer alone"
            )
