"""The kinds of units of a Boltzmann machine, each defined by its equations.

E(v, h) = e(v) + e(h) - t(v)·W t(h), so the units of one layer are independent given the other layer:

    p(x | field) = exp(-e(x) + t(x)·field) / z(field),   z(field) = ∫ exp(-e(x) + t(x)·field) dx

For units with finitely many values, the integral is a sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import sigmoid
from jax.scipy.special import logit, logsumexp

from .._core.batches import Weighted, as_floats
from .._core.pytree import Pytree, count
from .._core.trees import moment_dtype
from .._core.types import Batch, Leaf, Tree
from .._ebm.domain import (
    check_each,
    check_matrix,
    check_real,
    check_real_matrix,
    check_unit_interval,
    fill_in,
    mean_and_deviation,
    mean_over_rows,
    measured,
)
from .truncated import log_integral, quantile

Layer = dict[str, Array]  # the parameters of the units of one layer


class Unit(Pytree, ABC):
    """Base class of the kinds of units. A subclass defines the equations of a layer of n units.

    Every method takes one state x of the layer, of shape (n,), and `RBM` maps the method over rows. The parameters are
    a dict of arrays (n,) with the keys `names`. One of them is "loc". Adding a field to it couples t(x) to the field:

        e(x; loc + field) = e(x; loc) - t(x)·field + a constant

    Attributes:
        names: the names of the parameters.
        values: the values of a unit; None if they are real numbers.
        noise: a function of `jax.random` with the arguments (key, shape, dtype, out_sharding=). It draws the random
            numbers for `draw`, one for each unit.
        integer_states: whether states are integer indices of the values instead of floats.

    >>> class Ternary(Unit):
    ...     \"\"\"Units of -1, 0 and 1:  e(x) = -loc x + cost |x|.\"\"\"
    ...     names, values = ("loc", "cost"), (-1.0, 0.0, 1.0)
    ...
    ...     def energy(self, params, x):
    ...         return jnp.sum(params["cost"] * jnp.abs(x) - params["loc"] * x)
    ...
    ...     def log_normalizer(self, params, field):
    ...         a = params["loc"] + field
    ...         return jnp.logaddexp(0, jnp.logaddexp(a, -a) - params["cost"])
    ...
    ...     def draw(self, params, field, noise):
    ...         a, log_z = params["loc"] + field, self.log_normalizer(params, field)
    ...         below = jnp.exp(-a - params["cost"] - log_z)
    ...         return jnp.where(noise < below, -1.0, jnp.where(noise < below + jnp.exp(-log_z), 0.0, 1.0))
    >>> from paysage_jax import rbm
    >>> machine = rbm.RBM(visible=Ternary(), hidden=rbm.ReLU())
    >>> params = machine.init(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), num_hidden=3, key=jax.random.key(0))
    >>> machine.transition(params, jnp.zeros((5, 2)), jax.random.key(1)).shape
    (5, 2)
    """

    names: ClassVar[tuple[str, ...]] = ("loc",)
    noise: ClassVar[Callable[..., Array]] = staticmethod(jax.random.uniform)
    integer_states: ClassVar[bool] = False

    @property
    def values(self) -> tuple[float, ...] | None:
        return None

    @abstractmethod
    def energy(self, params: Layer, x: Array) -> Array:
        """e(x), summed over units."""

    def statistic(self, params: Layer, x: Array) -> Array:
        """t(x), which must be linear in x; by default x itself."""
        return x

    @abstractmethod
    def log_normalizer(self, params: Layer, field: Array) -> Array:
        """log z(field) of each unit."""

    def mean(self, params: Layer, field: Array) -> Array:
        """The mean of x given the field; by default the mean of t(x), which is the derivative of log z."""
        return jax.grad(lambda f: jnp.sum(self.log_normalizer(params, f)))(field)

    def activations(self, params: Layer, gradient: Layer) -> Array:
        """The mean of t(x), computed from the gradient of the mean of e(x): by default -gradient["loc"]."""
        return -gradient["loc"]

    @abstractmethod
    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        """A sample of x given the field, as a function of independent random numbers (n,)."""

    def zeros(self, n: int) -> Layer:
        """Zeros as the parameters of n units. Hidden units start with them."""
        return {name: jnp.zeros(n) for name in self.names}

    def check(self, name: str, v: Batch) -> None:
        """Raise a TypeError or ValueError that names row and column, unless v holds states (rows, n) of these units."""
        check_real_matrix(name, v)

    def rows(self, name: str, data: Batch) -> Weighted:
        """Convert data to arrays, and check them."""
        return measured(name, data, self.check)

    def start(self, name: str, data: Weighted) -> Layer:
        """Parameters for which independent units match the distribution of each column as closely as possible."""
        return self.zeros(data.v.shape[1])


def _means(data: Weighted) -> Array:
    x = as_floats(data.v, float)
    return mean_over_rows(x.astype(moment_dtype(x.dtype)), data.weights)


_SMALLEST = 2.0**-23  # the smallest initial probability


@jax.jit
def _log_odds(probability: Array) -> Array:
    return logit(jnp.clip(probability, _SMALLEST, 1 - _SMALLEST))


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """log(1 + exp(x)), with the sigmoid as its derivative, which is faster than the derivative of jax.nn.softplus."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, _, x: sigmoid(x) * tangent)


