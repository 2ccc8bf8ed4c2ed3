"""Train a Boltzmann machine of paysage 0.2.1 with paysage's optimizers and with `paysage_jax.paysage_0_2`.

In a separate environment with Python 3.11 (`--no-deps` skips packages that paysage lists but does not need):

    pip install --no-deps paysage==0.2.1
    pip install numexpr tables pandas cytoolz scipy matplotlib seaborn scikit-learn jax
    pip install --no-deps -e .
    python -W ignore benchmarks/against_paysage_0_2.py

trains on scikit-learn's digits with paysage's `fit.SGD` and persistent contrastive divergence, from the same seeds with
both, and prints |ours - theirs| / |theirs| of all parameters together. A model of 16 hidden units is updated in NumPy,
a model of 256 in JAX. The other columns, also relative to |theirs|, are the effect in paysage of a step size larger by
2e-7, about one rounding error, and the distance of the parameters from their start. As soon as rounding changes one
sampled unit, two runs diverge, with any optimizer.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

STEPSIZES = {"Gradient": 0.5, "Momentum": 0.5, "RMSProp": 0.01, "ADAM": 0.01}


def digits() -> np.ndarray:
    """scikit-learn's digits as rows of 0 and 1: a pixel of at least half the largest value is 1."""
    from sklearn.datasets import load_digits

    return (load_digits(return_X_y=True)[0] >= 8).astype(np.float32)


def trained(optimizers: Any, schedules: Any, name: str, *, hidden: int, seed: int, epochs: int, factor: float = 1.0):
    """All parameters after training, in one vector; `factor` multiplies the step size."""
    import paysage as ps  # pyright: ignore[reportMissingImports]

    ps.backends.set_seed(seed)
    data = ps.batch.in_memory_batch(digits(), 50, train_fraction=0.9)
    model = ps.models.BoltzmannMachine([ps.layers.BernoulliLayer(64), ps.layers.BernoulliLayer(hidden)])
    model.initialize(data, method="hinton")
    stepsize = schedules.PowerLawDecay(initial=factor * STEPSIZES[name], coefficient=10.0)
    optimizer = getattr(optimizers, name)(stepsize=stepsize)
    ps.fit.SGD(model, data).train(optimizer, epochs, method=ps.fit.pcd, mcsteps=1, verbose=False)
    parts = [layer.get_params()[0] for layer in model.layers] + [model.connections[0].weights.params]
    return np.concatenate([np.ravel(x) for part in parts for x in part])


def main() -> None:
    """Train with every optimizer, in both sizes and from every seed, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    import paysage  # pyright: ignore[reportMissingImports]

    from paysage_jax import paysage_0_2

    theirs, ours = (paysage.optimizers, paysage.schedules), (paysage_0_2.optimizers, paysage_0_2.schedules)
    print(f"relative differences after {options.epochs} epochs, the largest of {options.seeds} seeds")
    print(f"{'':10}{'hidden':>8}{'ours - theirs':>16}{'2e-7 more':>12}{'distance':>12}")
    for hidden in (16, 256):
        for name in STEPSIZES:
            rows = []
            for seed in range(options.seeds):
                case = {"hidden": hidden, "seed": seed}
                reference = trained(*theirs, name, epochs=options.epochs, **case)
                others = [
                    trained(*ours, name, epochs=options.epochs, **case),
                    trained(*theirs, name, epochs=options.epochs, factor=1 + 2e-7, **case),
                    trained(*theirs, name, epochs=0, **case),
                ]
                rows.append([np.linalg.norm(x - reference) / np.linalg.norm(reference) for x in others])
            difference, control, way = np.max(rows, axis=0)
            print(f"{name:10}{hidden:8}{difference:16.1e}{control:12.1e}{way:12.2f}")


if __name__ == "__main__":
    main()
