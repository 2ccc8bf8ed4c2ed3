"""The cost of metrics, early stopping and checkpoints, compared with a run without them."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import paysage_jax as pj
from paysage_jax.extend import Estimator

from .boltzmann import patterns
from .measure import Result, compare

HIDDEN, BATCH, EPOCHS, RATE = 500, 100, 2, 0.05


class Silent(Estimator):
    """Another estimator, without its statistics."""

    estimator: Estimator

    def init(self, params, batch, key):
        return self.estimator.init(params, batch, key)

    def estimate(self, params, batch, estimator_state, key):
        gradient, estimator_state, _ = self.estimator.estimate(params, batch, estimator_state, key)
        return gradient, estimator_state, None


class Epochs:
    """Runs of EPOCHS epochs, each a call of `fit` with a measurement after every epoch."""

    def __init__(self, estimator, start, data, checkpoints=False, optimizer=None, **options):
        self.estimator, self.start, self.data, self.options = estimator, start, data, options
        self.checkpoints, self.optimizer = checkpoints, optimizer or pj.sgd(RATE)

    def __call__(self, count):
        for _ in range(count):
            folder: dict[str, Any] = {"checkpoints": tempfile.mkdtemp()} if self.checkpoints else {}
            options = {"epochs": EPOCHS, "batch_size": BATCH, "key": jax.random.key(0)} | self.options | folder
            jax.block_until_ready(pj.fit(self.start, self.optimizer, self.estimator, self.data, **options).params)
            for path in folder.values():
                shutil.rmtree(path)


def reporting(seconds: float) -> Iterator[Result]:
    """An epoch of PCD with statistics, a callback, early stopping, checkpoints, an average, log Z tracked."""
    model = pj.rbm.RBM()
    estimator = pj.persistent_contrastive_divergence(model)
    data = jnp.array(patterns(rows=6000))
    start = model.init(data, HIDDEN, jax.random.key(0))
    run = partial(Epochs, start=start, data=data)
    metrics = {"size": lambda state, key: jnp.sum(state.params["layers"][0]["loc"] ** 2)}
    stopping = pj.early_stopping("size", patience=10**6)
    tracker = partial(pj.track_log_partition, model, pj.AnnealedEstimate(0.0, data[:BATCH]), jax.random.key(1))
    averaged = pj.chain(pj.sgd(RATE), pj.average_parameters())
    mine = {
        "statistics": run(estimator),
        "callback": run(Silent(estimator), callback=lambda result: None),
        "early stopping": run(Silent(estimator), metrics=metrics, early_stopping=stopping),
        "all three": run(estimator, metrics=metrics, early_stopping=stopping, callback=lambda result: None),
        "average": run(Silent(estimator), optimizer=averaged),
        "checkpoints": run(Silent(estimator), checkpoints=True),
        "log Z": run(Silent(estimator), optimizer=pj.chain(pj.sgd(RATE), tracker())),
        "log Z, every 4th": run(Silent(estimator), optimizer=pj.chain(pj.sgd(RATE), tracker(every=4))),
    }
    title = f"an epoch of {len(data) // BATCH} steps, 784 × {HIDDEN}, batches of {BATCH}"
    yield compare(title, mine, {"bare": run(Silent(estimator))}, seconds, each=EPOCHS)

    few = data[:, :64]
    small = partial(Epochs, Silent(estimator), model.init(few, 16, jax.random.key(0)), few)
    title = f"the same, 64 × 16, batches of {BATCH}"
    yield compare(title, {"average": small(optimizer=averaged)}, {"bare": small()}, seconds, each=EPOCHS)
