"""The documented classes of paysage.optimizers (2017), a thin layer over `classic`.

To migrate a script, write `from paysage_jax import optimizers`. `update(model, v_data, v_model, epoch)` calls
`model.gradient(v_data, v_model)`, computes one step, and passes it to `model.parameter_update(delta)`, which subtracts
it. The step is jitted, except that small models in NumPy are updated in NumPy by the same equations. A leaf given as
a NumPy array is returned as a writable NumPy array of the same dtype; a JAX array is returned as a JAX array. The
gradient that the model returns is not modified.
"""

from copy import copy
from copy import deepcopy as deepcopy
from typing import Any, ClassVar

import jax
import numpy as np

from . import classic
from ._core.pytree import as_rate as _as_rate
from ._core.trees import check_same_tree, zeros_like_moments
from ._optim.convergence import gradient_magnitude as _gradient_magnitude
from ._optim.leafwise import Leafwise
from ._optim.stepper import Stepper, as_given

_magnitude = jax.jit(_gradient_magnitude)
_update_mean = jax.jit(classic.update_mean)
_update_mean_square = jax.jit(classic.update_mean_square)
_normalize = jax.jit(classic.normalize)


# --- schedulers --------------------------------------------------------------------------------------


class Scheduler:
    """Base class of the schedules: counts updates and stores the epoch. Subclasses define `get_lr()`."""

    def __init__(self) -> None:
        self.lr: float = 1
        self.iter: int = 0
        self.epoch: Any = 0

    def increment(self, epoch: Any) -> None:
        """Count one update and store its epoch."""
        self.iter += 1
        self.epoch = epoch


class PowerLawDecay(Scheduler):
    """Power-law decay of the step size.

        lr = 1 / (1 + lr_decay * epoch)

    Args:
        lr_decay: the rate of decay per epoch.
    """

    def __init__(self, lr_decay: float = 0.1) -> None:
        super().__init__()
        self.lr_decay: float = lr_decay

    def get_lr(self) -> float:
        """The factor on the step size in the current epoch, a float."""
        self.lr: float = 1 / (1 + self.lr_decay * float(self.epoch))
        return self.lr


class ExponentialDecay(Scheduler):
    """Exponential decay of the step size.

        lr = lr_decay ** epoch

    Args:
        lr_decay: the factor per epoch.
    """

    def __init__(self, lr_decay: float = 0.9) -> None:
        super().__init__()
        self.lr_decay: float = lr_decay

    def get_lr(self) -> float:
        """The factor on the step size in the current epoch, a float."""
        self.lr: float = self.lr_decay ** float(self.epoch)
        return self.lr


# --- gradients ---------------------------------------------------------------------------------------


def gradient_magnitude(grad: Any) -> float:
    """The size of a gradient or a step, a float.

        √(mean over leaves of ‖leaf‖² / len(leaf)),  len the size of the first dimension

    Args:
        grad: a pytree of arrays with at least one dimension.
    """
    return float(np.asarray(_magnitude(grad)))


class GradientMemory:
    """Running means of gradients and of squared gradients.

    Args:
        mean_weight: the weight w of the mean. If it is 0, `mean_gradient` stays None.
        mean_square_weight: the weight W of the mean square. If it is 0, `mean_square_gradient` stays None.
    """

    def __init__(self, mean_weight: float = 0.9, mean_square_weight: float = 0.0) -> None:
        self.mean_weight: float = mean_weight
        self.mean_square_weight: float = mean_square_weight
        self.mean_gradient: Any = None
        self.mean_square_gradient: Any = None

    def update(self, grad: Any) -> None:
        """Update the moments whose weight is not 0."""
        if self.mean_weight:
            self.update_mean(grad)
        if self.mean_square_weight:
            self.update_mean_square(grad)

    def update_mean(self, grad: Any) -> None:
        """mean = w mean + (1 - w) grad; the first mean is the first gradient."""
        first = self.mean_gradient is None
        mean = zeros_like_moments(grad) if first else self.mean_gradient
        self.mean_gradient = as_given(grad, _update_mean(mean, grad, float(self.mean_weight), first))

    def update_mean_square(self, grad: Any) -> None:
        """mean_square = W mean_square + (1 - W) grad²; the first mean square is the square of the first gradient."""
        first = self.mean_square_gradient is None
        mean_square = zeros_like_moments(grad) if first else self.mean_square_gradient
        weight = float(self.mean_square_weight)
        self.mean_square_gradient = as_given(grad, _update_mean_square(mean_square, grad, weight, first))

    def normalize(self, grad: Any, unbiased: bool = False) -> Any:
        """Divide grad by the root of the mean square gradient. If the weight W is 0, return a copy of grad.

        Args:
            grad: the gradient, or its mean.
            unbiased: whether to divide both by one minus their weight first.

        Raises:
            TypeError: before the first update.
        """
        if self.mean_square_gradient is None:
            if self.mean_square_weight:
                raise TypeError("GradientMemory.normalize: no mean square gradient yet; call update(grad) first")
            return as_given(grad, grad)
        weights = (float(self.mean_weight), float(self.mean_square_weight)) if unbiased else (0.0, 0.0)
        return as_given(grad, _normalize(grad, self.mean_square_gradient, *weights))


