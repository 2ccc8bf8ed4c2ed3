"""The states of optimizers and runs, and the statistics of estimators, which a `TrainState` or a history contains."""

from ._ebm.estimators import LossStatistics
from ._ebm.mixing import Mixing, MixingStatistic
from ._ebm.phases import PhaseStatistics
from ._ebm.starts import StartComparison
from ._ebm.tempering import TemperedStatistics
from ._ebm.tracking import LogPartitionState, TrackedEstimate
from ._optim.averaging import AverageState
from ._optim.convergence import ConvergenceState
from ._optim.partition import PartitionState
from ._optim.textbook import AdamState, MomentumState, RmspropState, SgdState
from ._optim.wrappers import AccumulateState, SkipNonfiniteState
from ._train.early_stopping import Best
from ._train.step import FitResult

__all__ = [
    "AccumulateState",
    "AdamState",
    "AverageState",
    "Best",
    "ConvergenceState",
    "FitResult",
    "LogPartitionState",
    "LossStatistics",
    "Mixing",
    "MixingStatistic",
    "MomentumState",
    "PartitionState",
    "PhaseStatistics",
    "RmspropState",
    "SgdState",
    "SkipNonfiniteState",
    "StartComparison",
    "TemperedStatistics",
    "TrackedEstimate",
]


def __dir__() -> list[str]:
    return __all__
