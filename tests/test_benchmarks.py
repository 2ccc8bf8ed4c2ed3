"""The benchmarks: what they do with times, that they notice work that is not the same, and that they run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, report

ROOT = Path(__file__).parents[1]


class Walk:
    """A variant that moves by `pace` every time."""

    def __init__(self, pace):
        self.pace, self.place = pace, np.zeros(3)

    def __call__(self, count):
        self.place = self.place + count * self.pace

    def values(self):
        return [self.place]


def result():
    slow, fast = iter([2.0, 4.0, 9.0]), iter([1.0, 2.0, 3.0])
    timers = {"slow": lambda: next(slow), "fast": lambda: next(fast)}
    return measure.in_turn("walking", timers, ["fast"], seconds=0, least_rounds=3)


def test_ratios_are_those_of_one_round():
    measured = result()
    assert measured.rounds == 3
    assert measured.seconds["slow"] == (3.0, 4.0, 6.5)
    assert measured.ratios == {"slow": {"fast": (2.0, 2.0, 2.5)}, "fast": {}}


def test_variants_take_turns():
    order = []
    timers = {name: lambda name=name: order.append(name) or 1.0 for name in "AB"}
    measure.in_turn("", timers, [], seconds=0, least_rounds=2)
    assert order == ["A", "B", "A", "B"]


def test_compare_leaves_out_the_absent_and_divides_by_what_a_call_is_worth():
    measured = measure.compare("", {"one": Walk(1)}, {"other": Walk(1), "absent": None}, seconds=0, each=10**9)
    assert list(measured.seconds) == ["one", "other"]
    assert measured.seconds["one"].median < 1e-9


def test_work_that_differs_is_noticed():
    start = [np.zeros(3)]
    measure.check_same_work(start, {"a": Walk(1), "b": Walk(1 + 1e-6), "absent": None})
    with pytest.raises(AssertionError, match="b and a"):
        measure.check_same_work(start, {"a": Walk(1), "b": Walk(1.001)})
    with pytest.raises(AssertionError, match="b and a"):
        measure.check_same_work(start, {"a": Walk(1), "b": Walk(np.nan)})


def test_table_shows_every_ratio():
    assert [line.split() for line in report.table(result()).splitlines()] == [
        ["walking", "(3", "rounds)"],
        ["time", "over", "fast"],
        ["slow", "4", "s", "[3", "6.5]", "2", "[2", "2.5]"],
        ["fast", "2", "s", "[1.5", "2.5]"],
    ]


def test_a_part_runs():
    command = [sys.executable, "-m", "benchmarks", "--quick", "W5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "adam, one step: 10 leaves of 10" in done.stdout
    assert "over optax" in done.stdout


def test_an_unknown_part_is_refused():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "W6"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part W6" in done.stderr