_DEFAULT_SCHEDULER = PowerLawDecay()


class Optimizer:
    """Base class of the optimizers. The attribute `delta` is the last step, which the model subtracted.

    Args:
        scheduler: a `Scheduler`; the factor on the step size in each epoch.
        tolerance: the run has converged when `gradient_magnitude(delta)` is at most this.
    """

    def __init__(self, scheduler: Any = _DEFAULT_SCHEDULER, tolerance: float = 0.001) -> None:
        # All optimizers share the default object, so each takes a copy.
        self.scheduler: Any = deepcopy(scheduler) if scheduler is _DEFAULT_SCHEDULER else scheduler
        self.tolerance: float = tolerance
        self.delta: Any = {}

    def check_convergence(self) -> bool:
        """Whether gradient_magnitude(delta) <= tolerance; False before the first update and for NaN."""
        return not _is_nothing(self.delta) and gradient_magnitude(self.delta) <= self.tolerance


class _ClassicOptimizer(Optimizer):
    """One step of a `classic` optimizer per `update`."""

    functional: ClassVar[str]

    def __init__(self, optimizer: Leafwise, stepsize: float, scheduler: Any, tolerance: float) -> None:
        super().__init__(scheduler, tolerance)
        self.stepsize: float = stepsize
        self._checked: Any = ()  # the step size that was last found to be a nonnegative number
        self._step = Stepper(optimizer)

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), _step=copy(self._step))
        return twin

    def _learning_rate(self) -> float:
        # paysage rounded the step size to float32 before this product only in the classes that normalize.
        normalises = hasattr(self._step.optimizer, "mean_square_weight")
        if self.stepsize is not self._checked:
            _as_rate(f"{type(self).__name__}: stepsize", self.stepsize, np.float32 if normalises else float)
            self._checked = self.stepsize
        stepsize = np.float32(self.stepsize) if normalises else self.stepsize
        return float(self.scheduler.get_lr()) * float(stepsize)

    def update(self, model: Any, v_data: Any, v_model: Any, epoch: Any) -> None:
        """Make one step along `model.gradient(v_data, v_model)`, at the scheduler's rate for `epoch`.

        Raises:
            TypeError, ValueError: if the step size is not a nonnegative number.
            ValueError: if the tree or a shape of the gradient differs from the last one; it names the leaf.
        """
        self.scheduler.increment(epoch)
        learning_rate = self._learning_rate()
        grad = model.gradient(v_data, v_model)
        if not _is_nothing(self.delta):
            check_same_tree("gradient", grad, "the last update", self.delta)
        else:
            _check_paysage_tree(grad)
        self.delta: Any = self._step(learning_rate, grad)
        model.parameter_update(self.delta)


def _is_nothing(delta):
    """Whether delta still has its initial value {}. (A delta that is a bare array has no truth value.)"""
    return isinstance(delta, dict) and not delta


def _check_paysage_tree(grad):
    if isinstance(grad, dict) and ("layers" in grad) != ("weights" in grad):
        missing = "weights" if "layers" in grad else "layers"
        raise KeyError(f"the gradient has no {missing!r}, expected {{'layers': [...], 'weights': [...]}}")


