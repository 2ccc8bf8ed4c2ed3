"""`python -m benchmarks.averages`: the gain from averaging parameters; digits, exact likelihoods, many seeds."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

import paysage_jax as pj
from paysage_jax._optim.transformation import find_states

from .log_z import BATCH, MODEL, digits

OPTIMIZERS = {
    "centred SGD": (lambda rate: pj.chain(pj.center(), pj.sgd(rate)), (0.3, 0.5, 1.0, 2.0, 3.0)),
    "SGD": (pj.sgd, (0.3, 0.5, 1.0)),
    "centred momentum": (lambda rate: pj.chain(pj.center(), pj.momentum(rate)), (0.03, 0.1, 0.2)),
    "momentum": (pj.momentum, (0.03, 0.1)),
    "RMSProp": (pj.rmsprop, (0.01, 0.02, 0.03)),
    "Adam": (pj.adam, (0.01, 0.02, 0.03)),
    "schedule-free SGD": (
        lambda rate: pj.chain(pj.center(), optax.contrib.schedule_free(optax.sgd(rate), rate, b1=0.9)),
        (2.0, 5.0, 10.0),
    ),
    "centred Adam": (lambda rate: pj.chain(pj.center(), pj.adam(rate)), (0.003, 0.01, 0.03)),
}


def falling(rate, epochs):
    """1 / (1 + epoch / 10)."""
    return pj.per_epoch(pj.power_law_decay(rate, 0.1))


def half(rate, epochs):
    """Constant for half of the run, then linearly to 0."""
    return pj.per_epoch(pj.linear_decay(rate, epochs, hold=0.5))


def linear(rate, epochs):
    """Linearly to 0."""
    return pj.per_epoch(pj.linear_decay(rate, epochs))


SCHEDULES = {"falling": falling, "constant": lambda rate, epochs: rate, "half": half, "linear": linear}


def exact(params, rows):
    """The log-likelihoods of some arrays of rows, in nats per row."""
    log_z = MODEL.log_partition(params)
    return jnp.stack([MODEL.log_likelihood(params, v, log_z) for v in rows])


def last_parameters(result):
    """The parameters after the last update; for the schedule-free method its evaluation parameters."""
    free = find_states(result.optimizer_state, optax.contrib.ScheduleFreeState)
    return optax.contrib.schedule_free_eval_params(free[0], result.params) if free else result.params


def likelihoods(optimizer, averages, epochs, seeds, chains, hidden=16):
    """Likelihoods (seeds, 1 + averages, 2) of training and held-out images, for last and averaged parameters."""
    rows = digits()
    estimator = pj.persistent_contrastive_divergence(MODEL, num_chains=chains)
    every = pj.chain(optimizer, *averages)  # averages do not change the run, so one run computes all of them

    def run(key):
        start_key, fit_key = jax.random.split(key)
        start = MODEL.init(rows[0], hidden, start_key)
        result = pj.fit(start, every, estimator, rows[0], epochs=epochs, batch_size=BATCH, key=fit_key)
        kept = map(pj.averaged_parameters, result.optimizer_state[1:])
        return jnp.stack([exact(params, rows) for params in (last_parameters(result), *kept)])

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def main(argv=None):
    """Print a row for each optimizer, rate and schedule."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.averages", description=__doc__)
    parser.add_argument("optimizers", nargs="*", default=list(OPTIMIZERS), help=f"some of {', '.join(OPTIMIZERS)}")
    parser.add_argument("--schedules", nargs="*", choices=SCHEDULES, default=["falling", "constant", "half"])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.2])
    for name, default in {"epochs": 30, "seeds": 10, "chains": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    print(f"digits, 64 x 16, {options.chains} chains, {options.epochs} epochs: training / held out, nats per image")
    print("| optimizer | rate | schedule | raw |", *(f"average, {share:g} |" for share in options.shares))
    print("|---|---|---|---|" + "---|" * len(options.shares))
    averages = [pj.average_parameters(share) for share in options.shares]
    for name in options.optimizers:
        make, rates = OPTIMIZERS[name]
        for rate in rates:
            for schedule in options.schedules:
                if name == "schedule-free SGD" and schedule != "constant":
                    continue
                optimizer = make(SCHEDULES[schedule](rate, options.epochs))
                values = likelihoods(optimizer, averages, options.epochs, options.seeds, options.chains)
                cells = [
                    " / ".join(f"{m:.2f} ± {s:.2f}" for m, s in zip(*of, strict=True))
                    for of in zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
                ]
                print(f"| {name} | {rate:g} | {schedule} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
