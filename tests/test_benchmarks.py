"""The benchmarks: they summarize times correctly, notice unequal work, and run."""

import json
import sys

import numpy as np
import pytest
import rbm_mnist

from benchmarks import log_z, measure, mnist, report
from benchmarks.__main__ import main
from benchmarks.peers import Products
from tests.helpers.idx import write_digits_as_mnist
from tests.helpers.programs import start


class Walk:
    """A variant that moves by `pace` every time."""

    def __init__(self, pace):
        self.pace, self.place = pace, np.zeros(3)

    def __call__(self, count):
        self.place = self.place + count * self.pace

    def values(self):
        return [self.place]


def result():
    tree, optax = iter([2.0, 4.0, 9.0]), iter([1.0, 2.0, 3.0])
    timers = {"tree": lambda: next(tree), "optax": lambda: next(optax)}
    return measure.in_turn("walking", timers, ["optax"], seconds=0, least_rounds=3)


def test_ratios_are_those_of_one_round():
    measured = result()
    assert measured.rounds == 3
    assert measured.seconds["tree"] == (3.0, 4.0, 6.5)
    assert measured.ratios == {"tree": {"optax": (2.0, 2.0, 2.5)}, "optax": {}}


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


def test_the_floor_leaves_no_product_out():
    up, down = [20, 10, 10], [10]
    floor = Products(64, 32, up, down)
    floor(2)
    compiled = floor.run.lower(1, floor.carry).compile().as_text()
    assert compiled.count(" dot(") == len(up) + len(down) + 2


def test_table_shows_every_ratio():
    assert [line.split() for line in report.table(result()).splitlines()] == [
        ["walking", "(3", "rounds)"],
        ["time", "over", "optax"],
        ["tree", "4", "s", "[3", "6.5]", "2", "[2", "2.5]"],
        ["optax", "2", "s", "[1.5", "2.5]"],
    ]


def test_kept_results_can_be_read_back(tmp_path):
    data, image = report.keep({"W5": [result()], "training": [result()]}, tmp_path)
    (kept,) = json.loads(data.read_text())["parts"]["training"]
    assert kept["seconds"] == {"tree": [3, 4, 6.5], "optax": [1.5, 2, 2.5]}
    assert kept["ratios"] == {"tree": {"optax": [2, 2, 2.5]}}
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_part_runs():
    done = start("-m", "benchmarks", "--quick", "W5")
    assert done.returncode == 0, done.stderr
    assert "adam, one step: 10 leaves of 10" in done.stdout
    assert "over optax" in done.stdout


def test_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "W6"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no part W6" in capsys.readouterr().err


@pytest.mark.slow
def test_the_likelihood_of_made_mnist_is_measured(tmp_path, capsys):
    write_digits_as_mnist(tmp_path)
    sizes = ["--epochs", "60", "--learning-rate", "0.5", "--hidden", "10", "--annealed", "50", "--temperatures", "100"]
    mnist.main(["--data", str(tmp_path), "--seeds", "3", "4", *sizes])
    _, *seeds, forward, reverse, _ = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in seeds] == ["3", "4"]
    images = rbm_mnist.load(tmp_path)
    p = (images.train.sum(axis=0) + 1) / (len(images.train) + 2)
    independent = np.mean(np.sum(np.log(np.where(images.test, p, 1 - p)), axis=1))
    for line, column in ((forward, 3), (reverse, 4)):
        values = [float(line.split()[column]) for line in seeds]
        assert all(independent + 0.5 < value < independent + 5 for value in values)
        assert line.split(": ")[1] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


@pytest.mark.slow
def test_log_z_of_small_machines_is_measured(capsys):  # mostly compiles: a run, and three ways to anneal
    sizes = {"hidden": 2, "seeds": 2, "epochs": 2, "chains": 200, "steps": 20}
    log_z.main([word for name, size in sizes.items() for word in (f"--{name}", str(size))])
    printed = capsys.readouterr().out
    assert "tracked, at the end: at most 0.0" in printed
    assert "log Z between bounds in 2" in printed
