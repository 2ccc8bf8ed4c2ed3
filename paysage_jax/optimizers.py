"""The classes of paysage.optimizers (2017), thin over `classic`: `from paysage_jax import compat as optimizers`.

`update(model, v_data, v_model, epoch)` calls `model.gradient(v_data, v_model)`, makes one step and hands it to
`model.parameter_update(delta)`, which subtracts it. The step is jitted; that of a small model in numpy is done in
numpy, by the same equations. A leaf that came as a numpy array goes back as a writable numpy array of its own dtype;
a leaf that came as a JAX array stays one. Nothing the model returned is modified.
"""

import itertools
from copy import deepcopy as deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import classic
from ._base import check_same_tree, moment_dtype, zeros_like_moments


class Scheduler:
    """Base of the learning-rate schedules: counts updates and remembers the epoch. Subclasses add `get_lr()`."""

    def __init__(self):
        self.lr = 1
        self.iter = 0
        self.epoch = 0

    def increment(self, epoch):
        """Note one more update, made in `epoch`."""
        self.iter += 1
        self.epoch = epoch


class PowerLawDecay(Scheduler):
    """lr = 1 / (1 + lr_decay * epoch)."""

    def __init__(self, lr_decay=0.1):
        super().__init__()
        self.lr_decay = lr_decay

    def get_lr(self):
        """The factor on the step size in the present epoch, a float."""
        self.lr = 1 / (1 + self.lr_decay * float(self.epoch))
        return self.lr


class ExponentialDecay(Scheduler):
    """lr = lr_decay ** epoch."""

    def __init__(self, lr_decay=0.9):
        super().__init__()
        self.lr_decay = lr_decay

    def get_lr(self):
        """The factor on the step size in the present epoch, a float."""
        self.lr = self.lr_decay ** float(self.epoch)
        return self.lr


def gradient_magnitude(grad) -> float:
    """`classic.gradient_magnitude` as a Python float."""
    return float(np.asarray(_magnitude(grad)))


_magnitude = jax.jit(classic.gradient_magnitude)
_update_mean = jax.jit(classic.update_mean)
_update_mean_square = jax.jit(classic.update_mean_square)
_normalize = jax.jit(classic.normalize)


def _as_given(given, computed):
    """The computed tree in the array kinds of the given one."""

    def convert(g, x):
        # np.array, not np.asarray: the view of a JAX array is read-only. A float64 leaf gets float64 back.
        return np.array(x, dtype=np.promote_types(g.dtype, x.dtype)) if isinstance(g, np.ndarray) else x

    return jax.tree.map(convert, given, computed)


class GradientMemory:
    """The running mean of gradients and of squared gradients; a moment of weight 0 is not kept (None)."""

    def __init__(self, mean_weight=0.9, mean_square_weight=0.0):
        self.mean_weight = mean_weight
        self.mean_square_weight = mean_square_weight
        self.mean_gradient = None
        self.mean_square_gradient = None

    def update(self, grad):
        """Update the moments that have a weight."""
        if self.mean_weight:
            self.update_mean(grad)
        if self.mean_square_weight:
            self.update_mean_square(grad)

    def update_mean(self, grad):
        """mean = w mean + (1 - w) grad; the first mean is the first gradient."""
        first = self.mean_gradient is None
        mean = zeros_like_moments(grad) if first else self.mean_gradient
        self.mean_gradient = _as_given(grad, _update_mean(mean, grad, float(self.mean_weight), first))

    def update_mean_square(self, grad):
        """mean_square = w mean_square + (1 - w) grad²; the first is the first gradient squared."""
        first = self.mean_square_gradient is None
        mean_square = zeros_like_moments(grad) if first else self.mean_square_gradient
        weight = float(self.mean_square_weight)
        self.mean_square_gradient = _as_given(grad, _update_mean_square(mean_square, grad, weight, first))

    def normalize(self, grad, unbiased=False):
        """grad over the root of the mean square gradient; a copy of grad if that has weight 0 and is not kept.

        Raises TypeError before the first update.
        """
        if self.mean_square_gradient is None:
            if self.mean_square_weight:
                raise TypeError("GradientMemory.normalize: no mean square gradient yet; call update(grad) first")
            return _as_given(grad, grad)
        weights = (float(self.mean_weight), float(self.mean_square_weight)) if unbiased else (0.0, 0.0)
        return _as_given(grad, _normalize(grad, self.mean_square_gradient, *weights))


_DEFAULT_SCHEDULER = PowerLawDecay()


class Optimizer:
    """Base of the optimizers: a scheduler, a tolerance and `delta`, the last step (what the model subtracted)."""

    def __init__(self, scheduler=_DEFAULT_SCHEDULER, tolerance=0.001):
        # The default is one object for the whole module: every optimizer needs its own.
        self.scheduler = deepcopy(scheduler) if scheduler is _DEFAULT_SCHEDULER else scheduler
        self.tolerance = tolerance
        self.delta = {}

    def check_convergence(self):
        """Whether gradient_magnitude(delta) <= tolerance; False before the first update and for NaN."""
        return bool(self.delta) and gradient_magnitude(self.delta) <= self.tolerance


_ON_HOST = [np.dtype(name) for name in ("float16", "float32", "float64")]
_SMALL = 2**14  # elements: up to this a call of XLA costs more than the arithmetic in numpy


@partial(jax.jit, donate_argnames="state")
def _step(rule, stepsize, grad, state):
    updates, state = replace(rule, stepsize=stepsize).update(grad, state)
    return jax.tree.map(jnp.negative, updates), state


