"""The API and the numerics of the releases 0.1 to 0.2.1 of paysage: optimizers, schedules, gradient utilities.

To migrate a script, change its import:

    from paysage_jax.paysage_0_2 import optimizers, schedules      # was: from paysage import optimizers, schedules

The script may keep paysage's models and `fit`. Gradients are trees of NumPy or JAX arrays, and deltas have the same
array types. The arrays that a model returns are never modified. The equations are in `paysage_jax.classic`. (The
classes of early 2017, before the first release, are in `paysage_jax.optimizers`.)

Behaviour that is the same as in paysage, but may be surprising:

* `update_lr()` must be called before the first `update`, and then once per epoch; `fit` does so.
* An optimizer advances the given schedule, not a copy. Two optimizers that share a schedule both advance it.
* `PowerLawDecay` adds its coefficient to the reciprocal, so a small initial value hardly decays: from 0.001 with
  coefficient 0.1, it takes 10,000 epochs to fall by half.
* `Step` returns its initial value `steps + 2` times; after `set_value`, it returns the new value once.
* `Linear` does not clip the first value, and its default `maxval` is 1.
* `grad_rms`, and therefore `check_convergence`, counts layers and weights, not arrays.
* `reset` clears the running means, but not the schedule or `delta`.
* The "unbiased" divisors are the constants 1 - w: with the default settings, a step of ADAM is about 0.32 times the
  textbook step.
* NaN propagates and never raises.

In 0.1 and 0.1.4, `ExponentialDecay` and `PowerLawDecay` decayed before the first epoch. Here they start at the initial
value, as in 0.2.0 and later. `ascent` and `grad_magnitude`, which only 0.1 and 0.1.4 had, are included.

Defects of paysage that are fixed:

* All optimizers of a class shared one default schedule. Now each has a separate one.
* `Step.copy()`, and `schedule_from_config` of its configuration, raised TypeError. `copy()` of a user's own schedule
  raised AttributeError.
* `get_config()` returned the live attributes, which changed with the schedule.
* `PowerLawDecay` raised ZeroDivisionError at the value 0. Now it stays 0.
* A weight of 0 raised AttributeError (`Momentum`, the mean of `ADAM`), scaled the model's gradient in place
  (`RMSProp`), or scaled the optimizer's running mean (the mean square of `ADAM`). Now it means no averaging, or no
  normalization.
  `Gradient` of 0.1 also scaled the model's gradient in place.
* `update` before `update_lr()` raised a ValueError of numexpr. Now it raises a RuntimeError with a clear message.
* `check_convergence()` before the first update raised AttributeError. Now it is False.
* A gradient with fewer layers or arrays than the last one raised IndexError or was silently truncated. Now it raises a
  ValueError that names the leaf, also in `grad_mapzip`.
* In `grad_norm` and `grad_rms`, mean squares of numbers below 1e-23 vanished and those of numbers above 1e19 were
  infinite. Now both are accurate.
"""

from . import gradient_util as gradient_util
from . import optimizers as optimizers
from . import schedules as schedules

__all__ = ["gradient_util", "optimizers", "schedules"]