class Binary(Unit):
    """Binary units with the values 0 and 1.

        e(x) = -loc x,   t(x) = x

    Data may also be means in [0, 1]. Their log-likelihood is then a lower bound: see `RBM.log_likelihood`.
    """

    @property
    def values(self) -> tuple[float, ...]:
        return (0.0, 1.0)

    def energy(self, params: Layer, x: Array) -> Array:
        return -params["loc"] @ x

    def log_normalizer(self, params: Layer, field: Array) -> Array:
        return softplus(params["loc"] + field)

    def mean(self, params: Layer, field: Array) -> Array:
        return sigmoid(params["loc"] + field)

    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        return (noise < self.mean(params, field)).astype(field.dtype)

    def check(self, name: str, v: Batch) -> None:
        check_matrix(name, v)
        check_unit_interval(name, v)

    def start(self, name: str, data: Weighted) -> Layer:
        return {"loc": _log_odds(_means(data))}


def _check_spins(name: str, tree: Tree) -> None:
    def advise(x: np.ndarray) -> str:
        binary = ((x == 0) | (x == 1)).all()
        return fill_in(x) or ("convert zeros and ones with 2 v - 1" if binary else "compare values with a threshold")

    check_each(name, tree, lambda x: abs(x) == 1, "spins, -1 or 1", advise)


class Spin(Unit):
    """Spins with the values -1 and 1, as in an Ising model.

    e(x) = -loc x,   t(x) = x
    """

    @property
    def values(self) -> tuple[float, ...]:
        return (-1.0, 1.0)

    def energy(self, params: Layer, x: Array) -> Array:
        return -params["loc"] @ x

    def log_normalizer(self, params: Layer, field: Array) -> Array:
        x = params["loc"] + field
        return jnp.logaddexp(x, -x)

    def mean(self, params: Layer, field: Array) -> Array:
        return jnp.tanh(params["loc"] + field)

    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        return jnp.where(noise < sigmoid(2 * (params["loc"] + field)), 1, -1).astype(field.dtype)

    def check(self, name: str, v: Batch) -> None:
        check_matrix(name, v)
        _check_spins(name, v)

    def start(self, name: str, data: Weighted) -> Layer:
        return {"loc": _log_odds((1 + _means(data)) / 2) / 2}


def _is_one_hot(x: Leaf) -> Leaf:
    return ((x == 0) | (x == 1)) & (x.sum(axis=-1, keepdims=True) == 1)


def _advise_states(x: np.ndarray) -> str:
    return fill_in(x) or ("count the states from 0 with v - 1" if x.min() == 1 else "number the states from 0")


