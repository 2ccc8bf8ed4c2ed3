"""Gradient estimators: contrastive divergence, persistent chains, an ordinary loss.

The `transition(params, v, key) -> v` of a model is a Markov kernel that leaves its distribution invariant. If the data
do not contain all units of a state, `sample_hidden(params, v, key) -> states` draws the hidden ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_map_with_path

from .._core.batches import Entry, Weighted, as_arrays, as_floats, check_finite, copy_to_device
from .._core.pytree import Number, Pytree, accepted, as_pytree, converted, count, number, static
from .._core.threefry import unrolled
from .._core.trees import check_same_tree, floating_dtype
from .._core.types import Batch, KeyPath, Leaf, Params, Statistics, Tree
from .model import EnergyModel, Transition, as_model
from .phases import PhaseStatistics, hints, rows, two_phases, value_and_gradient, weighted

EstimatorState = Tree

_HIDDEN = 2**32 - 1  # folded into a key; transitions are numbered from 0


class Estimator(Pytree, ABC):
    """A pair of pure functions that estimates a gradient from a batch; `init, estimate = estimator` unpacks it."""

    @abstractmethod
    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        """Return the state that is carried from batch to batch, for example Markov chains.

        Args:
            params: the parameters.
            batch: a first batch.
            key: a PRNG key.
        """

    @abstractmethod
    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, Statistics]:
        """Return (gradient, estimator_state, statistics). The statistics, a NamedTuple, are reported in the history.

        Args:
            params: the parameters.
            batch: a batch.
            estimator_state: the state that `init` or the last `estimate` returned.
            key: a PRNG key.
        """

    def __iter__(self) -> Iterator[Callable[..., Tree]]:
        return iter((self.init, self.estimate))


def check_estimator(name: str, estimator: object) -> None:
    """Raise TypeError if the object is not an estimator."""
    if isinstance(estimator, type) or not (hasattr(estimator, "init") and hasattr(estimator, "estimate")):
        is_class = isinstance(estimator, type) and issubclass(estimator, Estimator)
        hint = ": call it" if is_class else "; use loss_gradient(loss) for a loss" if callable(estimator) else ""
        raise TypeError(f"{name} must be an estimator, with init and estimate, got {estimator!r}{hint}")


def entry_of(estimator: object, params: Params) -> Entry:
    """The conversions and checks of data that an estimator asks for.

    Two-phase estimators convert integers and bools to floats, unless states are integers. They allow NaN only if
    `sample_hidden` fills it in. Other estimators get data unchanged, because an ordinary loss may use integers as
    labels and NaN as a mask.
    """
    if not isinstance(estimator, contrastive_divergence | persistent_contrastive_divergence):
        return Entry()
    dtype = None if estimator.model.integer_states else floating_dtype(params)
    missing = estimator.model.sample_hidden is not None
    # A model whose units have a domain checks it.
    check_states = getattr(estimator.model, "check_states", partial(check_finite, missing=missing))

    def check(name: str, v: Batch) -> None:
        with hints_for(estimator.model, v):
            check_states(name, v)

    return Entry(dtype, missing, check)


def states_of(
    estimator: contrastive_divergence | persistent_contrastive_divergence, params: Params, batch: Batch, key: jax.Array
) -> Weighted:
    """The states of the data and their weights. The states are treated as constants."""
    data, entry = weighted(batch), entry_of(estimator, params)
    check_finite("batch", data.v, entry.missing)
    data = data._replace(v=as_arrays("batch", as_floats(data.v, entry.dtype)))
    if estimator.model.sample_hidden is None:
        return data
    states = estimator.model.sample_hidden(params, data.v, jax.random.fold_in(unrolled(key), _HIDDEN))
    return data._replace(v=jax.lax.stop_gradient(states))


def run_chains(transition: Transition, steps: int, params: Params, v: Batch, key: jax.Array) -> Batch:
    """v after `steps` transitions."""
    v = as_states(transition, params, v, key)
    return jax.lax.fori_loop(0, steps, lambda i, v: transition(params, v, jax.random.fold_in(unrolled(key), i)), v)


def as_states(transition: Transition, params: Params, v: Batch, key: jax.Array, note: str = "") -> Batch:
    """Convert v to the dtypes that the transition returns, which a loop requires.

    Data may be integers if states are floats. The reverse raises TypeError. `note` is added to errors of the
    transition.
    """
    try:
        states = _next_states.eval_shape(as_pytree(transition), params, v, key)
        check_same_tree("transition(params, v, key)", states, "v", v)
    except Exception as error:
        if note:
            error.add_note(note)
        raise
    return tree_map_with_path(_cast, v, states)


@jax.jit  # traced once for a transition, not in each run
def _next_states(transition: Transition, params: Params, v: Batch, key: jax.Array) -> Batch:
    return transition(params, v, key)


def _cast(path: KeyPath, x: Leaf, like: Tree) -> jax.Array:
    dtype = jnp.result_type(x)
    if dtype != like.dtype and not np.can_cast(dtype, like.dtype, "same_kind"):
        raise TypeError(
            f"v{keystr(path)}: {dtype} cannot be cast safely to {like.dtype}, which transition(params, v, key) returns"
        )
    return jnp.asarray(x, like.dtype)


def as_chains(where: str, v: Batch) -> Batch:
    """Initial states as arrays. They are copied, because they may be the chains of a state that a step donates."""
    v = as_arrays(where, v, np.asarray)
    rows(where, v)
    check_finite(where, v)
    return copy_to_device(as_arrays(where, v))


def _as_chains_or_none(where: str, v: Batch | None) -> Batch | None:
    return None if v is None else as_chains(where, v)


def hints_for(model: EnergyModel, v: Batch) -> AbstractContextManager[None]:
    return hints(v, model.integer_states, whole=model.sample_hidden is not None)


class contrastive_divergence(Estimator):
    """Contrastive divergence, CD-k (Hinton, 2002). Statistics: `PhaseStatistics`.

    The gradient of

        mean E(data) - mean E(samples) + energy_penalty (mean E(data)² + mean E(samples)²)

    where the samples are the batch after `steps` transitions. For a `Weighted` batch, both means are weighted, and a
    sample has the weight of its initial row.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        steps: the number k of transitions, a positive integer.
        energy_penalty: a nonnegative number, which keeps energies small (Du & Mordatch, 2019); None for no penalty.

    Raises:
        TypeError, ValueError: at trace time, for energies, states or weights that do not fit.

    >>> from paysage_jax import rbm
    >>> v, key = jnp.eye(4), jax.random.key(0)
    >>> machine = rbm.RBM()
    >>> params = machine.init(v, 2, key)
    >>> estimator = contrastive_divergence(machine, steps=3)
    >>> gradient, _, statistics = estimator.estimate(params, v, estimator.init(params, v, key), key)
    >>> gradient["weights"][0]["matrix"].shape
    (4, 2)
    """

    model: EnergyModel = converted(as_model)
    steps: int = count(default=1, static=True)
    energy_penalty: Number | None = number(default=None)

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        check_finite("batch", weighted(batch).v, missing=self.model.sample_hidden is not None)
        return ()

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, PhaseStatistics]:
        data = states_of(self, params, batch, key)
        with hints_for(self.model, data.v):
            samples = data._replace(v=run_chains(self.model.transition, self.steps, params, data.v, key))
            gradient, statistics = two_phases(self.model.energy, params, data, samples, self.energy_penalty)
        return gradient, estimator_state, statistics


class persistent_contrastive_divergence(Estimator):
    """Persistent contrastive divergence, PCD-k (Tieleman, 2008). Statistics: `PhaseStatistics`.

    The gradient of

        mean E(data) - mean E(chains) + energy_penalty (mean E(data)² + mean E(chains)²)

    where the chains persist across updates and make `steps` transitions per update. They start from the first
    `num_chains` states of the first batch, which are repeated if there are fewer, or from `chains`. The state of the
    estimator is the chains. For a `Weighted` batch, each chain has the mean weight of the batch.

    Args:
        model: a `Model`, or `rbm.RBM()`.
        num_chains: the number of chains, a positive integer; None for the number of rows in the batch.
        steps: the number k of transitions per update, a positive integer.
        chains: initial states, in place of data and `num_chains`.
        energy_penalty: a nonnegative number, which keeps energies small (Du & Mordatch, 2019); None for no penalty.

    Raises:
        TypeError, ValueError: at trace time, for energies, states or weights that do not fit.

    >>> from paysage_jax import rbm
    >>> v, key = jnp.eye(4), jax.random.key(0)
    >>> machine = rbm.RBM()
    >>> params = machine.init(v, 2, key)
    >>> estimator = persistent_contrastive_divergence(machine, num_chains=10)
    >>> chains = estimator.init(params, v, key)
    >>> gradient, chains, statistics = estimator.estimate(params, v, chains, key)
    >>> chains.shape
    (10, 4)
    """

    model: EnergyModel = converted(as_model)
    num_chains: int | None = count(default=None, static=True)
    steps: int = count(default=1, static=True)
    chains: Batch | None = converted(_as_chains_or_none, default=None)
    energy_penalty: Number | None = number(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chains is not None and self.num_chains is not None:
            raise ValueError("persistent_contrastive_divergence: expected num_chains or chains, got both")

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        v = states_of(self, params, batch, key).v
        size = rows("batch", v)
        if self.chains is None:
            with hints_for(self.model, v):
                return as_states(self.model.transition, params, _repeated(v, self.num_chains or size, size), key)
        num_chains = rows("chains", self.chains)
        chains = as_floats(self.chains, entry_of(self, params).dtype)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_chains, *jnp.shape(x)[1:]), jnp.float32), v)
        hint = "" if self.model.sample_hidden else " (if these lack hidden units, set sample_hidden= of the model)"
        check_same_tree("chains", self.chains, f"the data{hint}", like)
        # A copy, because a step donates the chains.
        return as_states(self.model.transition, params, jax.tree.map(jnp.array, chains), key)

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, PhaseStatistics]:
        data = states_of(self, params, batch, key)
        rows("estimator_state", estimator_state)
        with hints_for(self.model, data.v):
            chains = run_chains(self.model.transition, self.steps, params, estimator_state, key)
            samples = Weighted(chains, None)
            gradient, statistics = two_phases(self.model.energy, params, data, samples, self.energy_penalty)
        return gradient, chains, statistics


@partial(jax.jit, static_argnames=("number", "size"))
def _repeated(v: Batch, number: int, size: int) -> Batch:
    """The first `number` states, repeated cyclically."""
    return jax.tree.map(lambda x: x[jnp.arange(number) % size], v)


# --- an ordinary loss --------------------------------------------------------------------------------


class LossStatistics(NamedTuple):
    """loss: the value of the loss on the batch, a scalar."""

    loss: jax.Array


class loss_gradient(Estimator):
    """The gradient of an ordinary loss, without a model term. Statistics: `LossStatistics`.

    The loss gets the batch unchanged: integers may be labels or indices, and NaN may be masked. For a `Weighted` batch,
    the mean of weight times loss, jnp.mean(batch.weights * losses), is unbiased for every batch size.

    Args:
        loss: a function (params, batch) -> scalar, or (params, batch, key=key) -> scalar.

    >>> estimator = loss_gradient(lambda w, batch: jnp.sum((w - batch) ** 2))
    >>> gradient, _, statistics = estimator.estimate(jnp.zeros(2), jnp.ones(2), (), jax.random.key(0))
    >>> gradient, statistics.loss
    (Array([-2., -2.], dtype=float32), Array(2., dtype=float32))
    """

    loss: Callable[..., jax.Array] = static()

    def init(self, params: Params, batch: Batch, key: jax.Array) -> EstimatorState:
        return ()

    def estimate(
        self, params: Params, batch: Batch, estimator_state: EstimatorState, key: jax.Array
    ) -> tuple[Params, EstimatorState, LossStatistics]:
        loss, gradient = value_and_gradient(lambda p: self.value(p, batch, key), params)
        return gradient, estimator_state, LossStatistics(loss)

    def value(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The loss at any parameters; line searches of optax call it."""
        loss = self.loss(params, batch, **accepted(self.loss, {"key": key}, positional=2))
        is_number = isinstance(loss, float | np.generic | jax.Array) and jnp.issubdtype(
            jnp.result_type(loss), np.floating
        )
        if not is_number or jnp.shape(loss):
            got = f"shape {loss.shape} and dtype {loss.dtype}" if isinstance(loss, jax.Array) else repr(loss)
            raise TypeError(f"loss(params, batch): expected a real scalar, got {got}")
        return loss
