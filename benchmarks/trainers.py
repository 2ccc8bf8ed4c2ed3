"""Epochs of centred persistent contrastive divergence: `fit`, torch's rbms, scikit-learn and NumPy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj
from paysage_jax import rbm

from .boltzmann import Runs, as_tree, check_learned_alike, patterns
from .measure import PAUSE, Result, compare
from .peers import Products, on_cpu, rbms_model, sigmoid, sklearn_networks, torch, train_rbms

HIDDEN, BATCH, EPOCHS = 500, 100, 2
RATE = 0.02  # the length of every step: rbms divides the gradient by its norm
TINY = 1e-6
PLAIN_RATE = 0.01


def trainers(seconds: float) -> Iterator[Result]:
    """An epoch of PCD-1 along the gradient, and of centred PCD-1 and PCD-10 along it with norm 1, as torch's rbms."""
    data = patterns(rows=6000)
    start = rbm.RBM().init(jnp.array(data), HIDDEN, jax.random.key(0))
    steps = len(data) // BATCH
    for sweeps, centred in ((1, False), (1, True), (10, True)):
        run = (start, data, sweeps, centred)
        variants = {
            "rbms": Runs(partial(_rbms, start, data, sweeps)) if centred and rbms_model and on_cpu() else None,
            "numpy": Runs(partial(_numpy, *run)) if on_cpu() else None,
        }
        # Its gradient is neither centred nor divided by its norm, and its chains do one sweep.
        plain = Runs(partial(_sklearn, start, data)) if sweeps == 1 and sklearn_networks and on_cpu() else None
        floor = Products(data.shape[1], HIDDEN, [BATCH] * (sweeps + 2), [BATCH] * sweeps, each=EPOCHS * steps)
        kind = "centred, norm 1, " if centred else ""
        title = f"PCD-{sweeps}, {kind}an epoch of {steps} steps, 784 × {HIDDEN}, batches of {BATCH}"
        mine: dict[str, Any] = {"fit": Runs(partial(_fit, *run))}
        others = variants | {"scikit-learn": plain, "products": floor}
        result = compare(title, mine, others, seconds, each=EPOCHS, pause=PAUSE)
        check_learned_alike(data, {name: v.params for name, v in (mine | variants).items() if v})
        yield result


def _fit(start, data, sweeps, centred):
    optimizer = pj.chain(pj.center(decay=0.0), pj.clip_by_global_norm(TINY), pj.sgd(RATE / TINY))
    estimator = pj.persistent_contrastive_divergence(rbm.RBM(), steps=sweeps)
    options = {"epochs": EPOCHS, "batch_size": BATCH, "key": jax.random.key(0)}
    return pj.fit(start, optimizer if centred else pj.sgd(PLAIN_RATE), estimator, data, **options).params


def _rbms(start, data, sweeps):
    b, c, W = (torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(start))
    params = rbms_model.BBRBM(weight_matrix=W, vbias=b, hbias=c)
    train_rbms(params, data, BATCH, EPOCHS * (len(data) // BATCH), sweeps, RATE)
    return as_tree(params.vbias.numpy(), params.hbias.numpy(), params.weight_matrix.numpy())


def _numpy(start, data, sweeps, centred):
    random = np.random.default_rng(0)

    def draw(mean):
        return (random.random(mean.shape, np.float32) < mean).astype(np.float32)

    b, c, W = (np.array(leaf) for leaf in jax.tree.leaves(start))
    v_model = data[:BATCH]
    for _ in range(EPOCHS):
        for rows in random.permutation(len(data)).reshape(-1, BATCH):
            v_data = data[rows]
            h_data = sigmoid(v_data @ W + c)
            for _ in range(sweeps):
                v_model = draw(sigmoid(draw(sigmoid(v_model @ W + c)) @ W.T + b))
            h_model = sigmoid(v_model @ W + c)
            if not centred:
                W += PLAIN_RATE / BATCH * (v_data.T @ h_data - v_model.T @ h_model)
                b += PLAIN_RATE * (v_data.mean(axis=0) - v_model.mean(axis=0))
                c += PLAIN_RATE * (h_data.mean(axis=0) - h_model.mean(axis=0))
                continue
            v_mean, h_mean = v_data.mean(axis=0), h_data.mean(axis=0)
            dW = ((v_data - v_mean).T @ (h_data - h_mean) - (v_model - v_mean).T @ (h_model - h_mean)) / BATCH
            db = v_mean - v_model.mean(axis=0) - dW @ h_mean
            dc = h_mean - h_model.mean(axis=0) - dW.T @ v_mean
            length = RATE / np.sqrt(np.sum(dW**2) + np.sum(db**2) + np.sum(dc**2))
            for parameter, direction in ((b, db), (c, dc), (W, dW)):
                parameter += length * direction
    return as_tree(b, c, W)


def _sklearn(start, data):
    model = sklearn_networks.BernoulliRBM(HIDDEN, batch_size=BATCH, n_iter=EPOCHS)
    return model.fit(data).components_
