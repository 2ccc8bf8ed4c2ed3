"""Train a restricted Boltzmann machine (RBM) on handwritten digits by persistent contrastive divergence.

    python examples/rbm_digits.py
    python examples/rbm_digits.py --data train-images-idx3-ubyte.gz --hidden 100 --learning-rate 0.05 --epochs 5

Trains by stochastic gradient descent on the centred gradient at a constant rate. The model is the average of the
parameters over the last fifth of the run.

Prints the log-likelihood that the run tracks. Up to 20 hidden units it also prints the exact log-likelihood. For larger
machines it brackets the final one by annealed importance sampling: forward (usually too high) and reverse (usually too
low). Plots the log-likelihood, the strongest filters (columns of the weight matrix), validation images, and samples.
"""

import math
from functools import partial

import digits
import jax
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

MODEL = pj.rbm.RBM()
MOST_HIDDEN = 20  # the exact likelihood sums over 2^20 states
CHAINS = 400  # that track the likelihood
SHOWN = 36  # filters, images and samples in the picture


def make_optimizer(learning_rate, *watchers):
    """Centred SGD and the average of its parameters, which metrics and the tracker receive."""
    return pj.chain(pj.center(), pj.sgd(learning_rate), pj.average_parameters(), *watchers)


def train(optimizer, params, images, key, epochs, **watch):
    """Train, with the batches in the same order in every epoch, as in paysage."""
    estimator = pj.persistent_contrastive_divergence(MODEL)
    options = {"epochs": epochs, "batch_size": digits.BATCH, "shuffle": False, "key": key}
    return pj.fit(params, optimizer, estimator, images.train, **options, **watch)


def tracker(params, images, key, every):
    """A tracker of log Z for a run that starts from `params`; it reanneals every `every` epochs."""
    path_key, anneal_key, track_key = jax.random.split(key, 3)
    annealing = MODEL.annealing(params, images.train, CHAINS, path_key)
    first = pj.annealed_importance_sampling(MODEL, annealing, anneal_key, steps=100)
    again = {"reanneal_every": every * len(images.batches), "reanneal_steps": 300}
    return pj.track_log_partition(MODEL, first, track_key, steps_per_update=2, **again)


def exact_log_likelihood(v):
    """The exact log-likelihood as a metric, for few hidden units."""
    return lambda state, key: MODEL.log_likelihood(state.params, v)


def bracket(params, images, samples, key):
    """[[training, validation] by forward annealing, the same by reverse annealing from samples of the model]."""
    path_key, forward_key, reverse_key = jax.random.split(key, 3)
    annealing = MODEL.annealing(params, images.train, len(samples), path_key)
    forward = pj.annealed_importance_sampling(MODEL, annealing, forward_key)
    back = pj.reverse_annealed_importance_sampling(MODEL, annealing, samples, reverse_key)
    rows = images.train, images.validation
    return [[float(MODEL.log_likelihood(params, v, x.log_z)) for v in rows] for x in (forward, back)]


@partial(jax.jit, static_argnames=("count", "steps"))
def sample(params, key, count, steps):
    """The states of `count` chains after `steps` Gibbs steps from random pixels."""
    start_key, key = jax.random.split(key)
    start = jax.random.bernoulli(start_key, shape=(count, len(params["layers"][0]["loc"]))).astype(float)
    return jax.lax.scan(lambda v, k: (MODEL.transition(params, v, k), None), start, jax.random.split(key, steps))[0]


def main(argv=None):
    """Train, print and plot."""
    parser = shared.make_parser(__doc__, 30, "rbm_digits.png")
    parser.add_argument("--learning-rate", type=float, default=1.0, help="of SGD")
    parser.add_argument("--hidden", type=int, default=16, help="hidden units")
    parser.add_argument("--data", help="images as NPZ or MNIST IDX, gzip or not; without it scikit-learn's digits")
    options = shared.parse(parser, argv, learning_rate=(1e-9, 1e3), hidden=(1, 10_000))
    try:
        images = digits.load(options.data)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")

    every = math.ceil(options.epochs / 10)
    keys = jax.random.split(jax.random.key(options.seed), 6)
    init_key, train_key, track_key, sample_key, bracket_key, model_key = keys
    start = MODEL.init(images.train, options.hidden, init_key)
    optimizer = make_optimizer(options.learning_rate, tracker(start, images, track_key, every))
    rows = {"training": images.train, "validation": images.validation}
    metrics = {name: pj.tracked_log_likelihood(MODEL, v) for name, v in rows.items()}
    if options.hidden <= MOST_HIDDEN:
        metrics |= {f"{name}, exact": exact_log_likelihood(v) for name, v in rows.items()}
    watch = {"metrics": metrics, "progress": True}
    result = train(optimizer, start, images, train_key, options.epochs, **watch)

    params, history = pj.averaged_parameters(result), result.history
    print("log-likelihood in nats per image, tracked" + " and exact" * (len(metrics) > 2))
    print("epoch  " + "  ".join(metrics))
    for i in range(every - 1, len(history["epoch"]), every):
        numbers = [f"{history[name][i]:{len(name)}.2f}" for name in metrics]
        print(f"{history['epoch'][i]:5}", *numbers, sep="  ")

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    units = f"RBM with {images.train.shape[1]} visible and {options.hidden} hidden units"
    figure.suptitle(f"{units}, centred SGD with learning rate {options.learning_rate:g}, averaged")
    curve, filters, real, drawn = figure.subplots(1, 4)
    for color, name in zip(("C0", "C1"), rows, strict=True):
        curve.plot(history["epoch"], history[name], color, label=name)
        if len(metrics) > 2:
            curve.plot(history["epoch"], history[f"{name}, exact"], "k:", label="exact" if color == "C1" else None)
    if options.hidden > MOST_HIDDEN:
        samples = sample(params, model_key, count=CHAINS, steps=500)
        both = np.array(bracket(params, images, samples, bracket_key))
        for (name, values), color in zip(zip(rows, both.T, strict=True), ("C0", "C1"), strict=True):
            print(f"annealed, {name}: forward {values[0]:.2f}, reverse {values[1]:.2f}")
            curve.plot([history["epoch"][-1]] * 2, values, color + "_-", markersize=12)
    curve.set(title="log-likelihood, tracked", xlabel="epoch", ylabel="nats per image", box_aspect=1)
    curve.legend()
    matrix = np.asarray(params["weights"][0]["matrix"]).T
    rows = matrix[np.argsort(-np.abs(matrix).sum(axis=1))[:SHOWN]]
    title = f"{len(rows)} filters: red positive, blue negative"
    shared.show(filters, title, rows, images.shape, largest=np.abs(rows).max())
    shared.show(real, "validation images", images.validation[:SHOWN], images.shape)
    rows = sample(params, sample_key, count=SHOWN, steps=500)
    shared.show(drawn, "samples, 500 Gibbs steps from noise", rows, images.shape)
    shared.save(figure, options.output)


if __name__ == "__main__":
    main()