class Categorical(Unit):
    """Categorical units with q states, for example the letters of a sequence: a Potts model.

        e(x) = -loc[x],   t(x) = the one-hot vector of x

    `loc` has the shape (n, q), and W has an axis of states after the axis of units: (n, q, hidden) for visible units.
    States are integers from 0 to q - 1 of shape (rows, n), or one-hot vectors of shape (rows, n, q). Chains and samples
    have the same form as the data.

    Args:
        states: the number q of states, a positive integer.
    """

    states: int = count(static=True)
    integer_states: ClassVar[bool] = True

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(range(self.states))

    def energy(self, params: Layer, x: Array) -> Array:
        return -jnp.sum(params["loc"] * self.statistic(params, x))

    def statistic(self, params: Layer, x: Array) -> Array:
        if x.ndim == 1:
            x = x[:, None] == jnp.arange(self.states).astype(x.dtype)[None]  # also for bools
        return x.astype(params["loc"].dtype)

    def log_normalizer(self, params: Layer, field: Array) -> Array:
        return logsumexp(params["loc"] + field, axis=1)

    def mean(self, params: Layer, field: Array) -> Array:
        return jax.nn.softmax(params["loc"] + field, axis=1)

    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        return jnp.sum(noise[:, None] >= jnp.cumsum(self.mean(params, field), axis=1)[:, :-1], axis=1, dtype=jnp.int32)

    def zeros(self, n: int) -> Layer:
        return {"loc": jnp.zeros((n, self.states))}

    def check(self, name: str, v: Batch) -> None:
        shapes = [x.shape for x in jax.tree.leaves(v)]
        if len(shapes) == 1 and len(shapes[0]) == 2:
            expected = f"integers from 0 to {self.states - 1}"
            check_each(name, v, lambda x: (x >= 0) & (x < self.states) & (x % 1 == 0), expected, _advise_states)
        elif len(shapes) == 1 and shapes[0][2:] == (self.states,):
            check_each(name, v, _is_one_hot, "one-hot states", lambda x: fill_in(x) or "exactly one number is 1")
        else:
            expected = f"integers (rows, visible) or one-hot states (rows, visible, {self.states})"
            raise ValueError(f"{name}: expected {expected}, got shapes {shapes}")

    def start(self, name: str, data: Weighted) -> Layer:
        dtype = jnp.result_type(float)
        states = jnp.arange(self.states, dtype=data.v.dtype)
        one_hot = data.v if data.v.ndim == 3 else data.v[:, :, None] == states[None, None]
        log_means = jnp.log(jnp.maximum(mean_over_rows(one_hot.astype(dtype), data.weights), _SMALLEST))
        return {"loc": log_means - jnp.mean(log_means, axis=1, keepdims=True)}


class Gaussian(Unit):
    """Gaussian units, real numbers with a learned variance s² = exp(log_var).

    e(x) = (x - loc)² / (2 s²),   t(x) = x / s²
    """

    names: ClassVar[tuple[str, ...]] = ("loc", "log_var")
    noise: ClassVar[Callable[..., Array]] = staticmethod(jax.random.normal)

    def energy(self, params: Layer, x: Array) -> Array:
        return jnp.sum((x - params["loc"]) ** 2 / (2 * jnp.exp(params["log_var"])))

    def statistic(self, params: Layer, x: Array) -> Array:
        return x / jnp.exp(params["log_var"])

    def log_normalizer(self, params: Layer, field: Array) -> Array:
        variance = jnp.exp(params["log_var"])
        # (x² - loc²) / (2 s²), x = loc + field, without the difference of large squares
        return field * (params["loc"] + field / 2) / variance + jnp.log(2 * jnp.pi * variance) / 2

    def mean(self, params: Layer, field: Array) -> Array:
        return params["loc"] + field

    def activations(self, params: Layer, gradient: Layer) -> Array:
        return params["loc"] / jnp.exp(params["log_var"]) - gradient["loc"]

    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        return self.mean(params, field) + jnp.exp(params["log_var"] / 2) * noise

    def start(self, name: str, data: Weighted) -> Layer:
        mean, deviation = mean_and_deviation(name, data)
        return {"loc": mean, "log_var": 2 * jnp.log(deviation)}


def _check_nonnegative(name: str, tree: Tree) -> None:
    check_real(name, tree)
    check_each(
        name, tree, lambda x: x >= 0, "nonnegative numbers", lambda x: "use Gaussian or DReLU units for other numbers"
    )


