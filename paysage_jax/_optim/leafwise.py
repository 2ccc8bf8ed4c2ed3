"""The base class of the optimizers: fields, and a rule that is applied to every leaf."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._core.trees import (
    as_scalar,
    check_addable,
    check_floating,
    check_same_tree,
    moment_dtype,
    real_dtype,
    zeros_like_moments,
)
from .._core.types import Extra, Params, State, Tree, Updates
from .transformation import OPTIMIZER, Transformation, at_step, next_step


class Leafwise(Transformation):
    """Base class of optimizers that apply one equation to every leaf.

    A subclass declares its hyperparameters as fields, exactly one of them with `rate`, sets its `state_type`, and
    defines its `rule`:

        class signsgd(Leafwise):
            learning_rate: Number | Schedule = rate()
            state_type = SgdState

            def rule(self, t, g, p):
                return (-self.learning_rate * jnp.sign(g),)

    The state is a NamedTuple of `step`, `learning_rate` (the one applied last) and the moments. Moments start at zero
    and are at least float32, whatever the dtype of the parameters.
    """

    _stage = OPTIMIZER
    real_moments: ClassVar[tuple[str, ...]] = ("mean_square",)  # moments that are real even for complex gradients
    rate_name: ClassVar[str]
    moment_names: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        rates = [field.name for field in dataclasses.fields(cast(Any, cls)) if "rate" in field.metadata]
        if len(rates) != 1 or cls.state_type is object:
            raise TypeError(f"{cls.__name__}: expected one field declared by `rate` and a `state_type`, got {rates}")
        cls.rate_name = rates[0]
        cls.moment_names = tuple(name for name in cls.state_type._fields if name not in ("step", "learning_rate"))

    # `*moments: Any, **_: Any` lets type checkers accept an override that names its moments.
    @abstractmethod
    def rule(self, t: jax.Array, g: jax.Array, p: jax.Array | None, *moments: Any, **_: Any) -> tuple[jax.Array, ...]:
        """Return (u, *moments) for one leaf: the update that is added to the parameter, and the new moments.

        All arrays have the dtype of the moments. So do the fields of self, which hold their values at this step. If g
        is complex, the fields and the `real_moments` are real.

        Args:
            t: the number of this step; the first is 1.
            g: the gradient.
            p: the parameter; None if `update` was called without parameters.
            *moments: the moments, in the order of `state_type`.
        """

    def init(self, params: Params) -> State:
        check_floating("params", params)
        self.check_for(params)
        step = jnp.zeros((), jnp.int32)
        moments = {name: zeros_like_moments(params, real=name in self.real_moments) for name in self.moment_names}
        return self.state_type(step=step, learning_rate=self._rate_at(step, {"epoch": step}), **moments)

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        rate, t = self._rate_at(state.step, extra), next_step(state.step)
        now = self.replace_unchecked(**{self.rate_name: rate})
        before = [getattr(state, name) for name in self.moment_names]
        new, *moments = update_leaves(type(self).rule, now, t, updates, params, *before)
        for name, moment in zip(self.moment_names, before, strict=True):
            if name not in self.real_moments:
                check_addable("updates", updates, "the state", moment)
        return new, self.state_type(step=t, learning_rate=rate, **dict(zip(self.moment_names, moments, strict=True)))

    def _rate_at(self, step: jax.Array, extra: Extra) -> jax.Array:
        name = f"{type(self).__name__}: {self.rate_name}"
        return as_scalar(name, at_step(name, getattr(self, self.rate_name), step, extra))


def update_leaves(
    rule: Callable[..., tuple[jax.Array, ...]],
    numbers: Tree,
    t: jax.Array,
    updates: Updates,
    params: Params | None,
    *moments: Params,
) -> tuple[Tree, ...]:
    """Apply `rule(numbers, t, g, p, *m) -> (u, *m)` to every leaf and return (updates, *moments).

    The arguments of the rule have the dtype of the moments. The update has the dtype of the parameter, or of the
    gradient if `params` is None. Raises ValueError or TypeError for a leaf that does not fit.
    """
    check_floating("updates", updates)
    for moment in moments:
        check_same_tree("updates", updates, "the state", moment)
    if params is not None:
        check_addable("updates", updates, "params", params)
    leaves, structure = jax.tree.flatten(updates)
    columns = [[None] * len(leaves) if tree is None else jax.tree.leaves(tree) for tree in (params, *moments)]
    rows = [_update_leaf(rule, numbers, t, *row) for row in zip(leaves, *columns, strict=True)]
    outputs = zip(*rows, strict=True) if rows else [()] * (1 + len(moments))
    return tuple(structure.unflatten(column) for column in outputs)


@partial(jax.jit, static_argnums=0)  # traced once per shape and dtype; outside jit, one call per leaf
def _update_leaf(rule, numbers, t, g, p, *m):
    out_dtype = g.dtype if p is None else p.dtype
    real = real_dtype(m[0].dtype if m else moment_dtype(out_dtype))
    is_complex = jnp.issubdtype(out_dtype, jnp.complexfloating)
    dtype = np.promote_types(real, np.complex64) if is_complex else real
    numbers, t = jax.tree.map(lambda x: jnp.asarray(x, real), (numbers, t))
    g, p = jax.tree.map(lambda x: jnp.asarray(x, dtype), (g, p))
    # Products of real numbers and complex gradients need promotion, even if the caller has set it to strict.
    with jax.numpy_dtype_promotion("standard") if is_complex else nullcontext():
        u, *m = rule(numbers, t, g, p, *m)
    return u.astype(out_dtype), *m
