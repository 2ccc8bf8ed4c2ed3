"""Which form of an epoch is fastest on this device? Measured in turn, each in its own process.

    python -m benchmarks.variants

An epoch is 60 steps of PCD-1 with SGD at 784 × 500, batches of 100. The variants change what may cost time on a GPU:
the generator of random numbers, XLA's command buffers and loops, two matrix products where one is enough, and how many
machines train at once (their time is divided by their number). Flags for GPUs change nothing on a CPU.
"""

import argparse
import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj
from paysage_jax import rbm
from paysage_jax.extend import Estimator
from paysage_jax.states import LossStatistics

from .boltzmann import patterns
from .measure import PAUSE, SHORTEST, in_turn
from .peers import optax
from .report import heading, table
from .versions import ROOT, Worker, serve

ROWS, HIDDEN, BATCH, RATE = 6000, 500, 100, 0.01
MODEL = rbm.RBM()


class one_product(Estimator):
    """PCD-1 whose data and chains are one batch with weights 1 and -1, so each product of the gradient is one."""

    def init(self, params, batch, key):
        return batch

    def estimate(self, params, batch, estimator_state, key):
        chains = MODEL.transition(params, estimator_state, key)
        signs = jnp.repeat(jnp.array([1.0, -1.0]), len(batch), total_repeat_length=2 * len(batch)) / len(batch)
        states = jnp.concatenate([batch, chains])
        value, gradient = jax.value_and_grad(lambda params: signs @ MODEL.energy(params, states))(params)
        return gradient, chains, LossStatistics(value)


def fit(impl=None, estimator=None, machines=None):
    """Epochs of `fit`, of one machine or of several under `vmap`."""
    data = jnp.array(patterns(rows=ROWS))
    start = MODEL.init(data, HIDDEN, jax.random.key(0))
    estimator = estimator or pj.persistent_contrastive_divergence(MODEL)

    def run(rate, epochs):
        options = {"epochs": epochs, "batch_size": BATCH, "key": jax.random.key(0, impl=impl)}
        return pj.fit(start, pj.sgd(rate), estimator, data, **options).params

    if machines:
        run = jax.jit(jax.vmap(run, in_axes=(0, None)), static_argnums=1)
    rates = jnp.full(machines, RATE) if machines else RATE
    return lambda count: jax.block_until_ready(run(rates, count))


def loop():
    """A Python loop over a jitted step with optax."""
    data = jnp.array(patterns(rows=ROWS))
    params = MODEL.init(data, HIDDEN, jax.random.key(0))
    estimator, optimizer = pj.persistent_contrastive_divergence(MODEL), optax.sgd(RATE)
    carry = params, optimizer.init(params), estimator.init(params, data[:BATCH], jax.random.key(0))

    @partial(jax.jit, donate_argnums=0)
    def step(carry, rows, key, number):
        params, state, chains = carry
        gradient, chains, _ = estimator.estimate(params, data[rows], chains, jax.random.fold_in(key, number))
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, chains

    def train(count):
        nonlocal carry
        random, key = np.random.default_rng(0), jax.random.key(0)
        for _ in range(count):
            for number, rows in enumerate(random.permutation(ROWS).astype(np.int32).reshape(-1, BATCH)):
                carry = step(carry, rows, key, np.int32(number))
        jax.block_until_ready(carry)

    return train


BUFFERS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,WHILE,CONDITIONAL"
VARIANTS = {  # what makes the work, and XLA's flags
    "fit": (fit, ""),
    "optax, a loop": (loop, ""),
    "rbg keys": (partial(fit, impl="rbg"), ""),
    "unsafe_rbg keys": (partial(fit, impl="unsafe_rbg"), ""),
    "one product": (partial(fit, estimator=one_product()), ""),
    "no command buffers": (fit, "--xla_gpu_enable_command_buffer="),
    "buffers for loops": (fit, f"--xla_gpu_enable_command_buffer={BUFFERS} --xla_gpu_graph_min_graph_size=1"),
    "loops double-buffered": (fit, "--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"),
    "products by cuBLAS": (fit, "--xla_gpu_enable_triton_gemm=false"),
    "8 machines": (partial(fit, machines=8), ""),
    "64 machines": (partial(fit, machines=64), ""),
}


def worker(name):
    """A process of a variant."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {VARIANTS[name][1]}".strip()
    variables = {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Worker(ROOT, "-m", "benchmarks.variants", "--serve", name, variables=variables)


def main():
    """Measure the variants in turn, or serve one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="variant", help=f"some of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=120, help="for all of them together")
    parser.add_argument("--serve", metavar="VARIANT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(VARIANTS[options.serve][0]())
    if unknown := set(options.variants) - VARIANTS.keys():
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")

    print(heading(), end="\n\n", flush=True)
    timers = {}
    for name in dict.fromkeys(["fit", *(options.variants or VARIANTS)]):
        process, machines = worker(name), int(name.split()[0]) if name.endswith("machines") else 1
        count = max(1, round(SHORTEST / process(1)))

        def seconds(process=process, count=count, machines=machines):
            time.sleep(PAUSE)
            return process(count) / count / machines

        timers[name] = seconds
    title = f"PCD-1 with SGD, an epoch of {ROWS // BATCH} steps, 784 × {HIDDEN}, batches of {BATCH}"
    print(table(in_turn(title, timers, ["fit"], options.seconds)))


if __name__ == "__main__":
    main()
