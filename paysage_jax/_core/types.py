"""Names for what Python's types cannot say: which pytrees, leaves and numbers a function takes."""

from __future__ import annotations

from typing import Any

import jax

Tree = Any  # a pytree of arrays
Params = Tree  # of floating or complex arrays
Updates = Tree  # like Params
State = Tree  # of an optimizer
Batch = Tree  # of arrays with one leading axis
Leaf = Any  # an array of JAX or NumPy, a number, or what stands for an array while JAX traces
Statistics = Any  # a NamedTuple or dict of arrays
KeyPath = tuple[Any, ...]  # where a leaf is in its tree
Row = dict[str, Tree]  # of a history: one measurement by name
Extra = dict[str, Any]  # the extra arguments of an update, as in optax
Sharding = jax.sharding.Sharding
