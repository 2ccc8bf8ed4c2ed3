"""SIGKILL a run with checkpoints at random moments, restart it until it ends, and compare with an uninterrupted run.

    python -m tests.helpers.kills [--kills 20] [--seed 0]

It prints the moments of the kills, and fails unless every run ends bit for bit like the uninterrupted one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np

import paysage_jax as pj

MODEL = pj.rbm.RBM()

EPOCHS, ROWS, BATCH = 40, 2000, 20
IMAGES = (np.random.default_rng(0).random((ROWS, 64)) < 0.3).astype(np.float32)


def batches(epoch):
    """A shuffling loader whose random numbers are its own, a function of the epoch."""
    order = np.random.default_rng(epoch).permutation(ROWS)
    return (IMAGES[rows] for rows in order.reshape(-1, BATCH))


KINDS = {"in memory": (IMAGES, {"batch_size": BATCH}), "loader": (batches, {})}


def train(kind, epochs=EPOCHS, **options):
    """A run with random numbers in every part, and with everything that a checkpoint can contain."""
    data, size = KINDS[kind]
    return pj.fit(
        MODEL.init(IMAGES, 32, jax.random.key(1)),
        pj.chain(pj.center(), pj.adam(1e-3), pj.average_parameters(0.9), pj.track_convergence(1e-9)),
        pj.persistent_contrastive_divergence(MODEL, num_chains=50, steps=5),
        data,
        epochs=epochs,
        key=jax.random.key(2),
        metrics={"likelihood": pj.pseudo_log_likelihood(MODEL, IMAGES)},
        early_stopping=pj.early_stopping("likelihood", patience=1000, maximize=True),
        **size,
        **options,
    )


def leaves(result):
    """The result as NumPy arrays under their paths."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(result)}


def assert_identical(actual, expected):
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].dtype == x.dtype, name
        assert actual[name].tobytes() == x.tobytes(), name


def one_life(kind, folder, end, epochs, seconds, *, compiling):
    """Start the run, kill it some seconds after its imports or after its first epoch; where it was, or "ended"."""
    command = [sys.executable, __file__, "--live", kind, str(folder), str(end), str(epochs)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout.readline() == "imported\n"
        said = "" if compiling else process.stdout.readline()
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        said += process.stdout.read()
        killer.cancel()
    if process.returncode == 0:
        return "ended"
    assert process.returncode == -9, f"the run failed by itself: {process.returncode}"
    if any(folder.glob("*tmp*")):
        return "in a save"
    return "in an epoch" if said else "in compilation"


def live(kind, folder, end, epochs):
    """The work of a started process."""
    print("imported", flush=True)
    run = partial(train, kind, int(epochs), checkpoints=folder)
    result = run(callback=lambda result: print(int(result.epochs_done), flush=True))
    np.savez(end, **leaves(result))


def kill(kind, kills, rng, folder, expected, epochs=EPOCHS):
    """Kill runs so many times, begin a new one when one has ended; where the kills fell, and how many runs ended."""
    fell, ended = Counter(), 0
    while fell.total() < kills or not ended:
        at = folder / f"{kind} {ended}"
        compiling = fell.total() % 4 == 3
        seconds = rng.uniform(0, epochs / 20) if fell.total() < kills else 600
        where = one_life(kind, at, folder / "end.npz", epochs, seconds, compiling=compiling)
        if where != "ended":
            fell[where] += 1
            for half in at.glob("*tmp*"):  # so that what the next kill leaves is seen
                half.rename(folder / f"half {time.time_ns()}")
            continue
        ended += 1
        assert_identical(dict(np.load(folder / "end.npz")), expected)
    return fell, ended


def main():
    """Both kinds of data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each kind of data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--live", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.live:
        return live(*options.live)
    rng = np.random.default_rng(options.seed)
    for kind in KINDS:
        began = time.perf_counter()
        expected = leaves(train(kind))
        print(f"{kind}: the uncut run took {time.perf_counter() - began:.1f} s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            fell, ended = kill(kind, options.kills, rng, Path(folder), expected)
        places = ", ".join(f"{number} {where}" for where, number in fell.items())
        print(f"{kind}: {fell.total()} kills ({places}); {ended} runs ended, each identical to the uncut one")
    return None


if __name__ == "__main__":
    main()
