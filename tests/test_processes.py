"""Two processes with two devices each train one model, or raise an error on both."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers.runs import HUNG
from tests.test_sharding import CPUS, OPTIMIZERS, on_one_device, over, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="processes of a CPU are started"),
    pytest.mark.skipif(len(CPUS) < 8, reason="eight virtual devices of the CPU are needed"),
]
HERE = Path(__file__).parent
LAUNCH = [
    sys.executable,
    str(HERE.parent / "examples" / "launch.py"),
    "--processes",
    "2",
    str(HERE / "helpers" / "processes.py"),
]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def launched(folder, *cases):
    """The output of each process for each case."""
    done = subprocess.run([*LAUNCH, str(folder), *cases], env=ENV, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    return {case: [(folder / f"{case} {rank}.txt").read_text() for rank in (0, 1)] for case in cases}


def assert_same_numbers(path, expected):
    with np.load(path) as run:
        np.testing.assert_array_equal(run["chains"], expected.estimator_state)
        for i, x in enumerate(map(np.asarray, jax.tree.leaves(expected.params))):
            assert np.linalg.norm(run[f"params {i}"] - x) <= 1e-5 * np.linalg.norm(x)


UNEQUAL = "ValueError fit: data: every process must have equally many batches, of the same shapes; rows of batch"
SAID = {  # by process 0 and by process 1
    "in memory": ["EPOCHS_EXHAUSTED 8"] * 2,
    "loader": ["EPOCHS_EXHAUSTED 8"] * 2,
    "a callback that stops": ["STOPPED 3"] * 2,
    "a callback that raises": ["ZeroDivisionError", "RuntimeError fit: the callback raised in process 0"],
    "no sharding": ["ValueError fit: sharding must be given for 2 processes"] * 2,
    "other data": ["ValueError fit: data must be the same in all 2 processes"] * 2,
    "other parameters": ["ValueError fit: params must be the same in all 2 processes"] * 2,
    "other shards": ["ValueError fit: shards must be the same in all 2 processes"] * 2,
    "other steps": ["ValueError fit: estimator_or_optimizer must be the same in all 2 processes"] * 2,
    "an argument wrong on one": [
        "RuntimeError fit: process 1 raised an exception while checking its arguments",
        "ValueError fit: batch_size",
    ],
    "checkpoints on one": ["ValueError fit: checkpoints must be the same in all 2 processes"] * 2,
    "a loader with the same rows on both": ["ValueError fit: sharding: 2 processes with 8 rows each make 8 rows"] * 2,
    "fewer batches": [f"{UNEQUAL} 7 in processes 0 to 1: 8, none"] * 2,
    "other shapes": [f"{UNEQUAL} 3 in processes 0 to 1: 8, 8"] * 2,
    "a loader that raises": ["RuntimeError fit: data raised in process 1", "OSError the disk is gone"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """From a pair of processes that run all cases: about 40 seconds, mostly compilation."""
    folder = tmp_path_factory.mktemp("processes")
    launched(folder, *SAID)
    return folder


@pytest.mark.parametrize("case", SAID)
def test_both_processes_report_the_error_and_none_hangs(case, folder):
    for rank, expected in enumerate(SAID[case]):
        assert (folder / f"{case} {rank}.txt").read_text().startswith(expected)


@pytest.mark.parametrize("case", ["in memory", "loader"])
def test_two_processes_are_one(case, folder):
    assert_same_numbers(folder / f"{case}.npz", on_one_device("adam", case == "loader"))


def test_the_callback_is_asked_in_process_0_alone(folder):
    assert (folder / "called 0").exists()
    assert not (folder / "called 1").exists()


# Two pairs of processes, and ten seconds until the death of one is noticed.
def test_when_one_process_is_killed_the_other_ends_and_the_pair_resumes_like_an_uninterrupted_run(tmp_path):
    environment = ENV | {"WORLD_SIZE": "2", "JAX_COORDINATOR_ADDRESS": f"localhost:{20000 + os.getpid() % 20000}"}
    command = [sys.executable, str(HERE / "helpers" / "processes.py"), str(tmp_path), "killed"]
    pair = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=stderr, text=True)
        for rank, stderr in enumerate([subprocess.PIPE, subprocess.DEVNULL])
    ]
    try:
        begun = time.monotonic()
        while not (tmp_path / "run" / "3").exists():
            assert [process.poll() for process in pair] == [None, None], "a process ended before its third checkpoint"
            assert time.monotonic() - begun < HUNG, "no third checkpoint"
            time.sleep(0.1)
        pair[1].send_signal(signal.SIGKILL)
        _, said = pair[0].communicate(timeout=HUNG)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert pair[0].returncode != 0
    assert "another task died" in said or "stopped sending heartbeats" in said or "Gloo" in said
    assert not (tmp_path / "run" / "60").exists()
    assert launched(tmp_path, "killed") == {"killed": ["EPOCHS_EXHAUSTED 60"] * 2}
    assert_same_numbers(tmp_path / "killed.npz", train(over(4), OPTIMIZERS["sharded adam"], epochs=60))
