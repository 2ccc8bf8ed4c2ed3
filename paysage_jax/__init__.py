"""Optimizers for energy-based models in JAX: pure (init, update) pairs, and the classes of paysage (2017)."""

from . import classic as classic
from . import compat as compat
from .classic import gradient_magnitude as gradient_magnitude
from .compat import ADAM as ADAM
from .compat import ExponentialDecay as ExponentialDecay
from .compat import GradientMemory as GradientMemory
from .compat import Momentum as Momentum
from .compat import Optimizer as Optimizer
from .compat import PowerLawDecay as PowerLawDecay
from .compat import RMSProp as RMSProp
from .compat import Scheduler as Scheduler
from .compat import StochasticGradientDescent as StochasticGradientDescent
from .optimizers import AdamState as AdamState
from .optimizers import MomentumState as MomentumState
from .optimizers import RmspropState as RmspropState
from .optimizers import SgdState as SgdState
from .optimizers import adam as adam
from .optimizers import momentum as momentum
from .optimizers import rmsprop as rmsprop
from .optimizers import sgd as sgd
from .schedules import constant as constant
from .schedules import exponential_decay as exponential_decay
from .schedules import per_epoch as per_epoch
from .schedules import power_law_decay as power_law_decay
from .schedules import warmup as warmup
from .transformation import Leafwise as Leafwise
from .transformation import Transformation as Transformation
from .transformation import apply_updates as apply_updates
from .transformation import chain as chain
from .transformation import pytree_dataclass as pytree_dataclass
from .transformation import static as static

__version__ = "0.1.0"
