"""The optimizers of paysage 0.1 to 0.2.1.

Call `update_lr()` once per epoch to take the next value of the stepsize schedule. `update(model, grad)` computes one
step and passes it to `model.parameter_update(delta)`, which subtracts it. The equations are in `paysage_jax.classic`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from .. import classic
from .. import optimizers as _documented
from .._core.trees import check_same_tree
from .._optim.leafwise import Leafwise
from .._optim.stepper import Stepper, as_given
from . import schedules
from .gradient_util import _scale_, grad_rms


class GradientMemory(_documented.GradientMemory):
    """Running means of gradients and of their squares.

        mean = w mean + (1 - w) grad
        mean_square = W mean_square + (1 - W) grad²

    Args:
        mean_weight: the weight w. If it is 0, the mean stays None.
        mean_square_weight: the weight W. If it is 0, the mean square stays None.
    """

    def reset(self) -> None:
        """Clear both means."""
        self.mean_gradient: Any = None
        self.mean_square_gradient: Any = None

    def normalize(self, grad: Any, unbiased: bool = False) -> Any:
        """Divide `grad` by the root of the mean square gradient. Without a mean square, return a copy of `grad`.

            grad / √(eps + mean_square)                              if not unbiased
            (grad / (1 - w)) / √(eps + mean_square / (1 - W))        if unbiased

        Args:
            grad: the gradient, or its mean.
            unbiased: whether to use the second form.
        """
        if self.mean_square_gradient is None:
            return as_given(grad, grad)
        return super().normalize(grad, unbiased)


class _LiveMemory(GradientMemory):
    """The memory of an optimizer. Its means are copies of the moments in the optimizer's state."""

    def __init__(self, rule: Leafwise) -> None:
        self.mean_weight: float = getattr(rule, "mean_weight", getattr(rule, "momentum", 0))
        self.mean_square_weight: float = getattr(rule, "mean_square_weight", 0)
        self._rule = rule
        self.reset()

    def reset(self) -> None:
        self._stepper = Stepper(self._rule)
        self._delta: Any = None

    @property
    def mean_gradient(self) -> Any:
        return self._moment("mean") if self.mean_weight else None

    @property
    def mean_square_gradient(self) -> Any:
        return self._moment("mean_square") if self.mean_square_weight else None

    def update(self, grad: Any) -> None:
        raise TypeError("only the optimizer can update its memory; create a separate GradientMemory")

    update_mean: Any = update
    update_mean_square: Any = update

    def _moment(self, name: str) -> Any:
        state = self._stepper.moments_as_trees()
        if state is None:
            return None
        # A copy, because the next step may write into the buffers of the state.
        return as_given(self._delta, jax.tree.map(lambda x: x.copy(), getattr(state, name)))

    def _step(self, stepsize: float, grad: Any) -> Any:
        if self._delta is not None and self._rule.moment_names:
            check_same_tree("gradient", grad, "the last update (reset() forgets it)", self._delta)
        self._delta = self._stepper(stepsize, grad)
        return self._delta


_DEFAULT_STEPSIZE = schedules.Constant(initial=0.001)


class Optimizer:
    """Base class of the optimizers.

    The attribute `delta` is the last step, which the model subtracted. `lr_` is a function that multiplies an array in
    place by the current step size, which is `lr_.args[0]`. Before the first `update_lr()`, `lr_` is None.

    Args:
        stepsize: a schedule, or another iterator of numbers; `update_lr()` advances it.
        tolerance: the root mean square of a step at which the run has converged.
        ascent: whether to step uphill (0.1 only).
    """

    def __init__(self, stepsize: Any = _DEFAULT_STEPSIZE, tolerance: float = 1e-7, ascent: bool = False) -> None:
        if not hasattr(type(stepsize), "__next__"):
            hint = f"Constant({stepsize})" if isinstance(stepsize, int | float) else "Constant(0.001)"
            raise TypeError(
                f"{type(self).__name__}: stepsize must be a schedule, such as {hint}, or another iterator, "
                f"got {stepsize!r}"
            )
        # All optimizers share the default object, so each takes a copy.
        self.stepsize: Any = stepsize.copy() if stepsize is _DEFAULT_STEPSIZE else stepsize
        self.tolerance: float = tolerance
        self.delta: Any = {}
        self.grad_sign: float = -1.0 if ascent else 1.0
        self.lr_: Any = None

    def check_convergence(self) -> bool:
        """Whether grad_rms(delta) <= tolerance; False before the first update and for NaN."""
        return bool(jax.tree.leaves(self.delta)) and grad_rms(self.delta) <= self.tolerance

    def update_lr(self) -> None:
        """Take the next step size from the schedule.

        Raises:
            ValueError: if the step size is NaN or infinite.
        """
        stepsize = np.float32(next(self.stepsize))
        if not np.isfinite(stepsize):
            raise ValueError(f"{type(self).__name__}: stepsize must be finite, but its next value is {stepsize}")
        self.lr_ = partial(_scale_, np.float32(self.grad_sign) * stepsize)


