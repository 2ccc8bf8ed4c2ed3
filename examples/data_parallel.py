"""One RBM on many devices: rows, chains and the optimizer's state are sharded, and one device gives the same results.

    python examples/data_parallel.py --devices 8
    python examples/launch.py --processes 2 examples/data_parallel.py --devices 2

Trains 784 x 500 units on generated patterns over all devices (`--devices` splits a CPU into that many). Prints where
arrays are placed and how much each device computes, stores and sends. With one process it trains again on the first
device alone, with the same number of shards, and plots both runs in the same axes.
"""

import os
import re
import time

import jax
import numpy as np
import shared
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import paysage_jax as pj

PIXELS, HIDDEN, ROWS, BATCH = 784, 500, 2400, 240


def patterns(seed, patterns=20, flipped=0.1):
    """Binary rows (ROWS, PIXELS), each one of a few random patterns with some pixels flipped."""
    random = np.random.default_rng(seed)
    clean = (random.random((patterns, PIXELS)) < 0.5)[random.integers(patterns, size=ROWS)]
    return (clean ^ (random.random(clean.shape) < flipped)).astype(np.float32)


def train(images, devices, shards, epochs, seed):
    """The result of `pj.fit` on a mesh of these devices, and a compiled step to look at."""
    rows = NamedSharding(jax.make_mesh((len(devices),), ("data",), devices=devices), PartitionSpec("data"))
    optimizer = pj.shard_state(pj.adam(0.002), rows)
    estimator = pj.persistent_contrastive_divergence(pj.rbm.RBM())
    start_key, fit_key = jax.random.split(jax.random.key(seed))
    result = pj.fit(
        pj.rbm.RBM().init(images, HIDDEN, start_key),
        optimizer,
        estimator,
        images,
        epochs=epochs,
        batch_size=BATCH,
        key=fit_key,
        sharding=rows,
        shards=shards,
        metrics={"validation": pj.pseudo_log_likelihood(pj.rbm.RBM(), patterns(seed)[:200])},
    )
    step = pj.train_step(estimator, optimizer)
    batch = jax.ShapeDtypeStruct((BATCH, PIXELS), np.float32, sharding=rows)
    key = jax.ShapeDtypeStruct((), fit_key.dtype, sharding=NamedSharding(rows.mesh, PartitionSpec()))
    return result, jax.jit(step).lower(result.state, batch, key).compile()


def describe(result, step):
    """Print where arrays are placed, and the work of a step on each device."""
    parts = {"parameters": result.params, "optimizer's state": result.optimizer_state, "chains": result.estimator_state}
    for name, tree in parts.items():
        leaves = jax.tree.leaves(tree)
        held = sum(x.addressable_shards[0].data.nbytes for x in leaves)
        specs = ", ".join(f"{x.shape} {x.sharding.spec}" for x in leaves if x.ndim > 1)
        print(f"{name}: {sum(x.nbytes for x in leaves) / 1e6:.2f} MB, {held / 1e6:.2f} MB on a device; {specs}")
    sent = re.findall(r"= .* (all-reduce|all-gather|reduce-scatter|all-to-all)\(", step.as_text())
    flops = step.cost_analysis()["flops"] / 1e6
    print(f"a step on a device: {flops:.0f} Mflop; between devices: {', '.join(sorted(set(sent))) or 'nothing'}")


def draw(curves):
    """Plot the pseudo-log-likelihoods of all runs, and their differences from the first."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    (first, reference), *others = curves.items()
    left.plot(reference["epoch"], reference["validation"], color="0.7", linewidth=6, label=first)
    for name, history in others:
        left.plot(history["epoch"], history["validation"], color="C0", label=name)
        difference = np.abs(history["validation"] / reference["validation"] - 1)
        right.semilogy(history["epoch"], np.maximum(difference, 1e-9), ".-", color="C0", label=f"{name}: {first}")
    left.set(xlabel="epoch", ylabel="pseudo-log-likelihood (nats)", title="The same run")
    right.set(xlabel="epoch", title="Relative difference: rounding, then other samples", ylim=(1e-9, 1))
    left.legend(frameon=False)
    return figure


def main(argv=None):
    """Train on all devices, and with one process also on the first device alone."""
    parser = shared.make_parser(__doc__, epochs=10, picture="data_parallel.png")
    parser.add_argument("--devices", type=int, help="of the CPU, for each process (default: all devices)")
    options = shared.parse(parser, argv, devices=(1, 64))
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if rank := os.environ.get("RANK"):  # under a scheduler that JAX supports, initialize() needs no arguments
        processes = int(os.environ["WORLD_SIZE"])
        jax.distributed.initialize(num_processes=processes, process_id=int(rank), heartbeat_timeout_seconds=30)
    images, curves, devices = patterns(options.seed), {}, jax.devices()
    alone = jax.process_count() == 1
    for used in ([devices[:1]] if alone and len(devices) > 1 else []) + [devices]:
        began = time.perf_counter()
        result, step = train(images, used, len(devices), options.epochs, options.seed)
        if jax.process_index() == 0:
            name = f"{len(used)} device{'s' * (len(used) > 1)}"
            print(f"\n{name}, {options.epochs} epochs: {time.perf_counter() - began:.1f} s, with compilation")
            describe(result, step)
            curves[name] = result.history
    if jax.process_index() == 0:
        shared.save(draw(curves), options.output)


if __name__ == "__main__":
    main()
