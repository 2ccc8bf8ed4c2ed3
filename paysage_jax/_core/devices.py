"""Arrays over the devices of a mesh, which is the caller's, as are its axes, `Auto` or `Explicit`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .types import Leaf, Sharding, Tree


def checked(where: str, sharding: Sharding | None) -> NamedSharding:
    """The sharding; TypeError or ValueError for what does not cut a leading axis, and it alone."""
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f'{where} must be NamedSharding(mesh, PartitionSpec("data")), got {sharding!r}')
    first, *others = sharding.spec or [None]
    if any(others) or not isinstance(first, str | tuple):
        expected = 'PartitionSpec("data"), say'
        raise ValueError(f"{where} must cut the leading axis and no other: {expected}; got {sharding.spec}")
    return NamedSharding(sharding.mesh, PartitionSpec(first))


def put(x: Leaf, sharding: Sharding) -> jax.Array:
    """On its devices, of a NumPy array without a copy on another one; every process has all of it."""
    if not isinstance(x, jax.Array | np.ndarray):
        x = np.asarray(x)
    if isinstance(x, jax.Array) and (jax.process_count() == 1 or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    x = canonical(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda where: x[where])


def canonical(x: Leaf) -> np.ndarray:
    return np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def mesh_of(x: Leaf) -> Mesh | None:
    return getattr(x.sharding, "mesh", None) if isinstance(x, jax.Array) and not isinstance(x, Tracer) else None


def is_partitioned(x: Leaf) -> bool:
    """Whether it is an array of which some device has a part only; a traced one has no devices yet."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and not x.sharding.is_fully_replicated


def lay_out(tree: Tree, sharding: NamedSharding | tuple[NamedSharding, ...] | None) -> Tree:
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


def constrain(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return (jax.sharding.reshard if is_explicit(sharding) else jax.lax.with_sharding_constraint)(x, sharding)


def _explicit_sharding_of(x: jax.Array) -> NamedSharding | None:
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
