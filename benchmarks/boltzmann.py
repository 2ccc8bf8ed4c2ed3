"""Epochs of a restricted Boltzmann machine: `fit`, NumPy, scikit-learn, and a loop over a jitted optax step."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj
from paysage_jax import rbm

from .measure import PAUSE, Result, compare
from .peers import NumpyAdam, Products, on_cpu, optax, sigmoid, sklearn_networks

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import digits

RATE = 0.005


class Runs:
    """Whole training runs from the same initial parameters; `train()` returns the parameters."""

    def __init__(self, train):
        self.train = train

    def __call__(self, count):
        for _ in range(count):
            self.params = jax.block_until_ready(self.train())


def epochs_of_training(seconds: float) -> Iterator[Result]:
    """Contrastive divergence (CD-1) with Adam; scikit-learn uses persistent chains and plain gradient steps."""
    estimator = pj.contrastive_divergence(rbm.RBM())
    for name, data, hidden, epochs in (("digits", digits.load().train, 64, 30), ("patterns", patterns(), 500, 5)):
        start = rbm.RBM().init(jnp.array(data), hidden, jax.random.key(0))
        for batch_size in (50, 100):
            run = (start, data, batch_size, epochs)
            mine = {"fit": Runs(partial(_fit, estimator, *run))}
            others: dict[str, Any] = {
                "numpy": Runs(partial(_numpy, *run)) if on_cpu() else None,
                "optax": Runs(_optax(estimator, *run)) if optax else None,
                "scikit-learn": Runs(partial(_sklearn, *run)) if sklearn_networks and on_cpu() else None,
            }
            title = f"RBM, an epoch: {name}, {data.shape[1]} × {hidden}, batches of {batch_size}"
            steps = epochs * -(-len(data) // batch_size)
            floor = {"products": Products(data.shape[1], hidden, [batch_size] * 2, [batch_size], each=steps)}
            result = compare(title, mine, others | floor, seconds, each=epochs, pause=PAUSE)
            check_learned_alike(data, {n: v.params for n, v in (mine | others).items() if v and n != "scikit-learn"})
            yield result


def patterns(rows=1000, pixels=784, patterns=20, flipped=0.1):
    """Random binary rows with structure to learn: each is one of a few random patterns with some pixels flipped."""
    random = np.random.default_rng(0)
    clean = (random.random((patterns, pixels)) < 0.5)[random.integers(patterns, size=rows)]
    return (clean ^ (random.random(clean.shape) < flipped)).astype(np.float32)


def check_learned_alike(data, trained):
    """Raise AssertionError unless all reconstruct the data about equally well (their random numbers differ)."""
    errors = {}
    for name, params in trained.items():
        b, c, W = map(np.asarray, jax.tree.leaves(params))
        errors[name] = float(np.mean(np.abs(data - sigmoid(sigmoid(data @ W + c) @ W.T + b))))
    if max(errors.values()) > 1.05 * min(errors.values()):
        raise AssertionError(f"the machines did not learn equally well; mean reconstruction errors: {errors}")


def _fit(estimator, start, data, batch_size, epochs):
    key = jax.random.key(0)
    return pj.fit(start, pj.adam(RATE), estimator, data, epochs=epochs, batch_size=batch_size, key=key).params


def _optax(estimator, start, data, batch_size, epochs):
    optimizer, data_size, data = optax.adam(RATE), len(data), jnp.array(data)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, data, rows, key, number):
        gradient, _, _ = estimator.estimate(params, data[rows], (), jax.random.fold_in(key, number))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def train():
        random, key = np.random.default_rng(0), jax.random.key(0)
        params = jax.tree.map(jnp.copy, start)
        state = optimizer.init(params)
        number = 0
        for _ in range(epochs):
            for rows in random.permutation(data_size).astype(np.int32).reshape(-1, batch_size):
                params, state = step(params, state, data, rows, key, np.int32(number))
                number += 1
        return params

    return train


def _numpy(start, data, batch_size, epochs):
    random = np.random.default_rng(0)

    def draw(mean):
        return (random.random(mean.shape, np.float32) < mean).astype(np.float32)

    leaves = [np.array(leaf) for leaf in jax.tree.leaves(start)]
    db, dc, dW = gradient = [np.empty_like(leaf) for leaf in leaves]
    adam = NumpyAdam(leaves, gradient, RATE)
    b, c, W = adam.params
    for _ in range(epochs):
        for rows in random.permutation(len(data)).reshape(-1, batch_size):
            v_data = data[rows]
            h_data = sigmoid(v_data @ W + c)
            v_model = draw(sigmoid(draw(h_data) @ W.T + b))
            h_model = sigmoid(v_model @ W + c)
            np.subtract(v_model.mean(axis=0), v_data.mean(axis=0), out=db)
            np.subtract(h_model.mean(axis=0), h_data.mean(axis=0), out=dc)
            np.matmul(v_model.T, h_model, out=dW)
            dW -= v_data.T @ h_data
            dW /= batch_size
            adam(1)
    return as_tree(b, c, W)


def as_tree(b, c, W):
    """The parameters in paysage's structure."""
    return {"layers": [{"loc": b}, {"loc": c}], "weights": [{"matrix": W}]}


def _sklearn(start, data, batch_size, epochs):
    model = sklearn_networks.BernoulliRBM(len(start["layers"][1]["loc"]), batch_size=batch_size, n_iter=epochs)
    return model.fit(data).components_
