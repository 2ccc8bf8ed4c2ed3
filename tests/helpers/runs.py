"""Shared by tests of runs: a small regression and a Boltzmann machine, from memory or from a loader."""

import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paysage_jax import (
    Outcome,
    adam,
    average_parameters,
    center,
    chain,
    early_stopping,
    fit,
    loss_gradient,
    per_epoch,
    persistent_contrastive_divergence,
    power_law_decay,
    rbm,
    skip_nonfinite,
    track_convergence,
)
from paysage_jax.extend import Estimator
from tests.helpers import problems

KEY = jax.random.key(0)
HUNG = 3600  # seconds after which a program hangs; on a machine under load it may take minutes

# Squares, on rows of which the last batch holds only three: no chance in it, and soon compiled.
ROWS, BATCH = 23, 5
rng = np.random.default_rng(0)
DATA = {"x": rng.normal(size=(ROWS, 3)).astype(np.float32), "y": rng.normal(size=ROWS).astype(np.float32)}
PARAMS = {"w": jnp.zeros(3), "b": jnp.ones(1)}


def squares(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


regression = loss_gradient(squares)


def batches_of(data):
    """The batches in the order of the data."""
    rows = len(jax.tree.leaves(data)[0])
    return [jax.tree.map(lambda x, i=i: x[i : i + BATCH], data) for i in range(0, rows, BATCH)]


KINDS = {"in memory": lambda data: (data, {"batch_size": BATCH}), "iterable": lambda data: (batches_of(data), {})}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())

assert_trees_close = partial(problems.assert_trees_close, atol=1e-5)


def assert_identical(actual, expected):
    """Two results, bit for bit and dtype for dtype."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_equal(actual, expected)


def how(result):
    """(epochs done, outcome)."""
    return int(result.epochs_done), Outcome(int(result.outcome))


@contextmanager
def compilations():
    """A list that grows with every program that is compiled."""
    programs = []

    def listener(name, seconds, **extra):
        if name == "/jax/core/compile/backend_compile_duration":
            programs.append(extra.get("fun_name", name))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def python(code, *arguments, **environment):
    """The output of a new Python process with the same paths."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_draw(state, key):
    return jax.random.uniform(key)


class Poisoned(Estimator):
    """Another estimator, but with a NaN gradient at step number `at`; its state is (steps, inner state)."""

    estimator: Estimator
    at: int

    def init(self, params, batch, key):
        return jnp.int32(0), self.estimator.init(params, batch, key)

    def estimate(self, params, batch, estimator_state, key):
        step, estimator_state = estimator_state
        gradient, estimator_state, statistics = self.estimator.estimate(params, batch, estimator_state, key)
        gradient = jax.tree.map(lambda g: jnp.where(step == self.at, jnp.nan, g), gradient)
        return gradient, (step + 1, estimator_state), statistics


def largest(state, key):
    return jnp.max(jnp.abs(state.params["w"]))


def regress(kind, *, epochs=8, rate: Any = 0.05, tolerance: Any = 0.0, wait=1, nan_at: Any = -1, **more):
    """One configuration for many tests, which share two programs unless `more` contains other functions."""
    data, size = kind(DATA)
    options: dict[str, Any] = {
        "metrics": {"largest": largest, "draw": a_draw},
        "early_stopping": stopping(),
        "key": KEY,
    }
    return fit(
        PARAMS,
        chain(adam(rate), track_convergence(tolerance, patience=wait)),
        Poisoned(regression, nan_at),
        data,
        epochs=epochs,
        **(options | size | more),
    )


def stopping(patience: Any = 1000, min_delta: Any = 0.0):
    return early_stopping("loss", patience=patience, min_delta=min_delta)


# --- a Boltzmann machine, with chance in every part of the run ---------------------------------------

IMAGES = (rng.random((20, 6)) < 0.3).astype(np.float32)
MACHINE = {
    "layers": [{"loc": jnp.zeros(6)}, {"loc": jnp.zeros(2)}],
    "weights": [{"matrix": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)}],
}
pcd = persistent_contrastive_divergence(rbm.RBM(), num_chains=4)


def first_weight(state, key):
    return state.params["weights"][0]["matrix"][0, 0]


def train(data, options, *, params=MACHINE, epochs=4, key=KEY, learning_rate=0.1, tolerance=1e-9, nan_at=-1, **more):
    """One configuration for many tests, which share programs and differ in the number of epochs."""
    optimizer = skip_nonfinite(
        chain(
            center(0.9),
            adam(per_epoch(power_law_decay(learning_rate))),
            average_parameters(0.9),
            track_convergence(tolerance),
        )
    )
    metrics = {"weight": first_weight, "draw": a_draw}
    estimator = Poisoned(pcd, nan_at)
    return fit(params, optimizer, estimator, data, epochs=epochs, key=key, metrics=metrics, **options, **more)


# --- an epoch that takes longer than anybody waits ---------------------------------------------------


class Slow(Estimator):
    """The regression, but with a loop of so many iterations in every step after the first epoch."""

    turns: int

    def init(self, params, batch, key):
        return jnp.int32(0)

    def estimate(self, params, batch, estimator_state, key):
        gradient, _, statistics = regression.estimate(params, batch, (), key)
        turns = jnp.where(estimator_state < 5, 0, self.turns)
        turned = jax.lax.fori_loop(0, turns, lambda i, x: jnp.sin(x), jnp.float32(1))
        return jax.tree.map(lambda g: jnp.where(turned > 1, jnp.nan, g), gradient), estimator_state + 1, statistics


def regress_slowly(turns, **options):
    return fit(PARAMS, adam(0.1), Slow(turns), DATA, epochs=3, batch_size=BATCH, key=KEY, **options)
