"""How the time and memory of a step grow with the numbers of hidden units, chains, rows and transitions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj
from paysage_jax import rbm

from .measure import Result, compare
from .peers import Products

VISIBLE = 784
USUAL = {"hidden units": 500, "chains": 100, "rows": 100, "transitions": 1}
SIZES = {
    "hidden units": (16, 64, 256, 1024, 4096),
    "chains": (10, 100, 1000, 10_000, 100_000),
    "rows": (10, 100, 1000, 10_000, 100_000),
    "transitions": (1, 3, 10, 30, 100),
}


class Steps:
    """Steps of PCD with SGD on one batch, and the memory that the compiler plans for them."""

    def __init__(self, hidden: int, chains: int, rows: int, transitions: int) -> None:
        random, self.key = np.random.default_rng(0), jax.random.key(0)
        self.batch = jnp.array((random.random((rows, VISIBLE)) < 0.3).astype(np.float32))
        machine, optimizer = rbm.RBM(), pj.sgd(0.01)
        estimator = pj.persistent_contrastive_divergence(machine, num_chains=chains, steps=transitions)
        params = machine.init(self.batch, hidden, self.key)
        self.state = pj.TrainState(params, optimizer.init(params), estimator.init(params, self.batch, self.key))
        self.holds = sum(x.nbytes for x in jax.tree.leaves((params, self.state.estimator_state, self.batch)))
        step = pj.train_step(estimator, optimizer)

        # Discard the statistics, as `fit` does: they include the gradients of both phases.
        def state_after(state: pj.TrainState, batch: jax.Array, key: jax.Array) -> pj.TrainState:
            return step(state, batch, key)[0]

        self.step: Any = jax.jit(state_after, donate_argnums=0).lower(self.state, self.batch, self.key).compile()

    @property
    def memory(self) -> int:
        """The peak memory in bytes. XLA plans it at compile time, so it is the same in every run."""
        memory = self.step.memory_analysis()
        used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return used - memory.alias_size_in_bytes

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self.state = self.step(self.state, self.batch, self.key)
        jax.block_until_ready(self.state)


def scaling(seconds: float) -> Iterator[Result]:
    """A step of PCD with SGD over its matrix products, and its memory, as units, chains, rows and transitions grow."""
    for name, sizes in SIZES.items():
        for size in sizes:
            hidden, chains, rows, transitions = (USUAL | {name: size}).values()
            step = Steps(hidden, chains, rows, transitions)
            floor = Products(VISIBLE, hidden, [rows] + [chains] * (transitions + 1), [chains] * transitions)
            result = compare(f"{size:,} {name}", {"step": step}, {"products": floor}, seconds)
            megabytes, times = step.memory / 1e6, step.memory / step.holds
            result.figures.update({"memory (MB)": megabytes, "over parameters, batch and chains": times})
            yield result


def draw(path: Path, title: str, results: Mapping[str, list[Result]]) -> None:
    """Plot the times of steps and matrix products, and the memory beside parameters, batch and chains, for SIZES."""
    import matplotlib.pyplot as plt

    usual = ", ".join(f"{size} {name if size > 1 else name[:-1]}" for name, size in USUAL.items())
    figure, panels = plt.subplots(2, 4, figsize=(15, 7), layout="constrained", sharex="col", sharey="row")
    figure.suptitle(f"{title}\na step of PCD with SGD, {VISIBLE} visible units; not varied: {usual}")
    found = iter(results["scaling"])
    beside = {"textcoords": "offset points", "ha": "right"}
    for (above, below), (name, sizes) in zip(panels.T, SIZES.items(), strict=True):
        of_sizes = [next(found) for _ in sizes]
        for variant, color in (("products", "0.5"), ("step", "C0")):
            low, median, high = np.array([result.seconds[variant] for result in of_sizes]).T * 1e3
            above.fill_between(sizes, low, high, color=color, alpha=0.2)
            above.plot(sizes, median, "o-", color=color, label="its matrix products alone" if color != "C0" else "step")
        for size, result in zip(sizes, of_sizes, strict=True):
            over = f"{result.ratios['step']['products'].median:.2g}"
            above.annotate(over, (size, result.seconds["step"].median * 1e3), (-4, 7), **beside)
        memory, times = (np.array([list(result.figures.values())[i] for result in of_sizes]) for i in (0, 1))
        below.plot(sizes, memory, "o-", color="C0", label="memory of a step")
        below.plot(sizes, memory / times, "o-", color="0.5", label="parameters, batch and chains")
        for size, y, over in zip(sizes, memory, times, strict=True):
            below.annotate(f"{over:.2g}", (size, y), (-4, 7), **beside)
        above.set(xscale="log", yscale="log")
        below.set(xscale="log", yscale="log", xlabel=name)
        for axes in (above, below):
            axes.margins(0.15)  # room for the numbers
    panels[0, 0].set_ylabel("milliseconds (numbers: step / products)")
    panels[1, 0].set_ylabel("megabytes (numbers: blue / grey)")
    for row in panels:
        row[0].legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
