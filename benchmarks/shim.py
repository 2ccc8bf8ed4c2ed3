"""`update` of the class ADAM on a NumPy model, compared with the original's formulas in NumPy."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj

from .measure import PAUSE, Quartiles, Result, check_same_work, compare
from .peers import NumpyAdam2017, sigmoid

# Microseconds for a batch of 50, by (visible, hidden) units. Recorded once on paysage (2017, numpy backend, one
# thread), on a machine of two cores: the arithmetic of its ADAM alone, and a whole `update` with the model's gradient.
# Then the yardstick for other machines, timed in the same rounds here: the arithmetic of NumpyAdam2017 on such a
# machine (AMD EPYC at 2.45 GHz).
PAYSAGE = {(64, 16): (136, 253, 36), (64, 64): (151, 326, 42), (784, 500): (3130, 6173, 900)}


class Model:
    """A Bernoulli RBM as paysage's optimizers see it: a gradient of two phases, and an update in place."""

    def __init__(self, visible, hidden):
        self.b, self.c = np.zeros(visible, np.float32), np.zeros(hidden, np.float32)
        self.W = np.float32(0.01) * np.random.default_rng(0).standard_normal((visible, hidden), np.float32)

    def gradient(self, v_data, v_model):
        h_data, h_model = sigmoid(v_data @ self.W + self.c), sigmoid(v_model @ self.W + self.c)
        return {
            "layers": [
                {"loc": v_model.mean(axis=0) - v_data.mean(axis=0)},
                {"loc": h_model.mean(axis=0) - h_data.mean(axis=0)},
            ],
            "weights": [{"matrix": v_model.T @ h_model / len(v_model) - v_data.T @ h_data / len(v_data)}],
        }

    def parameter_update(self, delta):
        visible, hidden = delta["layers"]
        self.b -= visible["loc"]
        self.c -= hidden["loc"]
        self.W -= delta["weights"][0]["matrix"]


class Idle:
    """A model with a fixed gradient that ignores updates."""

    def __init__(self, gradient):
        self.constant = gradient

    def gradient(self, v_data, v_model):
        return self.constant

    def parameter_update(self, delta):
        pass


class Updates:
    """Repeated calls of `optimizer.update`."""

    def __init__(self, optimizer, model, v_data, v_model):
        self.optimizer, self.arguments = optimizer, (model, v_data, v_model, 3)

    def __call__(self, count):
        for _ in range(count):
            self.optimizer.update(*self.arguments)

    def values(self):
        return jax.tree.leaves(self.optimizer.delta)


def update(seconds: float) -> Iterator[Result]:
    """`update` of the class ADAM, the optimizer's part alone, and the number of compilations."""
    random = np.random.default_rng(0)
    for (visible, hidden), (*recorded, numpy_there) in PAYSAGE.items():
        data = [(random.random((50, visible)) < 0.5).astype(np.float32) for _ in range(2)]
        gradient = Model(visible, hidden).gradient(*data)
        models = {"arithmetic alone": partial(Idle, gradient), "with the gradient": partial(Model, visible, hidden)}
        for (name, model), there in zip(models.items(), recorded, strict=True):
            mine = {"shim": Updates(pj.ADAM(None), model(), *data)}
            others = {"numpy": Updates(NumpyAdam2017(), model(), *data)}
            check_same_work([np.zeros_like(x) for x in jax.tree.leaves(gradient)], mine | others)
            others["yardstick"] = Updates(NumpyAdam2017(), Idle(gradient), *data)
            result = compare(f"ADAM.update, {name}: {visible} × {hidden}", mine, others, seconds, pause=PAUSE)
            over = result.ratios["shim"]
            paysage = Quartiles(*(ratio * numpy_there / there for ratio in over["yardstick"]))
            result.ratios = {name: {} for name in result.ratios}
            result.ratios["shim"] = {"numpy": over["numpy"], "paysage": paysage}
            yield result
    compiles = {"programs compiled over ten kinds of epoch": float(compiles_over_kinds_of_epoch())}
    yield Result("ADAM.update", {}, {}, rounds=0, figures=compiles)


def compiles_over_kinds_of_epoch():
    """The number of compiled programs for epochs of ten types of Python, NumPy and JAX."""
    kinds = (int, float, np.int32, np.int64, np.float32, np.float64, np.array, jnp.int32, jnp.float32, jnp.array)
    epochs = [kind(number) for number, kind in enumerate(kinds)]
    optimizer, model = pj.ADAM(None), Idle({"layers": [{"loc": jnp.ones(3)}], "weights": []})  # not in numpy: jitted
    optimizer.update(model, None, None, 0)
    compiled = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(note)
    for epoch in epochs:
        optimizer.update(model, None, None, epoch)
    return 1 + len(compiled)
