"""One step of a classic optimizer, for the classes: NumPy arrays return as NumPy arrays, JAX arrays as JAX arrays."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._core.trees import check_floating, moment_dtype
from .._core.types import Leaf, State, Tree
from .leafwise import Leafwise

_DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")]
_SMALL = 2**14  # elements: up to this size, calling XLA costs more than the arithmetic in NumPy


class Stepper:
    """A classic optimizer with its state: `delta = stepper(stepsize, gradient)` makes one step.

    A small model in NumPy is updated in NumPy, without XLA.

    Args:
        optimizer: an optimizer of `classic`; its numbers are Python floats.
    """

    def __init__(self, optimizer: Leafwise) -> None:
        self.optimizer = optimizer
        self.state: State = None
        self._in_numpy: bool | None = None  # once False, it stays False
        self._delta: Tree = None  # the last step, for its shapes

    def __call__(self, stepsize: float, gradient: Tree) -> Tree:
        """Return the step to subtract from the parameters, in the array types and dtypes of the gradient.

        Args:
            stepsize: the learning rate of this step.
            gradient: a pytree of arrays, with the same structure and shapes at every call; it is not modified.
        """
        in_numpy = self._in_numpy is not False and _is_small(gradient)
        if in_numpy:
            delta, self.state = _step_in_numpy(self.optimizer, stepsize, gradient, self.state)
        else:
            check_floating("gradient", gradient)
            if self._in_numpy:  # the last step was in NumPy: the model has changed its arrays
                self.state = self.moments_as_trees()
            state = self.optimizer.init(gradient) if self.state is None else self.state
            delta, self.state = _step(self.optimizer, stepsize, gradient, state)
            delta = as_given(gradient, delta)
        self._in_numpy, self._delta = in_numpy, delta
        return delta

    def moments_as_trees(self) -> State:
        """The state of the functional optimizer; None before the first step."""
        if not self._in_numpy:
            return self.state
        state = self.state
        moments = {name: _cut(getattr(state, name), self._delta) for name in self.optimizer.moment_names}
        return state._replace(step=np.int32(state.step), learning_rate=np.float32(state.learning_rate), **moments)

    def __copy__(self) -> Stepper:
        twin = object.__new__(Stepper)
        vars(twin).update(vars(self))
        # A step in JAX donates the state, so two steppers must not share it.
        twin.state = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, self.state)
        return twin


def as_given(given: Tree, computed: Tree) -> Tree:
    """The computed tree in the array types of the given one; NumPy arrays are new and writable."""

    def convert(g: Leaf, x: Leaf) -> Leaf:
        # np.asarray would return a read-only view of a JAX array. A float64 leaf gets a float64 result.
        return np.array(x, dtype=np.promote_types(g.dtype, x.dtype)) if isinstance(g, np.ndarray) else x

    return jax.tree.map(convert, given, computed)


@partial(jax.jit, donate_argnames="state")
def _step(optimizer, stepsize, gradient, state):
    updates, state = optimizer.replace_unchecked(**{optimizer.rate_name: stepsize}).update(gradient, state)
    return jax.tree.map(jnp.negative, updates), state


def _is_small(tree):
    leaves = jax.tree.leaves(tree)
    one_kind = all(type(x) is np.ndarray and x.dtype == leaves[0].dtype for x in leaves)
    return bool(leaves) and one_kind and leaves[0].dtype in _DTYPES and sum(x.size for x in leaves) <= _SMALL


def _step_in_numpy(optimizer, stepsize, gradient, state):
    """`_step` in NumPy. The leaves are concatenated into one array, and so are the moments in the state."""
    g = np.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])
    names = optimizer.moment_names
    if state is None or not names:
        dtype = moment_dtype(jax.dtypes.canonicalize_dtype(g.dtype))
        moments = [np.zeros(g.shape, dtype) for _ in names]
    else:
        moments = [getattr(state, name) for name in names]
        dtype = moments[0].dtype
    t = 1 if state is None else min(state.step + 1, np.iinfo(np.int32).max)
    numbers = {name: dtype.type(value) for name, value in (vars(optimizer) | {optimizer.rate_name: stepsize}).items()}
    with np.errstate(all="ignore"):
        u, *moments = optimizer.replace_unchecked(**numbers).rule(dtype.type(t), g.astype(dtype), None, *moments)
        delta = jax.tree.map(lambda d, x: d.astype(x.dtype), _cut(-u, gradient), gradient)
    return delta, optimizer.state_type(t, stepsize, **dict(zip(names, moments, strict=True)))


def _cut(array, like):
    """Split the array into a tree with the structure and shapes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    ends = itertools.accumulate(x.size for x in leaves)
    return structure.unflatten(
        [array[end - x.size : end].reshape(x.shape) for x, end in zip(leaves, ends, strict=True)]
    )
