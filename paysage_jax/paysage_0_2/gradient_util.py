"""Gradients as trees: the functions of `paysage.models.gradient_util` in paysage 0.2.

Every function takes a `Gradient` or any other pytree of arrays. A function whose name ends in "_" changes the arrays in
place, so they must be NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from .._core.trees import moment_dtype, norm


class Gradient(NamedTuple):
    """The gradient of a Boltzmann machine.

    layers: for every layer, a list of named tuples of arrays. weights: the same for every connection.
    """

    layers: Any
    weights: Any


def null_grad(model: Any) -> Gradient:
    """A `Gradient` with an empty list for every layer and connection of `model`."""
    return Gradient([[] for _ in model.layers], [[] for _ in _weights(model)])


def zero_grad(model: Any) -> Gradient:
    """A gradient of `model` filled with zeros, from `zero_derivatives` of its layers and weights."""
    return Gradient([x.zero_derivatives() for x in model.layers], [x.zero_derivatives() for x in _weights(model)])


def random_grad(model: Any) -> Gradient:
    """A gradient of `model` filled with random numbers, from `random_derivatives` of its layers and weights."""
    return Gradient([x.random_derivatives() for x in model.layers], [x.random_derivatives() for x in _weights(model)])


def _weights(model: Any) -> list[Any]:
    # In paysage 0.1 the weights are an attribute of the model.
    return [connection.weights for connection in model.connections] if hasattr(model, "connections") else model.weights


def grad_accumulate(func: Callable[[Any], Any], grad: Any) -> Any:
    """The sum of func(array) over the arrays of `grad`."""
    return sum(func(x) for x in jax.tree.leaves(grad))


def grad_apply(func: Callable[[Any], Any], grad: Any) -> Any:
    """A tree like `grad` with func(array) in place of every array."""
    return jax.tree.map(func, grad)


def grad_apply_(func_: Callable[[Any], Any], grad: Any) -> None:
    """Call func_(array), which changes the array in place, for every array of `grad`.

    Raises:
        TypeError: if an array is not a NumPy array.
    """
    _check_writable("grad_apply_", grad)
    for x in jax.tree.leaves(grad):
        func_(x)


def grad_mapzip(func: Callable[[Any, Any], Any], grad1: Any, grad2: Any) -> Any:
    """A tree like `grad1` with func(array of grad1, array of grad2) in place of every array.

    Raises:
        ValueError: if the trees have different structures.
    """
    _check_same_structure("grad_mapzip", grad1, grad2)
    return jax.tree.map(func, grad1, grad2)


def grad_mapzip_(func_: Callable[[Any, Any], Any], grad1: Any, grad2: Any) -> None:
    """Call func_(array of grad1, array of grad2), which changes the first in place, for every array of `grad1`.

    Raises:
        ValueError: if the trees have different structures.
        TypeError: if an array of `grad1` is not a NumPy array.
    """
    _check_same_structure("grad_mapzip_", grad1, grad2)
    _check_writable("grad_mapzip_", grad1)
    for x, y in zip(jax.tree.leaves(grad1), jax.tree.leaves(grad2), strict=True):
        func_(x, y)


def grad_norm(grad: Any) -> float:
    """The Euclidean norm of all arrays of `grad` together."""
    return math.sqrt(grad_accumulate(_sum_of_squares, grad))


def grad_normalize_(grad: Any) -> None:
    """Divide `grad` by its norm, in place.

    Raises:
        ZeroDivisionError: if the norm is zero.
    """
    size = grad_norm(grad)
    if size == 0:
        raise ZeroDivisionError("grad_normalize_: the gradient is zero")
    grad_apply_(partial(_scale_, np.float32(1 / size)), grad)


def grad_rms(grad: Any) -> float:
    """The root mean square of a gradient, a float.

        √(sum over arrays of mean(x²) / n),  n the number of layers plus the number of weights

    A layer with two arrays counts once. In other trees than a `Gradient`, n is the number of entries two levels down.

    Raises:
        ZeroDivisionError: if the gradient has neither layers nor weights.
    """
    groups = sum(len(_entries(group)) for group in _entries(grad))
    if groups == 0:
        raise ZeroDivisionError("grad_rms: the gradient has no layers and no weights")
    return math.sqrt(grad_accumulate(lambda x: _sum_of_squares(x) / max(1, np.size(x)), grad) / groups)


grad_magnitude = grad_rms  # its name in 0.1


def grad_flatten(grad: Any) -> Any:
    """All arrays of `grad` as one vector: a JAX array if any of them is one, otherwise a NumPy array.

    Raises:
        ValueError: if the gradient has no arrays.
    """
    leaves = jax.tree.leaves(grad)
    if not leaves:
        raise ValueError("grad_flatten: the gradient has no arrays")
    xp = jnp if any(isinstance(x, jax.Array) for x in leaves) else np
    return xp.concatenate([xp.ravel(x) for x in leaves])


# --- helpers -----------------------------------------------------------------------------------------

_norm = jax.jit(lambda x: norm(x.astype(moment_dtype(x.dtype))))


def _sum_of_squares(x: Any) -> float:
    if isinstance(x, jax.Array):
        return float(_norm(x)) ** 2
    x = np.asarray(x, np.float64)  # in float32 the squares of small numbers vanish
    return float(np.vdot(x, x))


def _entries(tree: Any) -> list[Any]:
    """The children of a container, or the leaf itself."""
    return jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)


def _scale_(factor: Any, x: np.ndarray) -> None:
    """x = factor x, in place."""
    np.multiply(factor, x, out=x)


def _check_same_structure(name: str, grad1: Any, grad2: Any) -> None:
    if jax.tree.structure(grad1) == jax.tree.structure(grad2):
        return
    paths1, paths2 = ([keystr(path) for path, _ in tree_flatten_with_path(grad)[0]] for grad in (grad1, grad2))
    for path in [*paths1, *paths2]:
        if (path in paths1) != (path in paths2):
            has, lacks = ("grad1", "grad2") if path in paths1 else ("grad2", "grad1")
            raise ValueError(f"{name}: {has}{path} is missing in {lacks}")
    raise ValueError(f"{name}: grad1 and grad2 are {jax.tree.structure(grad1)} and {jax.tree.structure(grad2)}")


def _check_writable(name: str, grad: Any) -> None:
    for path, x in tree_flatten_with_path(grad)[0]:
        if not isinstance(x, np.ndarray):
            raise TypeError(
                f"{name}: grad{keystr(path)} is not a NumPy array, so it cannot be changed in place; "
                f"use {name.removesuffix('_')}"
            )
