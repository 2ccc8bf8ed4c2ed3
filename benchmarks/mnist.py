"""The log-likelihood of MNIST's test images after training without tracking, for one seed after the other.

    python -m benchmarks.mnist --data package/data

This trains with the optimizer of `examples/rbm_mnist.py`, which says where the files come from, and anneals in both
directions. One line for each seed, then means and standard deviations.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import paysage_jax as pj

from .versions import ROOT

sys.path.append(str(ROOT / "examples"))  # which are programs, not a package
import rbm_mnist as example


def trained(images, options, start_key, key):
    """The result of a run."""
    optimizer = example.make_optimizer(options.learning_rate, options.epochs, options.weight_decay)
    estimator = pj.persistent_contrastive_divergence(example.MODEL_OF_GREY, num_chains=options.chains)
    start = example.MODEL.init(images.train, options.hidden, start_key)
    sizes = {"epochs": options.epochs, "batch_size": example.BATCH}
    return jax.block_until_ready(pj.fit(start, optimizer, estimator, images.grey, key=key, **sizes))


def likelihoods(images, result, options, sample_key, key):
    """The log-likelihood of the test images by forward and by reverse annealing, and of training images by forward."""
    params = pj.averaged_parameters(result)
    chains = result.estimator_state[jnp.arange(options.annealed) % options.chains]
    samples = example.run_chains(params, chains, sample_key, 1000)
    both = example.bracket(params, images, samples, key, options.temperatures)
    forward, reverse = both["forward"].log_z, both["reverse"].log_z
    rows = (images.test, forward), (images.test, reverse), (images.train[: len(images.test)], forward)
    return [float(example.MODEL.log_likelihood(params, v, log_z)) for v, log_z in rows]


def main(argv=None):
    """Train and anneal for each seed, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist", description=__doc__)
    parser.add_argument("--data", required=True, help="the folder of MNIST's IDX files")
    parser.add_argument("--epochs", type=int, default=92)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--chains", type=int, default=100, help="persistent chains of the gradient")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-5)
    parser.add_argument("--annealed", type=int, default=200, help="chains of annealing")
    parser.add_argument("--temperatures", type=int, default=3000)
    options = parser.parse_args(argv)

    images, rows = example.load(options.data), []
    print("seed  training  forward  reverse  training images, forward")
    for seed in options.seeds:
        start_key, fit_key, sample_key, key = jax.random.split(jax.random.key(seed), 4)
        began = time.perf_counter()
        result = trained(images, options, start_key, fit_key)
        seconds = time.perf_counter() - began
        rows.append(likelihoods(images, result, options, sample_key, key))
        print("{:4}  {:6.0f} s  {:7.2f}  {:7.2f}  {:7.2f}".format(seed, seconds, *rows[-1]), flush=True)
    if len(rows) > 1:
        for name, x in zip(("forward", "reverse", "training images"), np.transpose(rows), strict=True):
            print(f"{name}: {x.mean():.2f} ± {x.std(ddof=1):.2f}")


if __name__ == "__main__":
    main()
