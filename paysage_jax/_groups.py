"""Optimizers for parts of a tree, learning rates leaf by leaf, gradients accumulated over several batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import all_leaves, keystr, tree_flatten_with_path, tree_map_with_path

from ._base import State, Transformation, Wrapper, as_transformation, check_state, next_step, no_step
from ._packing import pack_all_like, unpack_all
from ._pytree import Count, Function, Pytree, as_pytree, count, number, static
from ._trees import (
    Params,
    Updates,
    as_scalar,
    check_floating,
    check_same_tree,
    leaf_paths,
    moment_dtype,
    without,
    zeros_like_moments,
)


def _at_leaves(owner: str, values: Iterable[tuple[Any, Any]], tree: Any) -> list[Any]:
    """For each leaf of `tree` the one of `values`, pairs (path, value), that stands at it or at a branch it is on."""
    at = dict(values)

    def value(path: Any) -> Any:
        for length in range(len(path) + 1):
            if path[:length] in at:
                return at[path[:length]]
        raise ValueError(f"{owner}: nothing is given for the leaf {keystr(path)}, only for {[*map(keystr, at)]}")

    return [value(path) for path, _ in tree_flatten_with_path(tree)[0]]


# --- an optimizer for each group ---------------------------------------------------------------------


class PartitionState(NamedTuple):
    """states: the state of each group's optimizer, under its label."""

    states: dict[Any, State]


class _ByPath(Pytree):
    """A tree of labels as pairs (path, label), which hash."""

    pairs: tuple[tuple[Any, Any], ...] = static()


class partition(Transformation):
    """Different optimizers for parts of a tree: each sees its leaves, and None in the place of the others.

        partition({"weights": adam(1e-3), "biases": sgd(1e-2)}, lambda path: path.split("/")[0])

    AdamW that decays the weights only, which in optax is a mask:

        decayed, plain = adam(1e-3, weight_decay=0.1), adam(1e-3)
        partition({"decayed": decayed, "plain": plain}, {"weights": "decayed", "biases": "plain"})

    A group with `sgd(0.0)` stays as it is; `freeze` round the whole holds leaves still also if a gradient is NaN. Of
    the extra arguments a group gets its part of `gradient` and `grad`, and no `value_fn`, a function of all parameters.
    Labels are those of leaves, packed or not.

    Args:
        optimizers: label -> optimizer, ours or another library's.
        labels: a function path -> label, of paths written "weights/0/matrix"; or a tree of labels, in which one may
            stand for a whole branch.

    Raises:
        ValueError: for a leaf without label or with an unknown one, a label without leaves.
    """

    optimizers: Mapping[Any, Any]
    labels: Any

    def __post_init__(self) -> None:
        optimizers, labels = self.optimizers, self.labels
        if not isinstance(optimizers, Mapping) or not optimizers:
            raise TypeError(f"partition: expected a dict label -> optimizer, got {optimizers!r}")
        if callable(labels) and all_leaves([labels]):
            labels = as_pytree(labels)
        elif not isinstance(labels, Function | _ByPath):  # which `dataclasses.replace` hands on
            labels = _ByPath(tuple(tree_flatten_with_path(labels)[0]))
        # In the order that the states have in a pytree.
        members = {name: as_transformation(optimizers[name]) for name in sorted(optimizers)}
        vars(self).update(optimizers=members, labels=labels)

    def __hash__(self) -> int:
        return hash((tuple(self.optimizers.items()), self.labels))

    def init(self, params: Params) -> State:
        labels = self._labels_of(params)
        members = self.optimizers.items()
        return PartitionState({name: member.init(_part(name, labels, params)) for name, member in members})

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(self, state, PartitionState)
        if set(state.states) != set(self.optimizers):
            raise ValueError(f"partition: expected states of {list(self.optimizers)}, got {list(state.states)}")
        if params is not None:
            check_same_tree("updates", updates, "params", params)
        labels = self._labels_of(updates)
        extra.pop("value_fn", None)
        new, states = {}, {}
        for name, member in self.optimizers.items():
            own, own_params = _part(name, labels, updates), _part(name, labels, params)
            cut = {key: _part(name, labels, extra[key]) for key in ("gradient", "grad") if key in extra}
            own, states[name] = member.update(own, state.states[name], own_params, **extra | cut)
            new[name] = iter(jax.tree.leaves(own))
        merged = jax.tree.structure(unpack_all(updates)).unflatten([next(new[label]) for label in labels])
        return pack_all_like(merged, updates), PartitionState(states)

    def _labels_of(self, tree: Any) -> list[Any]:
        """The label of each leaf."""
        tree = unpack_all(tree)
        paths = leaf_paths(tree)
        if isinstance(self.labels, _ByPath):
            labels = _at_leaves("partition", self.labels.pairs, tree)
        else:
            labels = [self.labels(path) for path in paths]
        for label, path in zip(labels, paths, strict=True):
            if label not in self.optimizers:
                raise ValueError(f"partition: {path} has the label {label!r}, expected one of {list(self.optimizers)}")
        if unused := [name for name in self.optimizers if name not in labels]:
            raise ValueError(f"partition: no leaf has the label {unused[0]!r}; the leaves are {paths}")
        return labels


