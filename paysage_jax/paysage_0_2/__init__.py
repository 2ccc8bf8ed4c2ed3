"""The API of every release of paysage, 0.1 to 0.2.1, with its numbers: optimizers, schedules, gradient utilities.

    from paysage_jax.paysage_0_2 import optimizers, schedules      # was: from paysage import optimizers, schedules

is the whole migration of a script, which may keep paysage's own models and `fit`. Gradients and deltas are trees of
NumPy arrays or of JAX arrays, in and out alike; the arrays that a model returns are never modified. The equations are
those of `paysage_jax.classic`. (The classes of early 2017, before the first release, are `paysage_jax.optimizers`.)

What is as in paysage, though it may surprise:

* `update_lr()` must be called before the first `update`, and once an epoch from then on; `fit` does.
* The schedule that is given is advanced, not a copy: two optimizers that share one both advance it.
* `PowerLawDecay` adds its coefficient to the reciprocal, so a small initial value hardly decays: from 0.001 with
  coefficient 0.1 it takes 10,000 epochs to fall to the half.
* `Step` gives out its initial value `steps + 2` times; after `set_value` the new value comes once.
* `Linear` does not clip the first value, and its default `maxval` is 1.
* `grad_rms`, and so `check_convergence`, counts layers and weights, not arrays.
* `reset` forgets the running means, but neither the schedule nor `delta`.
* The "unbiased" divisors are the constants 1 - w: at default settings a step of ADAM is about 0.32 of the textbook's.
* NaN propagates and never raises.

In 0.1 and 0.1.4 `ExponentialDecay` and `PowerLawDecay` decayed before the first epoch; here they start at the initial
value, as from 0.2.0 on. What only these had, `ascent` and `grad_magnitude`, is there.

What was a defect and is mended:

* The default schedule was one object, shared by all optimizers of a class: each has its own.
* `Step.copy()`, and `schedule_from_config` of its configuration, raised TypeError. `copy()` of a user's own schedule
  raised AttributeError.
* `get_config()` returned the live attributes, which changed with the schedule.
* `PowerLawDecay` raised ZeroDivisionError at the value 0: it stays 0.
* A weight of 0 raised AttributeError (`Momentum`, the mean of `ADAM`), scaled the model's gradient in place (`RMSProp`)
  or its own running mean (the mean square of `ADAM`): it means no averaging, and no normalisation. `Gradient` of 0.1
  scaled the model's gradient, too.
* `update` before `update_lr()` raised a ValueError of numexpr: it is a RuntimeError that says so.
* `check_convergence()` before the first update raised AttributeError: it is False.
* A gradient with fewer layers or with arrays missing than the last one had raised IndexError, or was truncated
  silently: it is a ValueError that names the leaf. So it is in `grad_mapzip`.
* The mean squares of numbers below 1e-23 vanished in `grad_norm` and `grad_rms`, those above 1e19 were infinite.
"""

from . import gradient_util as gradient_util
from . import optimizers as optimizers
from . import schedules as schedules

__all__ = ["gradient_util", "optimizers", "schedules"]
