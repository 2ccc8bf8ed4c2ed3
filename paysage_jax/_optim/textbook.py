"""The textbook optimizers, as in the papers and as optax and torch compute them.

In the equations, g is the gradient, p the parameter, t = 1, 2, ... the number of the step, and u the update that is
added to p. Every hyperparameter may be a scalar array, and is a leaf of the optimizer as a pytree.

Elements are updated independently, even at extreme values. NaN and infinity enter the moments and stay there;
`skip_nonfinite` keeps them out. In float32, the square of a gradient above 1.8e19 is infinite, and rmsprop and adam
stop moving that element. Gradients below about 1e-18 have squares that are negligible beside eps, and denormal
gradients may count as 0.
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array

from .._core.pytree import Number, Schedule, number, rate, static
from .._core.trees import abs_sq, divisor, root, sum_of_weights
from .._core.types import Params
from .leafwise import Leafwise


class SgdState(NamedTuple):
    """step: the number of updates so far (int32); learning_rate: the learning rate applied last."""

    step: Array
    learning_rate: Array


class MomentumState(NamedTuple):
    """step, learning_rate: as in SgdState; mean: the decayed sum of gradients."""

    step: Array
    learning_rate: Array
    mean: Params


class RmspropState(NamedTuple):
    """step, learning_rate: as in SgdState; mean_square: the running mean of |g|², a tree of real arrays."""

    step: Array
    learning_rate: Array
    mean_square: Params


class AdamState(NamedTuple):
    """step, learning_rate: as in SgdState; mean, mean_square: the running means of g and of |g|² (real)."""

    step: Array
    learning_rate: Array
    mean: Params
    mean_square: Params


class sgd(Leafwise):
    """Stochastic gradient descent (Robbins & Monro, 1951).

        u = -learning_rate g

    Args:
        learning_rate: a nonnegative number, or a schedule.
    """

    learning_rate: Number | Schedule = rate()
    state_type = SgdState

    def rule(self, t: Array, g: Array, p: Array | None) -> tuple[Array]:
        return (-self.learning_rate * g,)


class momentum(Leafwise):
    """Heavy-ball momentum (Qian, 1999), or Nesterov's (Sutskever et al., 2013).

        m = decay m + g
        u = -learning_rate m              (nesterov: u = -learning_rate (decay m + g), with the new m)

    Args:
        learning_rate: a nonnegative number, or a schedule.
        decay: the factor of the sum m, in [0, 1).
        nesterov: whether to look one step ahead.
    """

    learning_rate: Number | Schedule = rate()
    decay: Number = number("[0, 1)", default=0.9)
    nesterov: bool = static(default=False)
    state_type = MomentumState

    def rule(self, t: Array, g: Array, p: Array | None, m: Array) -> tuple[Array, Array]:
        m = self.decay * m + g
        direction = self.decay * m + g if self.nesterov else m
        return -self.learning_rate * direction, m


class rmsprop(Leafwise):
    """RMSProp (Hinton, Coursera lecture 6e, 2012), with eps inside the root, as in optax (torch adds eps outside).

        v = decay v + (1 - decay) |g|²
        u = -learning_rate g / √(v + eps)

    Args:
        learning_rate: a nonnegative number, or a schedule.
        decay: the decay of v, in [0, 1).
        eps: a nonnegative number. With 0, an element whose gradients were all 0 does not move.
    """

    learning_rate: Number | Schedule = rate()
    decay: Number = number("[0, 1)", default=0.9)
    eps: Number = number(default=1e-8)
    state_type = RmspropState

    def rule(self, t: Array, g: Array, p: Array | None, v: Array) -> tuple[Array, Array]:
        v = self.decay * v + (1 - self.decay) * abs_sq(g)
        return -self.learning_rate * g / divisor(root(v + self.eps)), v


class adam(Leafwise):
    """Adam (Kingma & Ba, 2015, Algorithm 1); with weight_decay, AdamW (Loshchilov & Hutter, 2019).

        m = b1 m + (1 - b1) g,            m̂ = m / (1 - b1ᵗ)
        v = b2 v + (1 - b2) |g|²,         v̂ = v / (1 - b2ᵗ)
        u = -learning_rate (m̂ / (√v̂ + eps) + weight_decay p)

    Args:
        learning_rate: a nonnegative number, or a schedule.
        b1: the decay of m, in [0, 1).
        b2: the decay of v, in [0, 1).
        eps: a nonnegative number. With 0, an element whose gradients were all 0 does not move.
        weight_decay: a nonnegative number, for which `update` needs `params`; None for no weight decay.

    Raises:
        ValueError: from `update`, if weight_decay is given and `params` is not.

    >>> import jax.numpy as jnp
    >>> optimizer = adam(0.1)
    >>> state = optimizer.init(jnp.zeros(2))
    >>> updates, state = optimizer.update(jnp.array([3.0, -0.5]), state)
    >>> [f"{u:.4f}" for u in updates]
    ['-0.1000', '0.1000']
    """

    learning_rate: Number | Schedule = rate()
    b1: Number = number("[0, 1)", default=0.9)
    b2: Number = number("[0, 1)", default=0.999)
    eps: Number = number(default=1e-8)
    weight_decay: Number | None = number(default=None)
    state_type = AdamState

    def rule(self, t: Array, g: Array, p: Array | None, m: Array, v: Array) -> tuple[Array, Array, Array]:
        m = self.b1 * m + (1 - self.b1) * g
        v = self.b2 * v + (1 - self.b2) * abs_sq(g)
        m_hat = m / sum_of_weights(self.b1, t)
        v_hat = v / sum_of_weights(self.b2, t)
        direction = m_hat / divisor(root(v_hat) + self.eps)
        if self.weight_decay is not None:
            if p is None:
                raise ValueError("adam: weight_decay needs the parameters: update(updates, state, params)")
            direction = direction + self.weight_decay * p
        return -self.learning_rate * direction, m, v
