"""The two-phase gradient of an energy-based model: a data term minus a model term.

The loss to minimize is the mean energy of the data minus the mean energy of samples of the model, so low energy means
high probability. `energy(params, v) -> (batch,)` is a free energy or the energy of complete states; v is a pytree of
arrays with a common leading batch axis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._core.batches import Weighted, as_arrays, as_floats, batch_size_of, check_finite, check_weights, relative
from .._core.trees import floating_dtype, moment_dtype
from .._core.types import Batch, Leaf, Params
from .model import Energy


class PhaseStatistics(NamedTuple):
    """Statistics of both phases.

    data_energy, model_energy: mean energies. data_gradient, model_gradient: their gradients with respect to the
    parameters. energy_penalty: the penalty on energies; None without a penalty.
    """

    data_energy: jax.Array
    model_energy: jax.Array
    data_gradient: Params
    model_gradient: Params
    energy_penalty: jax.Array | None = None


@contextmanager
def hints(v: Batch, integer_states: bool, whole: bool = True) -> Iterator[None]:
    """Add a note to an error about states that the energy or the transition rejects, if v or the error shows why."""
    try:
        yield
    except Exception as error:
        for hint in _hints(str(error), v, integer_states, whole):
            error.add_note(hint)
        raise


def _hints(error: str, v: Batch, integer_states: bool, whole: bool) -> Iterator[str]:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(v)]
    if not integer_states and re.search(r"integer|accept dtype float|cannot be cast safely", error):
        yield "Integer and bool data are converted to floats; for counts or categories, set integer_states=True."
    inner = jax.tree.leaves(v, is_leaf=lambda x: isinstance(x, Weighted))
    if any(isinstance(x, Weighted) for x in inner):
        yield "Weighted is inside the data; pass one Weighted(v, weights), with v the array, tuple or dict of rows."
    elif isinstance(v, list | tuple) and len(v) == 1:
        yield f"The data are a {type(v).__name__} of one array; pass the array itself."
    elif isinstance(v, list | tuple):
        yield f"The data are a {type(v).__name__} of arrays of shapes {shapes}; of rows and labels, pass only the rows."
    elif jax.tree_util.all_leaves([v]) and len(shapes[0]) > 2:
        yield f"A row has the shape {shapes[0][1:]}; if a state is a vector, pass data.reshape(len(data), -1)."
    elif not whole and _OTHER_STATES.search(error):
        yield "If the data do not contain the hidden units of the states, set sample_hidden= of the model."


_OTHER_STATES = re.compile(
    r"^transition.*(: missing;|: unexpected;|expected the tree)|string indexing|Tracer has no attribute|to unpack"
)


def value_and_gradient(function: Callable[[Params], jax.Array], params: Params) -> tuple[jax.Array, Params]:
    """The value of a real function, and its gradient in the convention of `Transformation`.

    For complex parameters the gradient is ∂/∂x + i ∂/∂y; for integers it is 0, and `freeze` excludes them from the
    optimizer.
    """
    value, gradient = jax.value_and_grad(function, allow_int=True)(params)

    def as_taken(g: Leaf) -> jax.Array:
        return jnp.zeros(g.shape, jnp.int8) if g.dtype == jax.dtypes.float0 else jnp.conj(g)

    return value, jax.tree.map(as_taken, gradient)


def rows(name: str, v: Batch) -> int:
    """The number of states. Raises ValueError if there are none."""
    size = batch_size_of(name, v)
    if size == 0:
        raise ValueError(f"{name}: expected states, got 0 rows")
    return size


def weighted(batch: Batch) -> Weighted:
    """The batch and its weights, or None without weights.

    Raises ValueError for weights of another shape and, if their values are known, for negative or nonfinite weights.
    """
    batch = as_arrays("batch", batch, np.asarray)
    if not isinstance(batch, Weighted):
        return Weighted(batch, None)
    if batch.weights is not None:
        check_weights("weights", batch.weights, rows("v", batch.v))
    return batch


def energies_of(energy: Energy, params: Params, name: str, v: Batch) -> jax.Array:
    """The energy of each state of v. Raises ValueError or TypeError for energies of another shape or dtype."""
    size = rows(name, v)
    energies = energy(params, v)
    if jnp.shape(energies) != (size,):
        raise ValueError(f"energy(params, v): expected shape ({size},), one for each state, got {jnp.shape(energies)}")
    if not jnp.issubdtype(jnp.result_type(energies), jnp.floating):
        raise TypeError(f"energy(params, v): expected a floating dtype, got {jnp.result_type(energies)}")
    return energies


def _mean(x: jax.Array, weights: Leaf) -> jax.Array:
    """1/n Σ wᵢ xᵢ, for weights with mean 1 over the data; a scalar weight applies to all rows."""
    if weights is None:
        return jnp.mean(x)
    wide = moment_dtype(x.dtype)
    return jnp.mean(jnp.asarray(weights, wide) * x.astype(wide)).astype(x.dtype)


def two_phases(
    energy: Energy, params: Params, data: Weighted, model: Weighted, penalty: ArrayLike | None = None
) -> tuple[Params, PhaseStatistics]:
    """The gradient, from the weighted mean energy of each phase, and its statistics.

    Samples without weights, for example chains, get the mean weight of the data. Then a batch of zero weight has a zero
    gradient, and a constant added to all energies does not change the gradient.
    """
    if data.weights is not None and model.weights is None:
        model = model._replace(weights=jnp.mean(jnp.asarray(data.weights, float)))
    phases = {"v_data": data, "v_model": jax.lax.stop_gradient(model)}

    def energies(params: Params, name: str) -> jax.Array:
        return energies_of(energy, params, name, phases[name].v)

    def mean_energy(params: Params, name: str) -> jax.Array:
        return _mean(energies(params, name), phases[name].weights)

    def squares(params: Params) -> jax.Array:
        wide = {name: energies(params, name) for name in phases}  # squares of half precision would overflow
        wide = {name: e.astype(moment_dtype(e.dtype)) for name, e in wide.items()}
        means = [_mean(e**2, phases[name].weights) for name, e in wide.items()]
        return jnp.asarray(penalty, means[0].dtype) * sum(means)

    data_energy, data_gradient = value_and_gradient(lambda p: mean_energy(p, "v_data"), params)
    model_energy, model_gradient = value_and_gradient(lambda p: mean_energy(p, "v_model"), params)
    gradient = jax.tree.map(jnp.subtract, data_gradient, model_gradient)
    statistics = PhaseStatistics(data_energy, model_energy, data_gradient, model_gradient)
    if penalty is None:
        return gradient, statistics
    value, penalty_gradient = value_and_gradient(squares, params)
    return jax.tree.map(jnp.add, gradient, penalty_gradient), statistics._replace(energy_penalty=value)


def phase_gradient(energy: Energy, integer_states: bool = False) -> Callable[..., Params]:
    """Return a function that computes the two-phase gradient from data and samples.

        gradient(params, v_data, v_model, weights=None) = ∂/∂params (mean energy(v_data) - mean energy(v_model))

    The samples v_model are treated as constants. With `weights` of shape (n_data,), the mean over the data is weighted,
    Σ wᵢ E(vᵢ) / Σ wᵢ.

    Args:
        energy: energy(params, v) -> (batch,).
        integer_states: whether states are counts or categories. Otherwise integers and bools are converted to the
            floating dtype of the parameters.

    Raises:
        TypeError, ValueError: from `gradient`, for energies of another shape or dtype, for no states, for negative
            weights, and, if values are known, for NaN and infinity.
    """

    def gradient(params: Params, v_data: Batch, v_model: Batch, weights: Leaf = None) -> Params:
        if isinstance(v_data, Weighted):
            raise TypeError("v_data: expected rows, got Weighted; pass the rows and weights=")
        dtype = None if integer_states else floating_dtype(params)
        v_data, v_model = (
            as_floats(as_arrays(name, v, np.asarray), dtype) for name, v in (("v_data", v_data), ("v_model", v_model))
        )
        check_finite("v_data", v_data)
        data = Weighted(v_data, None)
        if weights is not None:
            weights = as_arrays("weights", weights, np.asarray)
            data = data._replace(weights=relative("weights", weights, rows("v_data", v_data)))
        with hints(v_data, integer_states):
            return two_phases(energy, params, data, Weighted(v_model, None))[0]

    return gradient