class _ClassicOptimizer(Optimizer):
    """An optimizer that applies a rule of `classic`."""

    functional: ClassVar[str]  # the function to use where an (init, update) pair is expected

    def __init__(self, rule: Leafwise, stepsize: Any, tolerance: float, ascent: bool) -> None:
        super().__init__(stepsize, tolerance, ascent)
        self.memory: _LiveMemory = _LiveMemory(rule)

    def reset(self) -> None:
        """Clear the running means; the schedule and `delta` stay."""
        self.memory.reset()

    def update(self, model: Any, grad: Any) -> None:
        """Compute one step and pass it to `model.parameter_update`.

        Args:
            model: the model.
            grad: its gradient, a `Gradient` or any other pytree of floating arrays; it is not modified.

        Raises:
            RuntimeError: before the first `update_lr()`.
            ValueError: if the tree or a shape differs from the last update, unless `reset` was called in between; it
                names the leaf.
        """
        if self.lr_ is None:
            raise RuntimeError(f"{type(self).__name__}: call update_lr() before the first update, then once per epoch")
        self.delta: Any = self.memory._step(float(self.lr_.args[0]), grad)
        model.parameter_update(self.delta)


class Gradient(_ClassicOptimizer):
    """Stochastic gradient descent.

        delta = lr g

    Args:
        stepsize: the schedule of lr.
        tolerance: the root mean square of a step at which the run has converged.
        ascent: whether to step uphill (0.1 only).
    """

    functional = "paysage_jax.classic.sgd"

    def __init__(self, stepsize: Any = _DEFAULT_STEPSIZE, tolerance: float = 1e-7, ascent: bool = False) -> None:
        super().__init__(classic.sgd(), stepsize, tolerance, ascent)


class Momentum(_ClassicOptimizer):
    """Gradient descent with momentum (Qian, 1999), w = momentum.

        m = w m + (1 - w) g
        delta = lr m

    Args:
        stepsize: the schedule of lr.
        momentum: the weight w, in [0, 1].
        tolerance: the root mean square of a step at which the run has converged.
        ascent: whether to step uphill (0.1 only).
    """

    functional = "paysage_jax.classic.momentum"

    def __init__(
        self,
        stepsize: Any = _DEFAULT_STEPSIZE,
        momentum: float = 0.9,
        tolerance: float = 1e-7,
        ascent: bool = False,
    ) -> None:
        super().__init__(classic.momentum(momentum=momentum), stepsize, tolerance, ascent)


class RMSProp(_ClassicOptimizer):
    """RMSProp (Hinton, Coursera lecture 6e, 2012), W = mean_square_weight.

        v = W v + (1 - W) g²
        delta = lr g / √(eps + v / (1 - W))

    Args:
        stepsize: the schedule of lr.
        mean_square_weight: the weight W, in [0, 1].
        tolerance: the root mean square of a step at which the run has converged.
        ascent: whether to step uphill (0.1 only).
    """

    functional = "paysage_jax.classic.rmsprop"

    def __init__(
        self,
        stepsize: Any = _DEFAULT_STEPSIZE,
        mean_square_weight: float = 0.9,
        tolerance: float = 1e-7,
        ascent: bool = False,
    ) -> None:
        super().__init__(classic.rmsprop(mean_square_weight=mean_square_weight), stepsize, tolerance, ascent)


class ADAM(_ClassicOptimizer):
    """Adam (Kingma & Ba, 2015) as in paysage, w = mean_weight and W = mean_square_weight.

        m = w m + (1 - w) g
        v = W v + (1 - W) g²
        delta = lr (m / (1 - w)) / √(eps + v / (1 - W))

    Args:
        stepsize: the schedule of lr.
        mean_weight: the weight w, in [0, 1].
        mean_square_weight: the weight W, in [0, 1].
        tolerance: the root mean square of a step at which the run has converged.
        ascent: whether to step uphill (0.1 only).
    """

    functional = "paysage_jax.classic.adam"

    def __init__(
        self,
        stepsize: Any = _DEFAULT_STEPSIZE,
        mean_weight: float = 0.9,
        mean_square_weight: float = 0.999,
        tolerance: float = 1e-7,
        ascent: bool = False,
    ) -> None:
        rule = classic.adam(mean_weight=mean_weight, mean_square_weight=mean_square_weight)
        super().__init__(rule, stepsize, tolerance, ascent)


gradient = Gradient
momentum = Momentum
rmsprop = RMSProp
adam = ADAM