class ReLU(Unit):
    """Rectified Gaussian units, nonnegative numbers whose mean is a smooth version of max(0, s² (loc + field)).

    e(x) = x² / (2 s²) - loc x for x >= 0,   t(x) = x,   s² = exp(log_var)
    """

    names: ClassVar[tuple[str, ...]] = ("loc", "log_var")

    def energy(self, params: Layer, x: Array) -> Array:
        return jnp.sum(x**2 / (2 * jnp.exp(params["log_var"])) - params["loc"] * x)

    def log_normalizer(self, params: Layer, field: Array) -> Array:
        s = jnp.exp(params["log_var"] / 2)
        return params["log_var"] / 2 + log_integral(s * (params["loc"] + field))

    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        s = jnp.exp(params["log_var"] / 2)
        return s * quantile(s * (params["loc"] + field), noise)

    def check(self, name: str, v: Batch) -> None:
        check_matrix(name, v)
        _check_nonnegative(name, v)

    def start(self, name: str, data: Weighted) -> Layer:
        """The maximum-likelihood truncated normal distributions, which match the means and variances of the data."""
        mean, deviation = mean_and_deviation(name, data)
        unit_mean = jax.grad(lambda z: jnp.sum(log_integral(z)))

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            z = (low + high) / 2
            m = unit_mean(z)
            too_wide = (1 + z * m) / m**2 > 1 + (deviation / mean) ** 2  # E[y²] / E[y]² falls with z
            return jnp.where(too_wide, z, low), jnp.where(too_wide, high, z)

        z, _ = jax.lax.fori_loop(0, 40, halve, (jnp.full_like(mean, -10), jnp.full_like(mean, 30)))
        s = mean / unit_mean(z)
        return {"loc": z / s, "log_var": 2 * jnp.log(s)}


class DReLU(Unit):
    """Double rectified linear units, real numbers with a slope and a threshold on either side of 0.

        e(x) = x² / (2 s²) - loc x + threshold |x|,   t(x) = x

        s² = exp(log_var_positive) where x > 0,  exp(log_var_negative) where x < 0

    The most likely x is 0 for |loc + field| < threshold, and grows with slope s² beyond the threshold. Equal slopes
    without a threshold give a Gaussian unit; a negative threshold gives two modes. In the notation of Tubiana, Cocco &
    Monasson (eLife 8, 2019), θ₊ = threshold - loc, θ₋ = -threshold - loc, and γ₊, γ₋ = 1 / s².
    """

    names: ClassVar[tuple[str, ...]] = ("loc", "threshold", "log_var_positive", "log_var_negative")

    def energy(self, params: Layer, x: Array) -> Array:
        log_var = jnp.where(x > 0, params["log_var_positive"], params["log_var_negative"])
        return jnp.sum(x**2 / (2 * jnp.exp(log_var)) - params["loc"] * x + params["threshold"] * jnp.abs(x))

    def log_normalizer(self, params: Layer, field: Array) -> Array:
        return jnp.logaddexp(*(jnp.log(s) + log_integral(z) for s, z in self._sides(params, field)))

    def draw(self, params: Layer, field: Array, noise: Array) -> Array:
        (s, z), (s_negative, z_negative) = self._sides(params, field)
        log_odds = jnp.log(s) + log_integral(z) - jnp.log(s_negative) - log_integral(z_negative)
        share = sigmoid(log_odds)
        positive = noise < share
        # Given the side, the rescaled noise is uniform again.
        noise = jnp.where(positive, noise, noise - share) / jnp.where(positive, share, 1 - share)
        side = jnp.where(positive, s, s_negative)
        return jnp.where(positive, side, -side) * quantile(jnp.where(positive, z, z_negative), noise)

    @staticmethod
    def _sides(params: Layer, field: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """For x > 0 and for x < 0, the s and z for which |x| / s has the density exp(z y - y²/2)."""
        a = params["loc"] + field
        s, s_negative = (jnp.exp(params[f"log_var_{side}"] / 2) for side in ("positive", "negative"))
        return (s, s * (a - params["threshold"])), (s_negative, s_negative * (-a - params["threshold"]))

    def start(self, name: str, data: Weighted) -> Layer:
        """Gaussian units with the means and variances of the data."""
        mean, deviation = mean_and_deviation(name, data)
        log_var = 2 * jnp.log(deviation)
        zeros = jnp.zeros_like(mean)
        return {
            "loc": mean / jnp.exp(log_var),
            "threshold": zeros,
            "log_var_positive": log_var,
            "log_var_negative": log_var,
        }
