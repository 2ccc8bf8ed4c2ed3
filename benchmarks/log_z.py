"""`python -m benchmarks.log_z`: the errors of tracked and annealed log Z against the exact one; digits, many seeds."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import paysage_jax as pj
from paysage_jax import rbm

MODEL = rbm.RBM()
BATCH = 50
OPTIMIZERS = {"sgd": (pj.sgd, 1.0), "adam": (pj.adam, 0.03)}


def digits():
    """The binary images of examples/digits.py: 1,600 to train on, 197 held out."""
    rows = (load_digits(return_X_y=True)[0] >= 8).astype(np.float32)
    rows = rows[np.random.RandomState(137).permutation(len(rows))]
    return jnp.array(rows[:1600]), jnp.array(rows[1600:])


def tracked_run(data, optimizer, key, hidden, epochs, chains, steps):
    """The result of a centred run that tracks log Z and reanneals every epoch; its history has the exact log Z."""
    start_key, path_key, anneal_key, track_key, fit_key = jax.random.split(key, 5)
    start = MODEL.init(data, hidden, start_key)
    annealing = MODEL.annealing(start, data, chains, path_key)
    first = pj.annealed_importance_sampling(MODEL, annealing, anneal_key, steps=100)
    again = {"reanneal_every": len(data) // BATCH, "reanneal_steps": steps}
    tracker = pj.track_log_partition(MODEL, first, track_key, **again)
    metrics = {
        "exact": lambda state, key: MODEL.log_partition(state.params),
        "tracked": lambda state, key: pj.tracked_log_partition(state).log_z,
        "error": lambda state, key: pj.tracked_log_partition(state).error,
    }
    estimator = pj.persistent_contrastive_divergence(MODEL)
    chain = pj.chain(pj.center(), optimizer, tracker)
    return pj.fit(start, chain, estimator, data, epochs=epochs, batch_size=BATCH, key=fit_key, metrics=metrics)


def annealed(params, training_chains, data, held_out, key, chains, steps):
    """Bounds and estimates of log Z, and RAISE on samples of the model and on held-out rows, all minus the exact."""
    path_key, forward_key, on_key, back_key, draw_key, raise_key = jax.random.split(key, 6)
    annealing = MODEL.annealing(params, data, chains, path_key)
    forward = pj.annealed_importance_sampling(MODEL, annealing, forward_key, steps)
    samples = jnp.resize(training_chains, annealing.start.shape)
    on = lambda i, v: MODEL.transition(params, v, jax.random.fold_in(on_key, i))  # noqa: E731
    samples = jax.lax.fori_loop(0, 1000, on, samples)
    back = pj.reverse_annealed_importance_sampling(MODEL, annealing, samples, back_key, steps)
    exact = MODEL.log_partition(params)

    def raised(v):
        log_p = pj.reverse_ais_log_prob(MODEL, annealing, v, raise_key, steps)
        return jnp.mean(log_p + MODEL.energy(params, v)) + exact

    over_exact = [x - exact for x in (forward.bound, forward.log_z, back.log_z, back.bound)]
    return jnp.stack([*over_exact, raised(exact_samples(params, 2000, draw_key)), raised(held_out)])


def exact_samples(params, count, key):
    """Samples from p(h), from the probabilities of all hidden states, and then from p(v | h)."""
    hidden = len(params["layers"][1]["loc"])
    h_key, v_key = jax.random.split(key)
    states = ((jnp.arange(2**hidden)[:, None] >> jnp.arange(hidden)[None]) & 1).astype(float)
    chosen = jax.random.categorical(h_key, -MODEL.hidden_free_energy(params, states), shape=(count,))
    return MODEL.visible_sample(params, states[chosen], v_key)


def main(argv=None):
    """Train with many seeds in one program, and print the errors."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.log_z", description=__doc__)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--rate", type=float, help="the learning rate; each optimizer has its own default")
    parser.add_argument("--averaged", action="store_true", help="track the average of the parameters")
    parser.add_argument("--constant", action="store_true", help="a constant rate; else falling as 1 / (1 + epoch / 10)")
    for name, default in {"hidden": 16, "seeds": 10, "epochs": 30, "chains": 1000, "steps": 1000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    jax.config.update("jax_default_matmul_precision", "highest")
    data, held_out = digits()
    make, rate = OPTIMIZERS[options.optimizer]
    rate = options.rate or rate
    optimizer = make(rate if options.constant else pj.per_epoch(pj.power_law_decay(rate, 0.1)))
    if options.averaged:
        optimizer = pj.chain(optimizer, pj.average_parameters())
    size = (options.chains, options.steps)

    def run(seed):
        key = jax.random.key(seed)
        result = tracked_run(data, optimizer, key, options.hidden, options.epochs, *size)
        params = pj.averaged_parameters(result) if options.averaged else result.params
        off = annealed(params, result.estimator_state, data, held_out, jax.random.fold_in(key, 1), *size)
        return result.history, off

    history, off = jax.jit(jax.vmap(run))(jnp.arange(options.seeds))
    error = np.abs(history["tracked"] - history["exact"])
    print(f"{options.optimizer} {rate}, 64 x {options.hidden}, {options.seeds} seeds, {options.epochs} epochs")
    print(f"tracked, at the end: at most {error[:, -1].max():.3f} off")
    for seed, of_run in enumerate(error):
        if of_run.max() > 0.3:
            at = of_run.argmax()
            print(
                f"  seed {seed}: {of_run[at]:.2f} off in epoch {at + 1}, stated error {history['error'][seed, at]:.2f}"
            )
    print(f"other seeds, at any epoch: at most {np.where(error.max(axis=1) > 0.3, 0, error.max(axis=1)).max():.3f} off")
    low, forward, back, high, of_model, of_data = np.asarray(off).T
    width = np.sort(high - low)[[0, options.seeds // 2, -1]]
    print(f"log Z between bounds in {np.sum((low < 0) & (high > 0))}, which are {width.round(3)} apart (least to most)")
    print(f"log Z between estimates in {np.sum((forward < 0) & (back > 0))}")
    below = [np.sum(x < 0) for x in (of_model, of_data)]
    print(f"RAISE below log p on samples of the model in {below[0]}, on held-out rows in {below[1]}")


if __name__ == "__main__":
    main()
