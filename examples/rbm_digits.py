"""Train a restricted Boltzmann machine (RBM) on handwritten digits by persistent contrastive divergence.

    python examples/rbm_digits.py
    python examples/rbm_digits.py --convention classic --optimizer adam --learning-rate 0.01
    python examples/rbm_digits.py --data train-images-idx3-ubyte.gz --hidden 100 --learning-rate 0.001 --epochs 5

Prints the log-likelihood as training proceeds: exact up to 20 hidden units, beyond that estimated by annealed
importance sampling (AIS). Draws it, with the strongest filters (columns of the weight matrix), validation images, and
samples of the model.
"""

import math
from functools import partial

import digits
import jax
import jax.numpy as jnp
import numpy as np
import shared
from matplotlib.figure import Figure

import paysage_jax as pj

SHOWN = 36  # filters, images and samples in the picture
LEARNING_RATES = {
    "textbook": {"sgd": 0.1, "momentum": 0.02, "rmsprop": 0.01, "adam": 0.01},
    "classic": {"sgd": 0.1, "momentum": 0.1, "rmsprop": 0.01, "adam": 0.01},
}


def make_optimizer(convention, name, learning_rate):
    """`pj.adam` or `pj.classic.adam`, say, the rate falling as 1 / (1 + epoch / 10)."""
    library = pj if convention == "textbook" else pj.classic
    return getattr(library, name)(pj.per_epoch(pj.power_law_decay(learning_rate, 0.1)))


def train(optimizer, params, images, key, epochs, **watch):
    """The result of `pj.fit`, with the batches in the same order in every epoch, as in paysage."""
    estimator = pj.persistent_contrastive_divergence(pj.rbm.free_energy, pj.rbm.gibbs)
    options = {"epochs": epochs, "batch_size": digits.BATCH, "shuffle": False, "key": key}
    return pj.fit(params, optimizer, estimator, images.train, **options, **watch)


def log_likelihoods(images, params, key):
    """[training, validation, standard error of log Z] in nats per image; the error is 0 where log Z is exact."""
    if len(params["layers"][1]["loc"]) <= pj.rbm.MOST_HIDDEN:
        log_z, error = pj.rbm.log_partition(params), jnp.zeros(())
    else:
        log_z, error = pj.rbm.estimate_log_partition(params, key)
    return jnp.stack([*(pj.rbm.log_likelihood(params, v, log_z) for v in (images.train, images.validation)), error])


@partial(jax.jit, static_argnames=("count", "steps"))
def sample(params, key, count, steps):
    """The states of `count` chains after `steps` Gibbs steps from random pixels."""
    start_key, key = jax.random.split(key)
    start = jax.random.bernoulli(start_key, shape=(count, len(params["layers"][0]["loc"]))).astype(float)
    return jax.lax.scan(lambda v, k: (pj.rbm.gibbs(params, v, k), None), start, jax.random.split(key, steps))[0]


def main(argv=None):
    """Train, print, draw."""
    parser = shared.make_parser(__doc__, 30, "rbm_digits.png")
    parser.add_argument("--optimizer", choices=LEARNING_RATES["textbook"], default="adam")
    parser.add_argument("--convention", choices=LEARNING_RATES, default="textbook", help="whose numerics")
    parser.add_argument("--learning-rate", type=float, help="in the first epoch; each optimizer has its own default")
    parser.add_argument("--hidden", type=int, default=16, help="hidden units")
    parser.add_argument("--data", help="images as NPZ or MNIST IDX, gzip or not; without it scikit-learn's digits")
    options = shared.parse(parser, argv, learning_rate=(1e-9, 1e3), hidden=(1, 10_000))
    try:
        images = digits.load(options.data)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")

    learning_rate = options.learning_rate or LEARNING_RATES[options.convention][options.optimizer]
    optimizer = make_optimizer(options.convention, options.optimizer, learning_rate)
    init_key, train_key, ais_key, sample_key = jax.random.split(jax.random.key(options.seed), 4)
    start = pj.rbm.init_bernoulli(images.train, options.hidden, init_key)
    measure = jax.jit(partial(log_likelihoods, images))
    watch = {"metrics": {"nats": measure}, "metrics_every": math.ceil(options.epochs / 10), "progress": True}
    result = train(optimizer, start, images, train_key, options.epochs, **watch)

    params, last = result.params, int(result.epochs_done)
    between = (result.history["epoch"] > 0) & (result.history["epoch"] < last)
    epochs = np.array([0, *result.history["epoch"][between], last])
    nats = np.array([measure(start, ais_key), *result.history["nats"][between], measure(params, ais_key)])
    estimated = nats[:, 2].any()
    kind = "AIS estimate" if estimated else "exact"
    print(f"log-likelihood in nats per image ({kind})\nepoch  training  validation")
    for epoch, (training, validation, error) in zip(epochs, nats, strict=True):
        print(f"{epoch:5}  {training:8.2f}  {validation:10.2f}" + (f"  ± {error:.2f}" if estimated else ""))

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    units = f"RBM with {images.train.shape[1]} visible and {options.hidden} hidden units"
    figure.suptitle(f"{units}, {options.optimizer} ({options.convention}), learning rate {learning_rate:g}")
    curve, filters, real, drawn = figure.subplots(1, 4)
    for values, name in zip(nats.T, ("training", "validation"), strict=False):
        curve.errorbar(epochs, values, nats[:, 2] if estimated else None, marker=".", label=name)
    curve.set(title=f"log-likelihood ({kind})", xlabel="epoch", ylabel="nats per image", box_aspect=1)
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
