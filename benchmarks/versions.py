"""Compare the times of this version and of an earlier commit, measured alternately in two processes.

    python -m benchmarks.versions COMMIT                     # everything
    python -m benchmarks.versions COMMIT "step 784 x 500"    # some cases; --list shows them

A ratio above 1 means that this version is slower. The working tree is measured, with uncommitted changes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH = 100
PAIRS = 7  # pairs of processes for each case
START = "epoch 64 x 16"  # the case that is timed from its start

# --- in a process of one version ---------------------------------------------------------------------


def machine(visible, hidden, gaussian):
    """The initial parameters of a machine, an estimator, an optimizer, and ten batches of data."""
    import jax
    import numpy as np

    import paysage_jax as pj
    from paysage_jax import rbm

    random = np.random.default_rng(0)
    bits = (random.random((10 * BATCH, visible)) < 0.3).astype(np.float32)
    data = random.normal(size=bits.shape).astype(np.float32) if gaussian else bits
    model: Any
    functions: Any = rbm  # in versions before kinds of units
    if hasattr(rbm, "Gaussian"):
        machine = rbm.RBM(rbm.Gaussian() if gaussian else rbm.Binary())
        model, start = [machine], machine.init(data, hidden, jax.random.key(0))
    else:
        make = functions.init_gaussian if gaussian else functions.init_bernoulli
        model = [rbm.RBM()] if hasattr(rbm, "RBM") else [functions.free_energy, functions.gibbs]  # up to 0.2
        start = make(data, hidden, jax.random.key(0))
    return start, pj.contrastive_divergence(*model), pj.adam(1e-3), data


def step(visible, hidden, gaussian=False):
    """`train_step` on a batch that is on the device."""
    import jax
    import jax.numpy as jnp

    import paysage_jax as pj

    params, estimator, optimizer, data = machine(visible, hidden, gaussian)
    batch, key = jnp.array(data[:BATCH]), jax.random.key(1)
    state = pj.TrainState(params, optimizer.init(params), estimator.init(params, batch, key))
    train = pj.train_step(estimator, optimizer)

    def work(count):
        nonlocal state
        for _ in range(count):
            state, _ = train(state, batch, key)
        jax.block_until_ready(state)

    return work


def epoch(visible, hidden, loader=False):
    """An epoch of ten batches in a run of `fit`."""
    import jax

    import paysage_jax as pj

    params, estimator, optimizer, data = machine(visible, hidden, gaussian=False)
    batches = [data[i : i + BATCH] for i in range(0, len(data), BATCH)]
    source = batches if loader else data
    options: Any = {} if loader else {"batch_size": BATCH}

    def work(count):
        run = pj.fit(params, optimizer, estimator, source, epochs=count, key=jax.random.key(1), **options)
        jax.block_until_ready(run.params)

    return work


def adam_class():
    """`ADAM.update` of the documented classes, 64 x 16, in JAX."""
    from types import SimpleNamespace

    import jax
    import jax.numpy as jnp

    from paysage_jax.optimizers import ADAM

    params = machine(64, 16, gaussian=False)[0]
    gradient = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    model = SimpleNamespace(gradient=lambda data, samples: gradient, parameter_update=jax.block_until_ready)
    optimizer = ADAM(model)

    def work(count):
        for _ in range(count):
            optimizer.update(model, None, None, epoch=0)

    return work


CASES = {
    "step 64 x 16": partial(step, 64, 16),
    "step 784 x 500": partial(step, 784, 500),
    "Gaussian step 64 x 16": partial(step, 64, 16, gaussian=True),
    "Gaussian step 784 x 500": partial(step, 784, 500, gaussian=True),
    "epoch 64 x 16": partial(epoch, 64, 16),
    "epoch 64 x 64": partial(epoch, 64, 64),
    "epoch 784 x 500": partial(epoch, 784, 500),
    "epoch 64 x 16, a loader": partial(epoch, 64, 16, loader=True),
    "epoch 784 x 500, a loader": partial(epoch, 784, 500, loader=True),
    "ADAM.update 64 x 16": adam_class,
}


def first_call(work):
    """Do the work once, and print the seconds."""
    start = time.perf_counter()
    work(1)
    print(time.perf_counter() - start)


def serve(work):
    """Repeat the work as often as each line of standard input says, and print the seconds."""
    work(1)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work(int(line))
        print(time.perf_counter() - start, flush=True)


# --- the process that compares them ------------------------------------------------------------------


def python(folder, *arguments, variables=None, **options):
    """A process of the version in `folder`, with more environment variables."""
    always = {"PYTHONPATH": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = {**os.environ, **always, **(variables or {})}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, text=True, **options)


class Worker:
    """A process that runs `serve`. Raises RuntimeError if it ends before it is ready."""

    def __init__(self, folder, *arguments, variables=None):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process: Any = python(folder, *arguments, variables=variables, **pipes)
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"no measurement by python {' '.join(map(str, arguments))}")

    def __call__(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare_case(folders, case, seconds):
    """The times of one case in all versions, in several pairs of new processes, because one may be fast by chance."""
    import numpy as np

    from .measure import PAUSE, SHORTEST, Result, quartiles

    rounds = []
    for _ in range(PAIRS):
        workers = {name: Worker(folder, __file__, "--serve", case) for name, folder in folders.items()}
        count = max(1, round(SHORTEST / min(worker(1) for worker in workers.values())))
        medians = {name: [] for name in workers}
        end = time.perf_counter() + seconds / PAIRS
        while time.perf_counter() < end or not medians["now"]:
            for name, worker in workers.items():
                time.sleep(PAUSE)
                medians[name].append(worker(count) / count)
        rounds.append({name: float(np.median(times)) for name, times in medians.items()})
        for worker in workers.values():
            worker.close()
    samples = {name: np.array([each[name] for each in rounds]) for name in folders}
    ratios = {"now": {"before": quartiles(samples["now"] / samples["before"])}, "before": {}}
    return Result(case, {name: quartiles(sample) for name, sample in samples.items()}, ratios, PAIRS)


def seconds_of_process(folder, *arguments):
    """How long a process runs, from its start to its end."""
    start = time.perf_counter()
    python(folder, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).wait()
    return time.perf_counter() - start


def seconds_of_first_call(folder, case):
    """How long the first work of a process takes, which includes compilation but neither imports nor `init`."""
    return float(python(folder, __file__, "--first", case, stdout=subprocess.PIPE).communicate()[0])


def compare_starts(folders, seconds):
    """The times of an import, of a process that compiles and trains for an epoch, and of its call of `fit`."""
    from .measure import in_turn

    for title, seconds_of in (
        ("import", lambda folder: seconds_of_process(folder, "-c", "import paysage_jax")),
        ("a process with one epoch, 64 x 16", lambda folder: seconds_of_process(folder, __file__, "--serve", START)),
        ("the first call of fit, 64 x 16", lambda folder: seconds_of_first_call(folder, START)),
    ):
        yield in_turn(
            title, {name: partial(seconds_of, folder) for name, folder in folders.items()}, ["before"], seconds
        )


def main():
    """Measure the cases, or serve one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="the commit to compare with")
    parser.add_argument("cases", nargs="*", help="cases to measure (default: all)")
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument("--seconds", type=float, default=20, help="for each case")
    parser.add_argument("--serve", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--first", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(CASES[options.serve]())
    if options.first:
        return first_call(CASES[options.first]())
    if options.list:
        return print(*CASES, "starts", sep="\n")
    if options.commit is None:
        parser.error("expected a commit")
    if unknown := set(options.cases) - {*CASES, "starts"}:
        parser.error(f"no case {', '.join(sorted(unknown))}; --list shows them")

    from .report import heading, table

    print(heading(), end="\n\n")
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", before, options.commit], cwd=ROOT, check=True)
        try:
            folders = {"now": ROOT, "before": before}
            for case in options.cases or CASES:
                if case != "starts":
                    print(table(compare_case(folders, case, options.seconds)), end="\n\n", flush=True)
            if "starts" in (options.cases or ["starts"]):
                for result in compare_starts(folders, options.seconds):
                    print(table(result), end="\n\n", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
