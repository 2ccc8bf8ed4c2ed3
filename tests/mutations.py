"""Break formulas, checks and branches of the package one at a time, and report which tests see it.

    python -m tests.mutations                  # the fast suite, as pyproject.toml has it
    python -m tests.mutations --markers ""     # the slow tests, too
    python -m tests.mutations --only "clip"    # the mutations with this word in their name

Each mutation is made in a copy of the repository. The test files named beside it run first; the whole suite runs only
if these see nothing. The program fails unless every mutation is seen, and unless the tests pass without one.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """`old`, which stands exactly once in the module, becomes `new`; `tests` are the files that should see it."""

    name: str
    module: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    # --- optimizers and schedules ---
    Mutation(
        "sign: Nesterov looks back",
        "_textbook",
        "direction = self.decay * m + g if self.nesterov else m",
        "direction = self.decay * m - g if self.nesterov else m",
        "textbook",
    ),
    Mutation(
        "swapped: Adam's second moment with the weight of the first",
        "_textbook",
        "v = self.b2 * v + (1 - self.b2) * abs_sq(g)",
        "v = self.b2 * v + (1 - self.b1) * abs_sq(g)",
        "textbook",
    ),
    Mutation(
        "factor: paysage's divisor of the mean square forgotten",
        "classic",
        "xp.sqrt(_EPSILON + v / (1 - W))",
        "xp.sqrt(_EPSILON + v)",
        "classic optimizers",
    ),
    Mutation(
        "off by one: warm-up starts at zero",
        "_schedules",
        "risen = (jnp.minimum(step, steps - 1) + 1)",
        "risen = jnp.minimum(step, steps - 1)",
        "schedules",
    ),
    Mutation(
        "off by one: patience of convergence",
        "_convergence",
        "ConvergenceState(magnitude, streak, streak >= patience)",
        "ConvergenceState(magnitude, streak, streak >= patience - 1)",
        "convergence",
    ),
    # --- transforms and wrappers ---
    Mutation(
        "swapped: the average keeps the new parameters instead of the old",
        "_wrappers",
        "return d * average + (1 - d) * p.astype(average.dtype)",
        "return (1 - d) * average + d * p.astype(average.dtype)",
        "wrappers",
    ),
    Mutation(
        "sign: the centred bias",
        "_centering",
        'centred[right] = centred[right] - jnp.matmul(centred[weight].T, mu, precision="highest")',
        'centred[right] = centred[right] + jnp.matmul(centred[weight].T, mu, precision="highest")',
        "centering",
    ),
    Mutation(
        "branch: a gradient that is not finite moves the state",
        "_wrappers",
        "finite = all_finite(updates)",
        "finite = all_finite(jax.tree.leaves(updates)[:1])",
        "wrappers",
    ),
    Mutation(
        "check: a state of another chain is accepted",
        "_base",
        "if len(state) != len(self.members):",
        "if len(state) < len(self.members):",
        "base",
    ),
    # --- gradients ---
    Mutation(
        "sign: the model phase",
        "_phases",
        "gradient = jax.tree.map(jnp.subtract, data_gradient, model_gradient)",
        "gradient = jax.tree.map(jnp.add, data_gradient, model_gradient)",
        "phases estimators",
    ),
    Mutation(
        "state: persistent chains do not persist",
        "_estimators",
        "return gradient, chains, statistics",
        "return gradient, estimator_state, statistics",
        "estimators training",
    ),
    Mutation(
        "missing copy: the chains that a run starts from are the user's own",
        "_estimators",
        "return as_states(self.transition, params, jax.tree.map(jnp.array, start), key)",
        "return as_states(self.transition, params, start, key)",
        "estimators fit",
    ),
    Mutation(
        "sign: exchanges between temperatures",
        "_tempering",
        "own[:, hotter] + own[:, colder] - cross(hotter, colder) - cross(colder, hotter)",
        "cross(hotter, colder) + cross(colder, hotter) - own[:, hotter] - own[:, colder]",
        "tempering",
    ),
    # --- likelihood ---
    Mutation(
        "off by one: the last temperature of annealing is not reached",
        "_annealing",
        "new = path((k + 1).astype(float) / jnp.asarray(steps, float))",
        "new = path(k.astype(float) / jnp.asarray(steps, float))",
        "likelihood",
    ),
    Mutation(
        "factor: the number of chains in the variance of log Z",
        "_likelihood",
        "1 / effective_size(log_weights) - 1 / len(log_weights)",
        "1 / effective_size(log_weights)",
        "likelihood",
    ),
    Mutation(
        "swapped: the gap of free energies",
        "_metrics",
        "return mean(self.validation) - mean(self.train)",
        "return mean(self.train) - mean(self.validation)",
        "metrics",
    ),
    # --- runs ---
    Mutation(
        "sign: early stopping keeps the worst",
        "_metrics",
        "gain = value - best.value if self.maximize else best.value - value",
        "gain = best.value - value if self.maximize else value - best.value",
        "metrics fit",
    ),
    Mutation(
        "off by one: a run that is not finite keeps the epoch that broke",
        "_training",
        "good = all_finite(state.params) &",
        "good = all_finite(result.params) &",
        "fit",
    ),
    Mutation(
        "missing copy: data in memory stay the user's buffer",
        "_data",
        "    return own(array)",
        "    return jnp.asarray(array)",
        "data",
    ),
    Mutation(
        "check: a checkpoint of another run is accepted",
        "_checkpoints",
        "if written.get(name) != value:",
        "if written.get(name) is None:",
        "checkpoints",
    ),
]


def copy_to(folder):
    """What the tests need, without what earlier runs left."""
    left = shutil.ignore_patterns(".*", "_build", "_examples", "gallery", "__pycache__", "dist")
    shutil.copytree(ROOT, folder, ignore=left)


def mutate(folder, mutation):
    path = folder / "paysage_jax" / f"{mutation.module}.py"
    source = path.read_text()
    if source.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.name}: {mutation.old!r} stands {source.count(mutation.old)} times in {path.name}")
    path.write_text(source.replace(mutation.old, mutation.new))
    return path, source


def failing(folder, files, markers):
    """The tests that fail."""
    command = [sys.executable, "-m", "pytest", "--tb=no", "-rfE", "-m", markers, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)


def main():
    """Report a line for each mutation, with the number of tests that see it and the first of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markers", default="not slow", help="which tests, as pytest -m takes it")
    parser.add_argument("--only", default="", help="a part of the names of mutations")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.only in mutation.name]
    seen = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        copy_to(folder)
        named = {f"tests/test_{name}.py" for mutation in chosen for name in mutation.tests.split()}
        if wrong := failing(folder, sorted(named), options.markers):
            raise SystemExit(f"without a mutation fail: {', '.join(wrong)}")
        for mutation in chosen:
            path, source = mutate(folder, mutation)
            files = [f"tests/test_{name}.py" for name in mutation.tests.split()]
            tests = failing(folder, files, options.markers) or failing(folder, [], options.markers)
            path.write_text(source)
            seen += bool(tests)
            print(
                f"{mutation.module}, {mutation.name}: {len(tests)} tests, {tests[0] if tests else 'NOT SEEN'}",
                flush=True,
            )
    print(f"{seen} of {len(chosen)} mutations seen")
    return int(seen < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
