"""Different optimizers for different parts of a tree."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import jax
from jax.tree_util import all_leaves, tree_flatten_with_path

from .._core.pytree import Function, Pytree, as_pytree, converted, static
from .._core.trees import at_leaves, leaf_paths, without
from .._core.types import KeyPath, Params, State, Tree, Updates
from .packing import pack_all_like, unpack_all
from .transformation import Transformation, as_transformation

Label = Hashable
Labels = Callable[[str], Label] | Tree  # a function of the path, or a tree of labels


class PartitionState(NamedTuple):
    """states: a dict from each label to the state of its optimizer."""

    states: dict[Label, State]


class _ByPath(Pytree):
    """A tree of labels as pairs (path, label), which are hashable."""

    pairs: tuple[tuple[KeyPath, Label], ...] = static()


def _members(where: str, optimizers: object) -> dict[Label, Transformation]:
    """The optimizers, sorted as a pytree sorts their states."""
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(f"{where}: expected a dict label -> optimizer, got {optimizers!r}")
    return {name: as_transformation(optimizers[name]) for name in sorted(optimizers)}


def _as_labels(_: str, labels: object) -> Labels:
    if callable(labels) and all_leaves([labels]):
        return as_pytree(labels)
    if isinstance(labels, Function | _ByPath):  # from `dataclasses.replace`
        return labels
    return _ByPath(tuple(tree_flatten_with_path(labels)[0]))


class partition(Transformation):
    """Apply different optimizers to different parts of a tree.

        partition({"weights": adam(1e-3), "biases": sgd(1e-2)}, lambda path: path.split("/")[0])

    Each optimizer sees the leaves with its label, and None at every other leaf. For example, AdamW that decays only the
    weights (a mask in optax):

        decayed, plain = adam(1e-3, weight_decay=0.1), adam(1e-3)
        partition({"decayed": decayed, "plain": plain}, {"weights": "decayed", "biases": "plain"})

    A group with `sgd(0.0)` does not move unless its gradient is NaN; wrap the partition in `freeze` to exclude that
    case too. Each group receives its part of the extra arguments `gradient` and `grad`. It does not receive `value_fn`,
    which is a function of all parameters. In packed parameters, labels still refer to leaves.

    Args:
        optimizers: a dict label -> optimizer, from this package or another library.
        labels: a function path -> label, where a path is written "weights/0/matrix"; or a tree of labels, in which one
            label may cover a whole branch.

    Raises:
        ValueError: if a leaf has no label or an unknown one, or if a label has no leaves.
    """

    optimizers: Mapping[Label, Transformation] = converted(_members)
    labels: Labels = converted(_as_labels)
    state_type = PartitionState

    def __hash__(self) -> int:
        return hash((tuple(self.optimizers.items()), self.labels))

    def init(self, params: Params) -> State:
        labels = self._labels_of(params)
        members = self.optimizers.items()
        return PartitionState({name: member.init(_part(name, labels, params)) for name, member in members})

    def apply(self, updates: Updates, state: State, params: Params | None, **extra: object) -> tuple[Updates, State]:
        if set(state.states) != set(self.optimizers):
            raise ValueError(f"partition: expected states of {list(self.optimizers)}, got {list(state.states)}")
        labels = self._labels_of(updates)
        extra.pop("value_fn", None)
        new, states = {}, {}
        for name, member in self.optimizers.items():
            own, own_params = _part(name, labels, updates), _part(name, labels, params)
            cut = {key: _part(name, labels, extra[key]) for key in ("gradient", "grad") if key in extra}
            own, states[name] = member._update(own, state.states[name], own_params, **extra | cut)
            new[name] = iter(jax.tree.leaves(own))
        merged = jax.tree.structure(unpack_all(updates)).unflatten([next(new[label]) for label in labels])
        return pack_all_like(merged, updates), PartitionState(states)

    def _labels_of(self, tree: Tree) -> list[Label]:
        """The label of each leaf."""
        tree = unpack_all(tree)
        paths = leaf_paths(tree)
        if isinstance(self.labels, _ByPath):
            labels = at_leaves("partition", self.labels.pairs, tree)
        else:
            labels = [self.labels(path) for path in paths]
        for label, path in zip(labels, paths, strict=True):
            if label not in self.optimizers:
                raise ValueError(f"partition: {path} has the label {label!r}, expected one of {list(self.optimizers)}")
        if unused := [name for name in self.optimizers if name not in labels]:
            raise ValueError(f"partition: no leaf has the label {unused[0]!r}; the leaves are {paths}")
        return labels


def _part(name: Label, labels: list[Label], tree: Tree) -> Tree:
    return None if tree is None else without([label != name for label in labels], unpack_all(tree))
