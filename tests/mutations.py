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
    """Replace `old`, which occurs exactly once in the module, by `new`; the files `tests` should detect it."""

    name: str
    module: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    # --- optimizers and schedules ---
    Mutation(
        "sign: Nesterov looks back",
        "_optim/textbook",
        "direction = self.decay * m + g if self.nesterov else m",
        "direction = self.decay * m - g if self.nesterov else m",
        "textbook",
    ),
    Mutation(
        "swapped: Adam's second moment with the weight of the first",
        "_optim/textbook",
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
        "_optim/schedules",
        "risen = (jnp.minimum(step, steps - 1) + 1)",
        "risen = jnp.minimum(step, steps - 1)",
        "schedules",
    ),
    Mutation(
        "off by one: patience of convergence",
        "_optim/convergence",
        "ConvergenceState(magnitude, streak, streak >= patience)",
        "ConvergenceState(magnitude, streak, streak >= patience - 1)",
        "convergence",
    ),
    # --- transforms and wrappers ---
    Mutation(
        "swapped: the average keeps the new parameters instead of the old",
        "_optim/averaging",
        "return average + weight.astype(average.dtype) * (p.astype(average.dtype) - average)",
        "return p.astype(average.dtype) + weight.astype(average.dtype) * (average - p.astype(average.dtype))",
        "averaging",
    ),
    Mutation(
        "sign: the centred bias",
        "_ebm/centering",
        'centred[right] = centred[right] - jnp.matmul(centred[weight].T, mu, precision="highest")',
        'centred[right] = centred[right] + jnp.matmul(centred[weight].T, mu, precision="highest")',
        "centering",
    ),
    Mutation(
        "branch: a gradient that is not finite moves the state",
        "_optim/wrappers",
        "finite = all_finite(updates)",
        "finite = all_finite(jax.tree.leaves(updates)[:1])",
        "wrappers",
    ),
    Mutation(
        "check: a state of another chain is accepted",
        "_optim/transformation",
        "if len(state) != len(self.members):",
        "if len(state) < len(self.members):",
        "base",
    ),
    # --- gradients ---
    Mutation(
        "sign: the model phase",
        "_ebm/phases",
        "gradient = jax.tree.map(jnp.subtract, data_gradient, model_gradient)",
        "gradient = jax.tree.map(jnp.add, data_gradient, model_gradient)",
        "phases estimators",
    ),
    Mutation(
        "state: persistent chains do not persist",
        "_ebm/estimators",
        "return gradient, chains, statistics",
        "return gradient, estimator_state, statistics",
        "estimators training",
    ),
    Mutation(
        "missing copy: the chains that a run starts from are the user's own",
        "_ebm/estimators",
        "return as_states(self.model.transition, params, jax.tree.map(jnp.array, chains), key)",
        "return as_states(self.model.transition, params, chains, key)",
        "estimators fit",
    ),
    Mutation(
        "sign: exchanges between temperatures",
        "_ebm/tempering",
        "own[:, hotter] + own[:, colder] - cross(hotter, colder) - cross(colder, hotter)",
        "cross(hotter, colder) + cross(colder, hotter) - own[:, hotter] - own[:, colder]",
        "tempering",
    ),
    # --- likelihood ---
    Mutation(
        "off by one: the last temperature of annealing is not reached",
        "_ebm/annealing",
        "new = path((k + 1).astype(float) / jnp.asarray(steps, float))",
        "new = path(k.astype(float) / jnp.asarray(steps, float))",
        "likelihood",
    ),
    Mutation(
        "factor: the number of chains in the variance of log Z",
        "_ebm/tracking",
        "1 / effective_sample_size(log_weights) - 1 / len(log_weights)",
        "1 / effective_sample_size(log_weights)",
        "likelihood",
    ),
    Mutation(
        "swapped: the gap of free energies",
        "_ebm/metrics",
        "return mean(self.validation) - mean(self.train)",
        "return mean(self.train) - mean(self.validation)",
        "metrics",
    ),
    # --- runs ---
    Mutation(
        "sign: early stopping keeps the worst",
        "_train/early_stopping",
        "gain = value - best.value if self.maximize else best.value - value",
        "gain = best.value - value if self.maximize else value - best.value",
        "metrics fit",
    ),
    Mutation(
        "off by one: a run that is not finite keeps the epoch that broke",
        "_train/epochs",
        "good = all_finite(state.params) &",
        "good = all_finite(result.params) &",
        "fit",
    ),
    Mutation(
        "missing copy: a callback gets the dicts of the run",
        "_train/driver",
        "given = jax.tree.map(lambda x: x, self.result)",
        "given = self.result",
        "attacks_runs",
    ),
    Mutation(
        "check: a checkpoint of another run is accepted",
        "_train/checkpoints",
        "if written.get(name) != value:",
        "if written.get(name) is None:",
        "checkpoints",
    ),
    # --- other people's data ---
    Mutation(
        "dtype: integers stay integers",
        "_core/batches",
        "return x.astype(dtype) if whole else x",
        "return x",
        "other_data domains",
    ),
    Mutation(
        "check: NaN in data passes",
        "_core/batches",
        "        if found:",
        "        if False:",
        "other_data domains",
    ),
    Mutation(
        "weights: a ratio of means in each batch",
        "_ebm/phases",
        "return jnp.mean(jnp.asarray(weights, wide) * x.astype(wide)).astype(x.dtype)",
        "return jnp.average(x, weights=jnp.broadcast_to(weights, x.shape)).astype(x.dtype)",
        "weights",
    ),
    Mutation(
        "weights: those of data in memory are not relative to their mean",
        "_core/batches",
        "known = (known / known.mean()).astype(",
        "known = known.astype(",
        "weights",
    ),
    Mutation(
        "weights: chains count fully where a batch counts little",
        "_ebm/phases",
        "model = model._replace(weights=jnp.mean(jnp.asarray(data.weights, float)))",
        "pass",
        "weights",
    ),
    Mutation(
        "weights: a history of means by rows",
        "_core/batches",
        'return batch_size_of("batch", batch) if weights is None else jnp.sum(jnp.asarray(weights, float))',
        'return batch_size_of("batch", batch)',
        "weights",
    ),
    Mutation(
        "weights: metrics and starts forget them",
        "_ebm/domain",
        "    if weights is None:\n        return jnp.mean(x, axis=0)",
        "    if True:\n        return jnp.mean(x, axis=0)",
        "domains",
    ),
    Mutation(
        "units: weights of the Gaussian start in units of 1",
        "rbm/machine",
        "matrix = 0.01 / deviation *",
        "matrix = 0.01 *",
        "domains",
    ),
    Mutation(
        "units: hidden units of the Gaussian start see the distance from 0",
        "rbm/machine",
        'hidden = hidden | {"loc": hidden["loc"] - field}',
        "pass",
        "domains",
    ),
    Mutation(
        "units: a constant column by an exact 0",
        "_ebm/domain",
        "deviation <= 4 * limits.eps * largest",
        "deviation <= 0",
        "domains",
    ),
    Mutation(
        "domain: negative numbers pass as binary",
        "_ebm/domain",
        "return x.dtype == bool or (x.min() >= 0) & (x.max() <= 1)",
        "return x.dtype == bool or x.max() <= 1",
        "domains",
    ),
    Mutation(
        "domain: grey values are flipped",
        "_ebm/metrics",
        "        check_binary(name, v)\n",
        "        pass\n",
        "domains",
    ),
    Mutation(
        "complement: log-odds are clipped on one side only",
        "rbm/units",
        "jnp.clip(_means(data), _SMALLEST, 1 - _SMALLEST)",
        "jnp.clip(_means(data), 4e4 * _SMALLEST, 1)",
        "domains",
    ),
    Mutation(
        "half precision: energies and draws in half",
        "rbm/machine",
        "return x if (wide := moment_dtype(dtype)) == dtype else jnp.asarray(x, wide)",
        "return x",
        "domains",
    ),
    Mutation(
        "half precision: a path that rounds at each inverse temperature",
        "_ebm/annealing",
        "a, b = (jnp.asarray(x, moment_dtype(jnp.result_type(x))) for x in (a, b))",
        "a, b = jnp.asarray(a), jnp.asarray(b)",
        "domains",
    ),
    Mutation(
        "ending: lost chains are not looked at",
        "_train/epochs",
        "good = all_finite(state.params) & ~is_lost(result.state, state, statistics)",
        "good = all_finite(state.params)",
        "endings",
    ),
    Mutation(
        "tracing: only arguments are asked",
        "_train/fit",
        "return get_opaque_trace_state() != untraced",
        "return False",
        "endings",
    ),
    Mutation(
        "missing copy: a packed leaf on its own is the caller's",
        "_optim/packing",
        "            return _own(together[0])",
        "            return jnp.asarray(together[0])",
        "copies",
    ),
    Mutation(
        "eps of 0: 0 / 0",
        "_core/trees",
        "return jnp.where(v == 0, 1, v)",
        "return v",
        "endings",
    ),
    Mutation(
        "accumulated batches count the same whatever their rows",
        "_optim/wrappers",
        "n = jnp.asarray(1 if rows is None else rows, jnp.float32)",
        "n = jnp.ones((), jnp.float32)",
        "weights",
    ),
    # --- averages ---
    Mutation(
        "average: it has the weight of the previous update",
        "_optim/averaging",
        "return 1 / (1 + jnp.asarray(self.share, float) * (t - 1))",
        "return 1 / (1 + jnp.asarray(self.share, float) * t)",
        "averaging",
    ),
    Mutation(
        "average: metrics see the last parameters",
        "_train/epochs",
        "state = state._replace(params=watched_parameters(*state[:2]))",
        "pass",
        "averaging",
    ),
    Mutation(
        "average: the tracker follows the last parameters",
        "_ebm/tracking",
        "new = watched_parameters(apply_updates(params, updates), earlier)",
        "new = apply_updates(params, updates)",
        "averaging",
    ),
]


def copy_to(folder):
    """What the tests need, without what earlier runs left."""
    left = (".git", ".venv", ".ci", ".*_cache", ".hypothesis", "_build", "_examples", "gallery", "__pycache__", "dist")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left))


def mutate(folder, mutation):
    path = folder / "paysage_jax" / f"{mutation.module}.py"
    source = path.read_text()
    if source.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.name}: {mutation.old!r} occurs {source.count(mutation.old)} times in {path.name}")
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