def _is_small_on_host(tree):
    leaves = jax.tree.leaves(tree)
    one_kind = all(type(x) is np.ndarray and x.dtype == leaves[0].dtype for x in leaves)
    return bool(leaves) and one_kind and leaves[0].dtype in _ON_HOST and sum(x.size for x in leaves) <= _SMALL


def _step_on_host(rule, stepsize, grad, state):
    """`_step` in numpy, on all leaves in one array: so are the moments in the state."""
    g = np.concatenate([x.ravel() for x in jax.tree.leaves(grad)])
    dtype = moment_dtype(jax.dtypes.canonicalize_dtype(g.dtype))
    step, _, *moments = state or (0, None, *(np.zeros(g.shape, dtype) for _ in range(rule.moments)))
    dtype = moments[0].dtype if moments else dtype
    t = min(step + 1, np.iinfo(np.int32).max)
    h = SimpleNamespace(**{name: dtype.type(x) for name, x in (vars(rule) | {"stepsize": stepsize, "t": t}).items()})
    with np.errstate(all="ignore"):
        u, *moments = rule.rule(h, g.astype(dtype), None, *moments)
        delta = jax.tree.map(lambda d, x: d.astype(x.dtype), _cut(-u, grad), grad)
    return delta, rule.state_type(t, stepsize, *moments)


def _cut(array, like):
    """The tree in the shapes of `like` whose leaves lie in the array one after the other."""
    leaves, structure = jax.tree.flatten(like)
    ends = itertools.accumulate(x.size for x in leaves)
    return structure.unflatten(
        [array[end - x.size : end].reshape(x.shape) for x, end in zip(leaves, ends, strict=True)]
    )


class _ClassicOptimizer(Optimizer):
    """One step of a `classic` optimizer per `update`: one jitted call, or numpy for a small model in numpy."""

    def __init__(self, rule, stepsize, scheduler, tolerance):
        super().__init__(scheduler, tolerance)
        self.stepsize = stepsize
        self._rule = rule
        self._state: Any = None
        self._on_host = None  # once False it stays so

    def _learning_rate(self):
        # paysage's normalising classes rounded the step size to float32 before this product, the others did not.
        stepsize = np.float32(self.stepsize) if hasattr(self._rule, "mean_square_weight") else self.stepsize
        return float(self.scheduler.get_lr()) * float(stepsize)

    def update(self, model, v_data, v_model, epoch):
        """One step on `model.gradient(v_data, v_model)`, at the scheduler's rate for `epoch`.

        Raises ValueError naming the leaf if the gradient's tree or shapes are not those of the last one.
        """
        self.scheduler.increment(epoch)
        learning_rate = self._learning_rate()
        grad = model.gradient(v_data, v_model)
        if self.delta:
            check_same_tree("gradient", grad, "the last update", self.delta)
        else:
            _check_paysage_tree(grad)
        self.delta = self._advance(learning_rate, grad)
        model.parameter_update(self.delta)

    def _advance(self, learning_rate, grad):
        on_host = self._on_host is not False and _is_small_on_host(grad)
        if on_host:
            delta, self._state = _step_on_host(self._rule, learning_rate, grad, self._state)
        else:
            state = self._rule.init(grad) if self._state is None else self._state
            if self._on_host:  # until now: the model has changed its kind of arrays
                step, rate, *moments = state
                state = type(state)(np.int32(step), np.float32(rate), *(_cut(m, self.delta) for m in moments))
            delta, self._state = _step(self._rule, learning_rate, grad, state)
            delta = _as_given(grad, delta)
        self._on_host = on_host
        return delta


def _check_paysage_tree(grad):
    if isinstance(grad, dict) and ("layers" in grad) != ("weights" in grad):
        missing = "weights" if "layers" in grad else "layers"
        raise KeyError(f"the gradient has no {missing!r}, expected {{'layers': [...], 'weights': [...]}}")


class StochasticGradientDescent(_ClassicOptimizer):
    """delta = L g, with L = scheduler.get_lr() * stepsize."""

    def __init__(self, model, stepsize=0.001, scheduler=_DEFAULT_SCHEDULER, tolerance=0.001):
        super().__init__(classic.sgd(), stepsize, scheduler, tolerance)


class Momentum(_ClassicOptimizer):
    """delta = L m, m the running mean of gradients (Qian, 1999; see `classic.momentum`)."""

    def __init__(self, model, stepsize=0.001, momentum=0.9, scheduler=_DEFAULT_SCHEDULER, tolerance=1e-6):
        super().__init__(classic.momentum(momentum=float(momentum)), stepsize, scheduler, tolerance)


class RMSProp(_ClassicOptimizer):
    """delta = L g over its root mean square (Hinton, Coursera lecture 6e; see `classic.rmsprop`)."""

    def __init__(self, model, stepsize=0.001, mean_square_weight=0.9, scheduler=_DEFAULT_SCHEDULER, tolerance=1e-6):
        rule = classic.rmsprop(mean_square_weight=float(mean_square_weight))
        super().__init__(rule, stepsize, scheduler, tolerance)


class ADAM(_ClassicOptimizer):
    """delta = L m over the root of v, the running means of g and g² (Kingma & Ba, 2015; see `classic.adam`)."""

    def __init__(
        self,
        model,
        stepsize=0.001,
        mean_weight=0.9,
        mean_square_weight=0.999,
        scheduler=_DEFAULT_SCHEDULER,
        tolerance=1e-6,
    ):
        rule = classic.adam(mean_weight=float(mean_weight), mean_square_weight=float(mean_square_weight))
        super().__init__(rule, stepsize, scheduler, tolerance)


sgd = SGD = StochasticGradientDescent
momentum = Momentum
rmsprop = RMSProp
adam = ADAM
