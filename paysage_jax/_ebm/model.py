"""The model: an energy, and a Markov kernel that leaves its distribution invariant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax

from .._core.pytree import Pytree, as_pytree, converted, static
from .._core.types import Batch, Params, State, Tree

Energy = Callable[[Params, Batch], jax.Array]
Transition = Callable[[Params, Batch, jax.Array], Batch]


class EnergyModel(Protocol):
    """The interface of models for estimators, metrics, annealing and tracking: `Model`, `rbm.RBM`, or your object."""

    @property
    def energy(self) -> Energy: ...
    @property
    def transition(self) -> Transition: ...
    @property
    def sample_hidden(self) -> Transition | None: ...
    @property
    def integer_states(self) -> bool: ...


class HasParams(Protocol):
    """The first argument of a metric, for example `TrainState`."""

    @property
    def params(self) -> Params: ...
    @property
    def optimizer_state(self) -> State: ...


def _as_function(where: str, function: object) -> Callable[..., Tree] | None:
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{where} must be a function, got {function!r}")
    return as_pytree(function)


def _as_function_or_none(where: str, function: object) -> Callable[..., Tree] | None:
    return None if function is None else _as_function(where, function)


class Model(Pytree):
    """An energy-based model.

        p(v) = exp(-energy(params, v)) / Z

    Args:
        energy: energy(params, v) -> (rows,), with hidden units summed out if that has a closed form. Low energy means
            high probability. v is a pytree of arrays with a common leading axis.
        transition: transition(params, v, key) -> v, one step of a Markov chain that leaves p invariant: block Gibbs
            sampling, a Metropolis step, Langevin dynamics.
        sample_hidden: sample_hidden(params, v, key) -> states, for data that are only a part of a state. It returns
            complete states, from which chains start.
        integer_states: whether states are counts or categories with an integer or bool dtype. Otherwise integer and
            bool data are converted to the floating dtype of the parameters.

    Raises:
        TypeError: if an argument is not a function.

    >>> import jax.numpy as jnp
    >>> def energy(params, v):
    ...     return -v @ params["b"]
    >>> def transition(params, v, key):
    ...     return jax.random.bernoulli(key, jax.nn.sigmoid(params["b"]), v.shape).astype(v.dtype)
    >>> model = Model(energy, transition)
    >>> model.energy({"b": jnp.ones(3)}, jnp.eye(3))
    Array([-1., -1., -1.], dtype=float32)
    """

    energy: Energy = converted(_as_function)
    transition: Transition = converted(_as_function)
    sample_hidden: Transition | None = converted(_as_function_or_none, default=None)
    integer_states: bool = static(default=False)


def as_model(where: str, model: EnergyModel) -> EnergyModel:
    """Return the model. Raises TypeError if it lacks an attribute of `EnergyModel`."""
    if isinstance(model, type):
        raise TypeError(f"{where} must be a model, got the class {model.__name__}: call it")
    if missing := [name for name in vars(Model)["__annotations__"] if not hasattr(model, name)]:
        hint = "; use Model(energy, transition)" if callable(model) else ""
        raise TypeError(f"{where} must be a model, with {', '.join(missing)}, got {model!r}{hint}")
    return model
