"""The tables of CHANGELOG.md from 0.2 to 0.3 name everything that a script of 0.2 has to change."""

import dataclasses
import inspect
import re
from operator import attrgetter
from pathlib import Path

import pytest

import paysage_jax as pj

CHANGELOG = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
SECTION = re.search(r"^### From 0\.2 to 0\.3\n(.*?)^##", CHANGELOG, re.MULTILINE | re.DOTALL)[1]
LINES = re.findall(r"^\|(.*)\|$", SECTION, re.MULTILINE)
ROWS = [[cell.strip() for cell in line.split("|")] for line in LINES]
RENAMED = [row for row in ROWS if len(row) == 2 and "`" in row[1]]
ARGUMENTS = [row for row in ROWS if len(row) == 3 and "`" in row[2]]

NAMES_OF_0_2 = """
    classic optimizers paysage_0_2 rbm
    AdamState MomentumState RmspropState SgdState adam momentum rmsprop sgd apply_updates
    constant exponential_decay per_epoch power_law_decay warmup
    chain AverageState SkipNonfiniteState add_decayed_weights add_l1_decay average_parameters averaged_parameters
    clip_by_global_norm freeze non_negative project skip_nonfinite unit_column_norm
    AccumulateState PartitionState accumulate partition scale_leaves shard_state
    Join center ConvergenceState converged gradient_magnitude track_convergence
    Packed pack pack_all_like pack_like pack_moments unpack unpack_all
    Estimator LossStatistics PhaseStatistics Weighted contrastive_divergence loss_gradient
    persistent_contrastive_divergence TemperedStatistics parallel_tempering phase_gradient
    AnnealedEstimate annealed_importance_sampling linear_path raise_bound reverse_annealed_importance_sampling
    LogPartitionState TrackedEstimate log_likelihood log_partition track_log_partition
    FitResult Outcome TrainState fit train_step restore
    Best early_stopping free_energy_gap pseudo_log_likelihood reconstruction_error
    Leafwise Transformation Number Pytree Schedule count number rate static
    ADAM ExponentialDecay GradientMemory Momentum Optimizer PowerLawDecay RMSProp Scheduler StochasticGradientDescent
"""


def names(text):
    """The names in backticks."""
    return re.findall(r"`([^`]+)`", text)


def test_every_name_of_0_2_is_public_or_in_the_table():
    before = NAMES_OF_0_2.split()
    changed = [name for row in RENAMED for name in names(row[0])]
    assert len(changed) == len(set(changed))
    for name in before:
        assert (name in pj.__all__) != (name in changed), name
    assert set(changed) - set(before) == {"rbm.Annealing"}


@pytest.mark.parametrize("row", RENAMED, ids=lambda row: row[0])
def test_the_new_name_is_public(row):
    (new,) = names(row[1])
    home, _, name = new.rpartition(".")
    assert home.startswith("pj")
    module = attrgetter(home[3:])(pj) if home != "pj" else pj
    assert name in module.__all__
    assert hasattr(module, name)


def test_every_function_that_took_an_energy_and_a_transition_is_there():
    """No other function takes these arguments, because a model has both. New functions are not listed."""
    taking = {name for name in pj.__all__ if "model" in arguments(name)}
    assert taking - {"compare_starts", "mixing"} == {
        function for function, _, new in arguments_of_0_3() if new == "model"
    }
    assert not [name for name in taking if {"energy", "transition"} & set(arguments(name))]


def arguments_of_0_3():
    """(function, its old argument, its new argument), for each row."""
    function = ""
    for first, old, new in ARGUMENTS:
        function = names(first)[0] if first else function
        yield function, old, names(new)[0]


def arguments(name):
    """The arguments of a public function, or the fields of a class."""
    value = attrgetter(name)(pj)
    if inspect.isclass(value):
        fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        return fields or list(getattr(value, "_fields", ()))
    return list(inspect.signature(value).parameters) if callable(value) else []


@pytest.mark.parametrize(("function", "old", "new"), list(arguments_of_0_3()))
def test_the_new_argument_is_taken(function, old, new):
    assert new in arguments(function)
    before = {name for text in names(old) for name in re.findall(r"\w+", text)}
    # Chains that were a number are now states to start from; those of an estimate have moved.
    assert before & set(arguments(function)) <= {"chains"}
