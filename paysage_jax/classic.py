"""The optimizers of paysage with their 2017 numerics, as pure functions.

They differ from the textbook: moments start at the first gradient, the "unbiased" divisors are the constants
1 - w instead of 1 - wᵗ, and eps = 2⁻²³ is inside the root. So at default settings an ADAM step is about 0.32
of a textbook one. A weight of 0 gives the limit: the gradient itself as the mean, or no normalisation.
In the equations w and W are the mean and mean square weights, m and v the running moments, first whether this
is the first gradient, u the update that is added to the parameter (paysage subtracts delta = -u).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, keystr, tree_flatten_with_path

from ._base import Leafwise, Params, Updates, norm, update_leaves
from ._packing import unpack_all
from ._pytree import Number, Schedule, check_learning_rate, check_number, pytree_dataclass
from ._textbook import AdamState, MomentumState, RmspropState, SgdState

_EPSILON = 2.0**-23  # machine epsilon of float32, as in paysage


# NumPy arrays stay NumPy arrays in these equations: the class shim computes small models on the host.


def _mean(first, w, m, g):
    """w m + (1 - w) g, and g at the first gradient."""
    xp = g.__array_namespace__()
    return xp.where(first | (w == 0), g, w * m + (1 - w) * g)


def _mean_square(first, W, v, g):
    """W v + (1 - W) g², and g² at the first gradient."""
    xp = g.__array_namespace__()
    # Multiplied from left to right: the order decides at which gradient it overflows.
    return xp.where(first | (W == 0), g * g, W * v + ((1 - W) * g) * g)


def _normalize(x, v, w, W):
    """(x / (1 - w)) / √(eps + v / (1 - W)): "unbiased" with the weights of the moments, biased with zeros."""
    xp = v.__array_namespace__()
    return (x / (1 - w)) / xp.sqrt(_EPSILON + v / (1 - W))


def _normalize_unless_zero(x, v, w, W):
    xp = x.__array_namespace__()
    return xp.where(W == 0, x, _normalize(x, v, w, W))


@pytree_dataclass
class sgd(Leafwise):
    """paysage's StochasticGradientDescent: u = -stepsize g."""

    stepsize: Number | Schedule = 0.001

    state_type = SgdState
    rate = "stepsize"

    def __post_init__(self):
        check_learning_rate("classic.sgd", "stepsize", self.stepsize)

    def rule(self, h, g, p):
        return (-h.stepsize * g,)


@pytree_dataclass
class momentum(Leafwise):
    """paysage's Momentum (after Qian, 1999): m = w m + (1 - w) g, u = -stepsize m, with w = momentum."""

    stepsize: Number | Schedule = 0.001
    momentum: Number = 0.9

    state_type = MomentumState
    moments = 1
    rate = "stepsize"

    def __post_init__(self):
        check_learning_rate("classic.momentum", "stepsize", self.stepsize)
        check_number("classic.momentum", "momentum", self.momentum, 0, 1)

    def rule(self, h, g, p, m):
        m = _mean(h.t == 1, h.momentum, m, g)
        return -h.stepsize * m, m


@pytree_dataclass
class rmsprop(Leafwise):
    """paysage's RMSProp (after Hinton, lecture 6e): v = W v + (1 - W) g², u = -stepsize g / √(eps + v / (1 - W)),

    with W = mean_square_weight; u = -stepsize g where W = 0.
    """

    stepsize: Number | Schedule = 0.001
    mean_square_weight: Number = 0.9

    state_type = RmspropState
    moments = 1
    rate = "stepsize"

    def __post_init__(self):
        check_learning_rate("classic.rmsprop", "stepsize", self.stepsize)
        check_number("classic.rmsprop", "mean_square_weight", self.mean_square_weight, 0, 1)

    def rule(self, h, g, p, v):
        v = _mean_square(h.t == 1, h.mean_square_weight, v, g)
        direction = _normalize_unless_zero(g, v, 0, h.mean_square_weight)
        return -h.stepsize * direction, v


@pytree_dataclass
class adam(Leafwise):
    """paysage's ADAM (after Kingma & Ba, 2015): m = w m + (1 - w) g, v = W v + (1 - W) g²,

    u = -stepsize (m / (1 - w)) / √(eps + v / (1 - W)), with w = mean_weight and W = mean_square_weight;
    u = -stepsize m where W = 0.
    """

    stepsize: Number | Schedule = 0.001
    mean_weight: Number = 0.9
    mean_square_weight: Number = 0.999

    state_type = AdamState
    moments = 2
    rate = "stepsize"

    def __post_init__(self):
        check_learning_rate("classic.adam", "stepsize", self.stepsize)
        check_number("classic.adam", "mean_weight", self.mean_weight, 0, 1)
        check_number("classic.adam", "mean_square_weight", self.mean_square_weight, 0, 1)

    def rule(self, h, g, p, m, v):
        m = _mean(h.t == 1, h.mean_weight, m, g)
        v = _mean_square(h.t == 1, h.mean_square_weight, v, g)
        direction = _normalize_unless_zero(m, v, h.mean_weight, h.mean_square_weight)
        return -h.stepsize * direction, m, v


# --- the gradient memory: the moments on their own ---------------------------------------------------


@Partial
def _mean_rule(h, g, p, m):
    return g, _mean(h.first == 1, h.w, m, g)


@Partial
def _mean_square_rule(h, g, p, v):
    return g, _mean_square(h.first == 1, h.W, v, g)


@Partial
def _normalize_rule(h, g, p, v):
    return _normalize(g, v, h.w, h.W), v


def update_mean(mean: Params, grad: Updates, mean_weight: Number, first: Any = False) -> Params:
    """w mean + (1 - w) grad with w = mean_weight, and grad itself if `first` (a bool, may be traced)."""
    return update_leaves(_mean_rule, {"w": mean_weight, "first": first}, grad, None, mean)[1]


def update_mean_square(mean_square: Params, grad: Updates, mean_square_weight: Number, first: Any = False) -> Params:
    """W mean_square + (1 - W) grad² with W = mean_square_weight, and grad² if `first` (a bool, may be traced)."""
    return update_leaves(_mean_square_rule, {"W": mean_square_weight, "first": first}, grad, None, mean_square)[1]


def normalize(grad: Updates, mean_square: Params, mean_weight: Number = 0, mean_square_weight: Number = 0) -> Updates:
    """(grad / (1 - w)) / √(eps + mean_square / (1 - W)): paysage's unbiased form; biased with both weights 0."""
    return update_leaves(_normalize_rule, {"w": mean_weight, "W": mean_square_weight}, grad, None, mean_square)[0]


# --- magnitude ---------------------------------------------------------------------------------------


def gradient_magnitude(tree: Any) -> jax.Array:
    """√(mean over leaves of ‖leaf‖² / len(leaf)), len being the size of the first dimension; a float32 scalar.

    Raises ZeroDivisionError for a tree without leaves and TypeError for a leaf without dimensions (paysage, 2017).
    """
    leaves = tree_flatten_with_path(unpack_all(tree))[0]
    if not leaves:
        raise ZeroDivisionError("gradient_magnitude: the tree has no leaves")
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise TypeError(f"gradient_magnitude: leaf {keystr(path)} has no first dimension")
    arrays = [jnp.asarray(leaf, jnp.float32) for _, leaf in leaves]
    return norm(jnp.stack([norm(x) / np.sqrt(np.float32(len(x))) for x in arrays])) / np.sqrt(np.float32(len(arrays)))
