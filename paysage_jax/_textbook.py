"""The textbook optimizers, as in the papers and as optax and torch compute them.

`learning_rate` is a number, a scalar array or a schedule; every numeric hyperparameter is a pytree leaf.
States hold the `step` count (int32), the `learning_rate` last applied, and moments that start at zero and
are at least float32 whatever the parameters are. In the equations g is the gradient, p the parameter,
t the number of the step from 1, u the update that is added to p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._base import Leafwise, Params
from ._pytree import (
    Number,
    Schedule,
    absent_at_zero,
    check_learning_rate,
    check_number,
    is_absent,
    pytree_dataclass,
    static,
)


class SgdState(NamedTuple):
    """step: updates done; learning_rate: the one last applied."""

    step: jax.Array
    learning_rate: jax.Array


class MomentumState(NamedTuple):
    """step, learning_rate as in SgdState; mean: the decayed sum (in `classic`: mean) of gradients."""

    step: jax.Array
    learning_rate: jax.Array
    mean: Params


class RmspropState(NamedTuple):
    """step, learning_rate as in SgdState; mean_square: the running mean of squared gradients."""

    step: jax.Array
    learning_rate: jax.Array
    mean_square: Params


class AdamState(NamedTuple):
    """step, learning_rate as in SgdState; the running means of gradients and of squared gradients."""

    step: jax.Array
    learning_rate: jax.Array
    mean: Params
    mean_square: Params


@pytree_dataclass
class sgd(Leafwise):
    """Stochastic gradient descent (Robbins & Monro, 1951): u = -learning_rate g."""

    learning_rate: Number | Schedule

    state_type = SgdState

    def __post_init__(self):
        check_learning_rate("sgd", "learning_rate", self.learning_rate)

    def rule(self, h, g, p):
        return (-h.learning_rate * g,)


@pytree_dataclass
class momentum(Leafwise):
    """Heavy-ball momentum (Qian, 1999): m = decay m + g, u = -learning_rate m.

    With `nesterov` (Sutskever et al., 2013): u = -learning_rate (decay m + g), m already the new one.
    """

    learning_rate: Number | Schedule
    decay: Number = 0.9
    nesterov: bool = static(default=False)

    state_type = MomentumState
    moments = 1

    def __post_init__(self):
        check_learning_rate("momentum", "learning_rate", self.learning_rate)
        check_number("momentum", "decay", self.decay, 0, 1, open_above=True)

    def rule(self, h, g, p, m):
        m = h.decay * m + g
        direction = h.decay * m + g if self.nesterov else m
        return -h.learning_rate * direction, m


@pytree_dataclass
class rmsprop(Leafwise):
    """RMSProp (Hinton, Coursera lecture 6e, 2012): v = decay v + (1 - decay) g², u = -learning_rate g / √(v + eps).

    eps is inside the root, as in optax (torch adds it to the root).
    """

    learning_rate: Number | Schedule
    decay: Number = 0.9
    eps: Number = 1e-8

    state_type = RmspropState
    moments = 1

    def __post_init__(self):
        check_learning_rate("rmsprop", "learning_rate", self.learning_rate)
        check_number("rmsprop", "decay", self.decay, 0, 1, open_above=True)
        check_number("rmsprop", "eps", self.eps, 0, np.inf, open_above=True)

    def rule(self, h, g, p, v):
        v = h.decay * v + (1 - h.decay) * g**2
        return -h.learning_rate * g / jnp.sqrt(v + h.eps), v


@pytree_dataclass
class adam(Leafwise):
    """Adam (Kingma & Ba, 2015, Algorithm 1): m and v are the running means of g and g²,

    u = -learning_rate (m̂ / (√v̂ + eps) + weight_decay p), with m̂ = m / (1 - b1ᵗ) and v̂ = v / (1 - b2ᵗ).
    A weight_decay above zero makes it AdamW (Loshchilov & Hutter, 2019) and needs `params` in `update`.
    """

    learning_rate: Number | Schedule
    b1: Number = 0.9
    b2: Number = 0.999
    eps: Number = 1e-8
    weight_decay: Number = absent_at_zero(default=0.0)

    state_type = AdamState
    moments = 2

    def __post_init__(self):
        check_learning_rate("adam", "learning_rate", self.learning_rate)
        check_number("adam", "b1", self.b1, 0, 1, open_above=True)
        check_number("adam", "b2", self.b2, 0, 1, open_above=True)
        check_number("adam", "eps", self.eps, 0, np.inf, open_above=True)
        check_number("adam", "weight_decay", self.weight_decay, 0, np.inf, open_above=True)

    def scalars(self, t):
        return {"sum_1": _sum_of_weights(self.b1, t), "sum_2": _sum_of_weights(self.b2, t)}

    def rule(self, h, g, p, m, v):
        m = h.b1 * m + (1 - h.b1) * g
        v = h.b2 * v + (1 - h.b2) * g**2
        m_hat = m / h.sum_1
        v_hat = v / h.sum_2
        direction = m_hat / (_root(v_hat) + h.eps)
        if not is_absent(self.weight_decay):
            if p is None:
                raise ValueError("adam: weight_decay needs the parameters: update(updates, state, params)")
            direction = direction + h.weight_decay * p
        return -h.learning_rate * direction, m, v


def _sum_of_weights(b: Number, t: jax.Array) -> jax.Array:
    """1 - bᵗ, the weights of t gradients in a running mean that started at zero.

    Written with expm1: in float32 the subtraction loses five of seven digits at b = 0.999, t = 1.
    """
    b = jnp.asarray(b, float)
    return -jnp.expm1(t.astype(float) * jnp.log(b))


@jax.custom_jvp
def _root(v: jax.Array) -> jax.Array:
    """√v, with derivative 0 at 0: an element that never had a gradient must not spoil a derivative of the run."""
    return jnp.sqrt(v)


@_root.defjvp
def _root_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    root = jnp.sqrt(v)
    return root, jnp.where(v > 0, dv / (2 * jnp.where(v > 0, root, 1)), 0)
