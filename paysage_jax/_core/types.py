"""Type aliases that name the pytrees, leaves and numbers a function takes."""

from __future__ import annotations

from typing import Any

import jax

Tree = Any  # a pytree of arrays
Params = Tree  # a pytree of floating or complex arrays
Updates = Tree  # like Params
State = Tree  # the state of an optimizer
Batch = Tree  # a pytree of arrays with a common leading axis
Leaf = Any  # an array of JAX or NumPy, a number, or a tracer
Statistics = Any  # a NamedTuple or dict of arrays
KeyPath = tuple[Any, ...]  # the position of a leaf in its tree
Row = dict[str, Tree]  # a row of a history: measurements by name
Extra = dict[str, Any]  # the extra arguments of an update, as in optax
Sharding = jax.sharding.Sharding
