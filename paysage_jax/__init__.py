"""Optimizers and training of energy-based models in JAX, and the optimizers of paysage with their numbers.

`fit` trains for a number of epochs as one compiled program: an estimator (`persistent_contrastive_divergence`,
`loss_gradient`) computes gradients and an optimizer (`adam`, `chain(...)`) applies them. This module contains the
textbook optimizers. The optimizers of paysage are in `classic` as functions, and as classes in `optimizers` (2017) and
`paysage_0_2` (releases 0.1 to 0.2.1).
"""

from . import classic, extend, optimizers, packing, paysage_0_2, rbm, states
from ._core.batches import Weighted
from ._ebm.annealing import (
    AnnealedEstimate,
    Annealing,
    annealed_importance_sampling,
    linear_path,
    reverse_ais_log_prob,
    reverse_annealed_importance_sampling,
)
from ._ebm.centering import Connection, center
from ._ebm.estimators import (
    contrastive_divergence,
    loss_gradient,
    persistent_contrastive_divergence,
)
from ._ebm.metrics import free_energy_gap, pseudo_log_likelihood, reconstruction_error
from ._ebm.mixing import mixing
from ._ebm.model import Model
from ._ebm.starts import compare_starts
from ._ebm.tempering import parallel_tempering
from ._ebm.tracking import (
    track_log_partition,
    tracked_log_likelihood,
    tracked_log_partition,
)
from ._optim.averaging import average_parameters, averaged_parameters, exponential_average
from ._optim.convergence import converged, gradient_magnitude, track_convergence
from ._optim.partition import partition
from ._optim.schedules import constant, exponential_decay, linear_decay, per_epoch, power_law_decay, warmup
from ._optim.shard_state import shard_state
from ._optim.stateless import (
    add_decayed_weights,
    add_l1_decay,
    clip_by_global_norm,
    non_negative,
    project,
    scale_leaves,
    unit_column_norm,
)
from ._optim.textbook import adam, momentum, rmsprop, sgd
from ._optim.transformation import apply_updates, chain
from ._optim.wrappers import accumulate, freeze, skip_nonfinite
from ._train.checkpoints import Checkpoints, read_checkpoint
from ._train.early_stopping import early_stopping
from ._train.fit import fit
from ._train.step import Outcome, TrainState, train_step
from .optimizers import (
    ADAM,
    ExponentialDecay,
    GradientMemory,
    Momentum,
    Optimizer,
    PowerLawDecay,
    RMSProp,
    Scheduler,
    StochasticGradientDescent,
)

__version__ = "0.3.0"

__all__ = [  # noqa: RUF022 (by topic)
    # namespaces
    "classic",
    "extend",
    "optimizers",
    "packing",
    "paysage_0_2",
    "rbm",
    "states",
    # optimizers, as in the papers
    "adam",
    "momentum",
    "rmsprop",
    "sgd",
    "apply_updates",
    # schedules
    "constant",
    "exponential_decay",
    "linear_decay",
    "per_epoch",
    "power_law_decay",
    "warmup",
    # before, after or around an optimizer
    "chain",
    "add_decayed_weights",
    "add_l1_decay",
    "average_parameters",
    "averaged_parameters",
    "exponential_average",
    "clip_by_global_norm",
    "freeze",
    "non_negative",
    "project",
    "skip_nonfinite",
    "unit_column_norm",
    "accumulate",
    "partition",
    "scale_leaves",
    "shard_state",
    "Connection",
    "center",
    "converged",
    "gradient_magnitude",
    "track_convergence",
    # models and gradients
    "Model",
    "Weighted",
    "contrastive_divergence",
    "loss_gradient",
    "persistent_contrastive_divergence",
    "parallel_tempering",
    # likelihood
    "AnnealedEstimate",
    "Annealing",
    "annealed_importance_sampling",
    "linear_path",
    "reverse_ais_log_prob",
    "reverse_annealed_importance_sampling",
    "track_log_partition",
    "tracked_log_likelihood",
    "tracked_log_partition",
    # do the chains mix?
    "compare_starts",
    "mixing",
    # training
    "Checkpoints",
    "Outcome",
    "TrainState",
    "fit",
    "train_step",
    "read_checkpoint",
    "early_stopping",
    "free_energy_gap",
    "pseudo_log_likelihood",
    "reconstruction_error",
    # the documented classes of paysage (2017)
    "ADAM",
    "ExponentialDecay",
    "GradientMemory",
    "Momentum",
    "Optimizer",
    "PowerLawDecay",
    "RMSProp",
    "Scheduler",
    "StochasticGradientDescent",
]
