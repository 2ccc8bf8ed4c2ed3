"""The optimizers of paysage with their 2017 numerics, as pure functions.

They differ from the textbook optimizers in three ways: moments start at the first gradient, the "unbiased" divisors
are the constants 1 - w instead of 1 - wᵗ, and eps = 2⁻²³ is inside the root. With the default settings, an ADAM step is
about 0.32 times a textbook Adam step. A weight of 0 gives the limit: the mean is the gradient itself, or there is no
normalization. NaN and infinity stay in the moments. An infinite mean square (in float32 from |g| > 1.8e19) freezes
its element.

In the equations, w and W are the weights of the mean and the mean square, m and v are the running moments, and u is
the update that is added to the parameter (paysage subtracts delta = -u).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from ._core.pytree import Number, Schedule, number, rate
from ._core.types import Params, Updates
from ._optim.leafwise import Leafwise, update_leaves

__all__ = ["adam", "momentum", "normalize", "rmsprop", "sgd", "update_mean", "update_mean_square"]

_EPSILON = 2.0**-23  # machine epsilon of float32, as in paysage


class ClassicSgdState(NamedTuple):
    """step: the number of updates so far (int32); learning_rate: the step size applied last."""

    step: Array
    learning_rate: Array


class ClassicMomentumState(NamedTuple):
    """step, learning_rate: as in ClassicSgdState; mean: the running mean of gradients."""

    step: Array
    learning_rate: Array
    mean: Params


class ClassicRmspropState(NamedTuple):
    """step, learning_rate: as in ClassicSgdState; mean_square: the running mean of |g|², a tree of real arrays."""

    step: Array
    learning_rate: Array
    mean_square: Params


class ClassicAdamState(NamedTuple):
    """step, learning_rate: as in ClassicSgdState; mean, mean_square: the running means of g and of |g|²."""

    step: Array
    learning_rate: Array
    mean: Params
    mean_square: Params


# --- the equations, each once ------------------------------------------------------------------------

# These equations take NumPy arrays and JAX arrays: the classes update small models on the host.


def _mean(first, w, m, g):
    """w m + (1 - w) g, and g at the first gradient."""
    xp = g.__array_namespace__()
    return xp.where(first | (w == 0), g, w * m + (1 - w) * g)


def _mean_square(first, W, v, g):
    """W v + (1 - W) |g|², and |g|² at the first gradient."""
    xp = g.__array_namespace__()
    bar = g.conj() if g.dtype.kind == "c" else g
    # The order of the products decides at which gradient they overflow.
    return xp.where(first | (W == 0), (g * bar).real, W * v + (((1 - W) * g) * bar).real)


def _normalize(x, v, w, W):
    """(x / (1 - w)) / √(eps + v / (1 - W)): "unbiased" for the weights of the moments, biased for weights of 0."""
    xp = v.__array_namespace__()
    return (x / (1 - w)) / xp.sqrt(_EPSILON + v / (1 - W))


def _normalize_unless_zero(x, v, w, W):
    xp = x.__array_namespace__()
    return xp.where(W == 0, x, _normalize(x, v, w, W))


# --- the optimizers ----------------------------------------------------------------------------------


class sgd(Leafwise):
    """paysage's StochasticGradientDescent.

        u = -stepsize g

    Args:
        stepsize: a nonnegative number, or a schedule.
    """

    stepsize: Number | Schedule = rate(default=0.001)
    state_type = ClassicSgdState

    def rule(self, t: Array, g: Array, p: Array | None) -> tuple[Array]:
        return (-self.stepsize * g,)


class momentum(Leafwise):
    """paysage's Momentum (after Qian, 1999), w = momentum.

        m = w m + (1 - w) g
        u = -stepsize m

    Args:
        stepsize: a nonnegative number, or a schedule.
        momentum: the weight w, in [0, 1].
    """

    stepsize: Number | Schedule = rate(default=0.001)
    momentum: Number = number("[0, 1]", default=0.9)
    state_type = ClassicMomentumState

    def rule(self, t: Array, g: Array, p: Array | None, m: Array) -> tuple[Array, Array]:
        m = _mean(t == 1, self.momentum, m, g)
        return -self.stepsize * m, m


class rmsprop(Leafwise):
    """paysage's RMSProp (after Hinton, Coursera lecture 6e, 2012), W = mean_square_weight.

        v = W v + (1 - W) |g|²
        u = -stepsize g / √(eps + v / (1 - W))        (u = -stepsize g where W = 0)

    Args:
        stepsize: a nonnegative number, or a schedule.
        mean_square_weight: the weight W, in [0, 1].
    """

    stepsize: Number | Schedule = rate(default=0.001)
    mean_square_weight: Number = number("[0, 1]", default=0.9)
    state_type = ClassicRmspropState

    def rule(self, t: Array, g: Array, p: Array | None, v: Array) -> tuple[Array, Array]:
        v = _mean_square(t == 1, self.mean_square_weight, v, g)
        direction = _normalize_unless_zero(g, v, 0, self.mean_square_weight)
        return -self.stepsize * direction, v


class adam(Leafwise):
    """paysage's ADAM (after Kingma & Ba, 2015), w = mean_weight and W = mean_square_weight.

        m = w m + (1 - w) g
        v = W v + (1 - W) |g|²
        u = -stepsize (m / (1 - w)) / √(eps + v / (1 - W))        (u = -stepsize m where W = 0)

    Args:
        stepsize: a nonnegative number, or a schedule.
        mean_weight: the weight w, in [0, 1].
        mean_square_weight: the weight W, in [0, 1].
    """

    stepsize: Number | Schedule = rate(default=0.001)
    mean_weight: Number = number("[0, 1]", default=0.9)
    mean_square_weight: Number = number("[0, 1]", default=0.999)
    state_type = ClassicAdamState

    def rule(self, t: Array, g: Array, p: Array | None, m: Array, v: Array) -> tuple[Array, Array, Array]:
        m = _mean(t == 1, self.mean_weight, m, g)
        v = _mean_square(t == 1, self.mean_square_weight, v, g)
        direction = _normalize_unless_zero(m, v, self.mean_weight, self.mean_square_weight)
        return -self.stepsize * direction, m, v


# --- the gradient memory: the moments alone ----------------------------------------------------------


def update_mean(mean: Params, grad: Updates, mean_weight: Number, first: Any = False) -> Params:
    """Update the running mean of gradients.

        w mean + (1 - w) grad,  and grad itself at the first gradient

    Args:
        mean: the mean so far, a tree like grad.
        grad: the gradient.
        mean_weight: the weight w.
        first: whether this is the first gradient; a bool, which may be traced.
    """
    return update_leaves(_mean_rule, mean_weight, _step(first), grad, None, mean)[1]


def update_mean_square(mean_square: Params, grad: Updates, mean_square_weight: Number, first: Any = False) -> Params:
    """Update the running mean of squared gradients.

        W mean_square + (1 - W) |grad|²,  and |grad|² at the first gradient

    Args:
        mean_square: the mean so far, a tree like grad.
        grad: the gradient.
        mean_square_weight: the weight W.
        first: whether this is the first gradient; a bool, which may be traced.
    """
    return update_leaves(_mean_square_rule, mean_square_weight, _step(first), grad, None, mean_square)[1]


def normalize(grad: Updates, mean_square: Params, mean_weight: Number = 0, mean_square_weight: Number = 0) -> Updates:
    """Divide the gradient by its root mean square.

        (grad / (1 - w)) / √(eps + mean_square / (1 - W))

    Args:
        grad: the gradient, or its mean.
        mean_square: the running mean of squared gradients, a tree like grad.
        mean_weight: the weight w for paysage's "unbiased" form; 0 for the biased form.
        mean_square_weight: the weight W for the "unbiased" form; 0 for the biased form.
    """
    weights = (mean_weight, mean_square_weight)
    return update_leaves(_normalize_rule, weights, _step(first=False), grad, None, mean_square)[0]


def _step(first: Any) -> Array:
    return jnp.where(first, 1, 2)


def _mean_rule(w, t, g, p, m):
    return g, _mean(t == 1, w, m, g)


def _mean_square_rule(W, t, g, p, v):
    return g, _mean_square(t == 1, W, v, g)


def _normalize_rule(weights, t, g, p, v):
    return _normalize(g, v, *weights), v
