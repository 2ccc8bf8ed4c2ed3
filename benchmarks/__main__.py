"""`python -m benchmarks` measures everything and saves it; `python -m benchmarks W5 shim` shows some parts."""

import argparse
import inspect
import time
from functools import partial
from pathlib import Path

import jax

from . import boltzmann, potts, report, reporting, scaling, shim, steps, trainers
from .trees import TREES

PARTS = {
    # a function that yields results, and the seconds for each of its comparisons
    **{name: (partial(steps.one_step, name), 1.5) for name in TREES if name != "W4"},
    "bfloat16": (steps.bfloat16, 3),
    "training": (steps.training, 3),
    "fifty": (steps.fifty_steps, 3),
    "schedules": (steps.schedules, 2),
    "wrappers": (steps.wrappers, 1),
    "shim": (shim.update, 2),
    "rbm": (boltzmann.epochs_of_training, 3),
    "trainers": (trainers.trainers, 30),
    "potts": (potts.potts, 30),
    "reporting": (reporting.reporting, 30),
    "scaling": (scaling.scaling, 1),
    # Last the parts that mostly compile: a thousand leaves take minutes on an accelerator.
    "W4": (partial(steps.one_step, "W4"), 1.5),
    "compile": (steps.compiling, 2),
}
RESULTS = Path(__file__).parent / "results"


def main():
    """Measure the parts, print their tables, and save the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare times with other libraries.")
    parser.add_argument("parts", nargs="*", metavar="part", help="parts (default: all, saved as JSON and PNG)")
    parser.add_argument("--list", action="store_true", help="list the parts and exit")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, for a first look; saves nothing")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.list:
        for name, (part, _) in PARTS.items():
            description = inspect.getdoc(part.func if isinstance(part, partial) else part)
            print(f"{name:10} {description}", TREES[name][0] if name in TREES else "")
        return

    jax.config.update("jax_enable_compilation_cache", False)
    print(report.heading(), end="\n\n")
    start = time.perf_counter()
    results, kept = {}, []
    for name in options.parts or PARTS:
        part, seconds = PARTS[name]
        results[name] = []
        for result in part(seconds / 10 if options.quick else seconds):
            results[name].append(result)
            print(f"{name}  {report.table(result)}", end="\n\n", flush=True)
        if name == "scaling" and not options.quick:
            report.keep({name: results.pop(name)}, RESULTS, "-scaling", scaling.draw)
        elif not (options.parts or options.quick):
            kept = report.keep(results, RESULTS)  # after each part: so that an interrupted run keeps its results
    print(f"{time.perf_counter() - start:.0f} s", *(f"wrote {path}" for path in kept), sep="\n")


if __name__ == "__main__":
    main()
