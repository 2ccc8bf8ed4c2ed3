"""The documented classes of paysage.optimizers (2017), thin over `classic`: `from paysage_jax import optimizers`.

`update(model, v_data, v_model, epoch)` calls `model.gradient(v_data, v_model)`, makes one step and hands it to
`model.parameter_update(delta)`, which subtracts it. The step is jitted; that of a small model in numpy is done in
numpy, by the same equations. A leaf that came as a numpy array goes back as a writable numpy array of its own dtype;
a leaf that came as a JAX array stays one. Nothing the model returned is modified.
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
    """Base of the learning-rate schedules: counts updates and remembers the epoch. Subclasses add `get_lr()`."""

    def __init__(self) -> None:
        self.lr: float = 1
        self.iter: int = 0
        self.epoch: Any = 0

    def increment(self, epoch: Any) -> None:
        """Note one more update, made in `epoch`."""
        self.iter += 1
        self.epoch = epoch


class PowerLawDecay(Scheduler):
    """lr = 1 / (1 + lr_decay * epoch)."""

    def __init__(self, lr_decay: float = 0.1) -> None:
        super().__init__()
        self.lr_decay: float = lr_decay

    def get_lr(self) -> float:
        """The factor on the step size in the present epoch, a float."""
        self.lr: float = 1 / (1 + self.lr_decay * float(self.epoch))
        return self.lr


class ExponentialDecay(Scheduler):
    """lr = lr_decay ** epoch."""

    def __init__(self, lr_decay: float = 0.9) -> None:
        super().__init__()
        self.lr_decay: float = lr_decay

    def get_lr(self) -> float:
        """The factor on the step size in the present epoch, a float."""
        self.lr: float = self.lr_decay ** float(self.epoch)
        return self.lr


# --- gradients ---------------------------------------------------------------------------------------


def gradient_magnitude(grad: Any) -> float:
    """√(mean over leaves of ‖leaf‖² / len(leaf)), len the size of the first dimension."""
    return float(np.asarray(_magnitude(grad)))


class GradientMemory:
    """The running mean of gradients and of squared gradients; a moment of weight 0 is not kept (None)."""

    def __init__(self, mean_weight: float = 0.9, mean_square_weight: float = 0.0) -> None:
        self.mean_weight: float = mean_weight
        self.mean_square_weight: float = mean_square_weight
        self.mean_gradient: Any = None
        self.mean_square_gradient: Any = None

    def update(self, grad: Any) -> None:
        """Update the moments that have a weight."""
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
        """mean_square = w mean_square + (1 - w) grad²; the first is the first gradient squared."""
        first = self.mean_square_gradient is None
        mean_square = zeros_like_moments(grad) if first else self.mean_square_gradient
        weight = float(self.mean_square_weight)
        self.mean_square_gradient = as_given(grad, _update_mean_square(mean_square, grad, weight, first))

    def normalize(self, grad: Any, unbiased: bool = False) -> Any:
        """grad over the root of the mean square gradient; a copy of grad if that has weight 0 and is not kept.

        Raises TypeError before the first update.
        """
        if self.mean_square_gradient is None:
            if self.mean_square_weight:
                raise TypeError("GradientMemory.normalize: no mean square gradient yet; call update(grad) first")
            return as_given(grad, grad)
        weights = (float(self.mean_weight), float(self.mean_square_weight)) if unbiased else (0.0, 0.0)
        return as_given(grad, _normalize(grad, self.mean_square_gradient, *weights))


_DEFAULT_SCHEDULER = PowerLawDecay()


class Optimizer:
    """Base of the optimizers: a scheduler, a tolerance and `delta`, the last step (what the model subtracted)."""

    def __init__(self, scheduler: Any = _DEFAULT_SCHEDULER, tolerance: float = 0.001) -> None:
        # The default is one object for the whole module: every optimizer needs its own.
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
        self._checked: Any = ()  # the step size that was found to be a number from 0 on
        self._step = Stepper(optimizer)

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), _step=copy(self._step))
        return twin

    def _learning_rate(self) -> float:
        # paysage's normalising classes rounded the step size to float32 before this product, the others did not.
        normalises = hasattr(self._step.optimizer, "mean_square_weight")
        if self.stepsize is not self._checked:
            _as_rate(f"{type(self).__name__}: stepsize", self.stepsize, np.float32 if normalises else float)
            self._checked = self.stepsize
        stepsize = np.float32(self.stepsize) if normalises else self.stepsize
        return float(self.scheduler.get_lr()) * float(stepsize)

    def update(self, model: Any, v_data: Any, v_model: Any, epoch: Any) -> None:
        """One step on `model.gradient(v_data, v_model)`, at the scheduler's rate for `epoch`.

        Raises:
            TypeError, ValueError: if the step size is not a number from 0 on.
            ValueError: naming the leaf, if the gradient's tree or shapes are not those of the last one.
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
    """Whether there was no update yet; a gradient may also be a bare array, which has no truth value."""
    return isinstance(delta, dict) and not delta


def _check_paysage_tree(grad):
    if isinstance(grad, dict) and ("layers" in grad) != ("weights" in grad):
        missing = "weights" if "layers" in grad else "layers"
        raise KeyError(f"the gradient has no {missing!r}, expected {{'layers': [...], 'weights': [...]}}")


class StochasticGradientDescent(_ClassicOptimizer):
    """delta = L g, with L = scheduler.get_lr() * stepsize.

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
    """delta = L m, m the running mean of gradients (Qian, 1999; see `classic.momentum`).

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
    """delta = L g over its root mean square (Hinton, Coursera lecture 6e; see `classic.rmsprop`).

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
    """delta = L m over the root of v, the running means of g and g² (Kingma & Ba, 2015; see `classic.adam`).

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