def _part(name: Any, labels: list[Any], tree: Any) -> Any:
    return None if tree is None else without([label != name for label in labels], unpack_all(tree))


# --- a learning rate for each leaf -------------------------------------------------------------------


class scale_leaves(Transformation):
    """Multiply the update of each leaf by a number of its own: learning rates leaf by leaf, after an optimizer.

        chain(adam(1e-3), scale_leaves({"weights": 1.0, "biases": 0.1}))

    Args:
        factors: a tree of numbers from 0 on, in which one may stand for a whole branch. They are leaves of the
            pytree: changing one does not recompile.

    Raises:
        TypeError, ValueError: for what is no such number, naming it; for a leaf without one.
    """

    factors: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        check = number().metadata["check"]

        def checked(path: Any, factor: Any) -> Any:
            return check(f"scale_leaves: factors{keystr(path)}", factor, jnp.result_type(float))

        vars(self)["factors"] = tree_map_with_path(checked, self.factors)

    def init(self, params: Params) -> State:
        self._factors_of(unpack_all(params))
        return ()

    def update(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        given, updates = updates, unpack_all(updates)
        check_floating("updates", updates)

        def scale(u: Any, factor: Any) -> jax.Array:
            wide = moment_dtype(jnp.result_type(u))
            return (jnp.asarray(u, wide) * as_scalar("scale_leaves", factor).astype(wide)).astype(jnp.result_type(u))

        leaves, structure = jax.tree.flatten(updates)
        return pack_all_like(structure.unflatten(map(scale, leaves, self._factors_of(updates))), given), state

    def _factors_of(self, tree: Any) -> list[Any]:
        return _at_leaves("scale_leaves", tree_flatten_with_path(self.factors)[0], tree)


# --- one step on several batches ---------------------------------------------------------------------


class AccumulateState(NamedTuple):
    """inner: the wrapped optimizer's state; waiting: the number of gradients (int32) in total, the sum of nᵢ gᵢ; rows:
    the sum of nᵢ (float32)."""

    inner: State
    waiting: jax.Array
    total: Updates
    rows: jax.Array


class accumulate(Wrapper):
    """Wraps an optimizer; it makes one step on the mean of every `steps` gradients, in the dtype that they have.

        u = optimizer((n₁ g₁ + ... + nₖ gₖ) / (n₁ + ... + nₖ)) at every k-th call, zeros in between

    nᵢ is the number of rows of batch i, which `fit` and `train_step` pass as the extra argument `rows`, so that the
    step is that of one large batch also where batches differ in size. Without it all nᵢ are 1.

    In between the optimizer's state stays as it is, so its schedules and its `step` count the steps made. The sum is
    in at least float32 and goes on from one epoch to the next. The extra arguments that count are those of the k-th
    call. A `track_convergence` is chained inside, accumulate(chain(adam(1e-3), track_convergence(1e-6)), 4), for
    outside it sees the zeros (and leaves them out only under `fit` and `train_step`, which pass it the gradient).

    Args:
        optimizer: an optimizer or transformation.
        steps: a whole number from 1 on.
    """

    steps: Count = count()

    def init(self, params: Params) -> State:
        inner, total = self.optimizer.init(params), zeros_like_moments(params)
        return AccumulateState(inner, jnp.zeros((), jnp.int32), total, jnp.zeros((), jnp.float32))

    def update(
        self, updates: Updates, state: State, params: Params | None = None, *, rows: Any = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(self, state, AccumulateState)
        check_same_tree("updates", updates, "the state", state.total)
        n = jnp.asarray(1 if rows is None else rows, jnp.float32)
        now = AccumulateState(
            state.inner,
            next_step(state.waiting),
            jax.tree.map(lambda x, g: x + n.astype(x.dtype) * jnp.asarray(g, x.dtype), state.total, updates),
            state.rows + n,
        )

        def step(s: AccumulateState) -> tuple[Updates, AccumulateState]:
            means = jax.tree.map(lambda x: x / s.rows.astype(x.dtype), s.total)
            mean = jax.tree.map(lambda x, g: x.astype(jnp.result_type(g)), means, updates)
            of_all = {} if rows is None else {"rows": s.rows}
            new, inner = self.optimizer.update(mean, s.inner, params, **extra, **of_all)
            return new, AccumulateState(inner, *jax.tree.map(jnp.zeros_like, (s.waiting, s.total, s.rows)))

        return jax.lax.cond(now.waiting >= jnp.asarray(self.steps, jnp.int32), step, partial(no_step, step), now)