class StochasticGradientDescent(_ClassicOptimizer):
    """Stochastic gradient descent.

        delta = L g,  L = scheduler.get_lr() * stepsize

    Args:
        model: not used; kept for old scripts.
        stepsize: a nonnegative number.
        scheduler: a `Scheduler`.
        tolerance: of `check_convergence`.

    >>> class Model:
    ...     params = {"layers": [{"loc": np.zeros(2, np.float32)}], "weights": []}
    ...     def gradient(self, v_data, v_model):
    ...         return {"layers": [{"loc": v_model.mean(axis=0) - v_data.mean(axis=0)}], "weights": []}
    ...     def parameter_update(self, delta):
    ...         self.params["layers"][0]["loc"] -= delta["layers"][0]["loc"]
    >>> model = Model()
    >>> optimizer = StochasticGradientDescent(model, stepsize=0.5)
    >>> optimizer.update(model, np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32), epoch=0)
    >>> model.params["layers"][0]["loc"]
    array([0.5, 0.5], dtype=float32)
    """

    functional = "paysage_jax.classic.sgd"

    def __init__(
        self, model: Any, stepsize: float = 0.001, scheduler: Any = _DEFAULT_SCHEDULER, tolerance: float = 0.001
    ) -> None:
        super().__init__(classic.sgd(), stepsize, scheduler, tolerance)


class Momentum(_ClassicOptimizer):
    """Gradient descent with momentum (Qian, 1999), as in `classic.momentum`.

        delta = L m,  L = scheduler.get_lr() * stepsize,  m the running mean of gradients

    Args:
        model: not used; kept for old scripts.
        stepsize: a nonnegative number.
        momentum: the weight of m, in [0, 1].
        scheduler: a `Scheduler`.
        tolerance: of `check_convergence`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(gradient=lambda v_data, v_model: v_model - v_data)
    >>> model.parameter_update = lambda delta: print(delta.round(4))
    >>> Momentum(model, stepsize=0.5).update(model, np.zeros(2), np.full(2, 0.25), epoch=0)
    [0.125 0.125]
    """

    functional = "paysage_jax.classic.momentum"

    def __init__(
        self,
        model: Any,
        stepsize: float = 0.001,
        momentum: float = 0.9,
        scheduler: Any = _DEFAULT_SCHEDULER,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(classic.momentum(momentum=momentum), stepsize, scheduler, tolerance)


class RMSProp(_ClassicOptimizer):
    """RMSProp (Hinton, Coursera lecture 6e, 2012), as in `classic.rmsprop`.

        delta = L g over its root mean square,  L = scheduler.get_lr() * stepsize

    Args:
        model: not used; kept for old scripts.
        stepsize: a nonnegative number.
        mean_square_weight: the weight of the mean square, in [0, 1].
        scheduler: a `Scheduler`.
        tolerance: of `check_convergence`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(gradient=lambda v_data, v_model: v_model - v_data)
    >>> model.parameter_update = lambda delta: print(delta.round(4))
    >>> RMSProp(model, stepsize=0.5).update(model, np.zeros(2), np.full(2, 0.25), epoch=0)
    [0.1581 0.1581]
    """

    functional = "paysage_jax.classic.rmsprop"

    def __init__(
        self,
        model: Any,
        stepsize: float = 0.001,
        mean_square_weight: float = 0.9,
        scheduler: Any = _DEFAULT_SCHEDULER,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(classic.rmsprop(mean_square_weight=mean_square_weight), stepsize, scheduler, tolerance)


class ADAM(_ClassicOptimizer):
    """Adam (Kingma & Ba, 2015), as in `classic.adam`.

        delta = L m over the root of v,  L = scheduler.get_lr() * stepsize,  m and v the running means of g and g²

    Args:
        model: not used; kept for old scripts.
        stepsize: a nonnegative number.
        mean_weight: the weight of m, in [0, 1].
        mean_square_weight: the weight of v, in [0, 1].
        scheduler: a `Scheduler`.
        tolerance: of `check_convergence`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(gradient=lambda v_data, v_model: v_model - v_data)
    >>> model.parameter_update = lambda delta: print(delta.round(4))
    >>> ADAM(model, stepsize=0.5).update(model, np.zeros(2), np.full(2, 0.25), epoch=0)
    [0.1581 0.1581]
    """

    functional = "paysage_jax.classic.adam"

    def __init__(
        self,
        model: Any,
        stepsize: float = 0.001,
        mean_weight: float = 0.9,
        mean_square_weight: float = 0.999,
        scheduler: Any = _DEFAULT_SCHEDULER,
        tolerance: float = 1e-6,
    ) -> None:
        optimizer = classic.adam(mean_weight=mean_weight, mean_square_weight=mean_square_weight)
        super().__init__(optimizer, stepsize, scheduler, tolerance)


sgd = SGD = StochasticGradientDescent
momentum = Momentum
rmsprop = RMSProp
adam = ADAM
