"""Arrays sharded over the devices of a mesh. The caller creates the mesh, with `Auto` or `Explicit` axes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .types import Leaf, Sharding, Tree


def checked(where: str, sharding: Sharding | None) -> NamedSharding:
    """Return the sharding. Raises TypeError or ValueError unless it shards the leading axis and no other axis."""
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f'{where} must be NamedSharding(mesh, PartitionSpec("data")), got {sharding!r}')
    first, *others = sharding.spec or [None]
    if any(others) or not isinstance(first, str | tuple):
        expected = 'PartitionSpec("data")'
        raise ValueError(
            f"{where} must shard the leading axis and no other axis, for example {expected}; got {sharding.spec}"
        )
    return NamedSharding(sharding.mesh, PartitionSpec(first))


def put(x: Leaf, sharding: Sharding) -> jax.Array:
    """Put x on the devices of the sharding. Every process passes the whole array; NumPy arrays are copied only once."""
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
    """Whether x is an array of which some device has only a part. A traced array has no devices yet."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and not x.sharding.is_fully_replicated


def lay_out(tree: Tree, sharding: NamedSharding | tuple[NamedSharding, ...] | None) -> Tree:
    """Constrain the leaves, in a compiled program, to one sharding or to a tuple with one per leaf; None: unchanged."""
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
    """The sharding of x if its mesh has explicit axes; otherwise None, and the compiler chooses the layout."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def whole(x: jax.Array) -> jax.Array:
    """x replicated on each device, for operations that explicit axes do not support on shards."""
    sharding = _explicit_sharding_of(x)
    return x if sharding is None else jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))


def take_rows(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """x[chosen] with the sharding of x."""
    sharding = _explicit_sharding_of(x)
    return x[chosen] if sharding is None else x.at[chosen].get(out_sharding=sharding)
