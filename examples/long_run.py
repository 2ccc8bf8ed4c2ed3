"""Train for hours without losing work: a complete script.

    pip install -e '.[integrations]'
    python examples/long_run.py --folder run

Trains centred PCD on handwritten digits and stops early by the pseudo-likelihood of validation images. The run writes
a checkpoint every 5 epochs, history.csv, an updated picture, and TensorBoard events to the folder. Kill it at any time:
the same command resumes the run, and the final numbers are the same.
"""

import csv
from pathlib import Path

import digits
import jax
import numpy as np
import shared
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

import paysage_jax as pj


def train(images, epochs, key, folder, callback):
    """Train; the last four arguments of `pj.fit` report, stop and save the run."""
    start_key, fit_key = jax.random.split(key)
    machine = pj.rbm.RBM()
    validation = np.repeat(images.validation, 20, axis=0)  # so that the metric draws twenty times for each image
    return pj.fit(
        machine.init(images.train, 36, start_key),
        pj.chain(pj.center(), pj.sgd(1.0), pj.average_parameters()),
        pj.persistent_contrastive_divergence(machine, num_chains=100),
        images.train,
        epochs=epochs,
        batch_size=digits.BATCH,
        key=fit_key,
        metrics={
            "validation": pj.pseudo_log_likelihood(machine, validation),
            "gap": pj.free_energy_gap(machine, images.train, images.validation),
        },
        early_stopping=pj.early_stopping("validation", patience=40, maximize=True),
        callback=callback,
        checkpoints=pj.Checkpoints(folder / "checkpoints", every=5),
    )


def reporter(folder, images):
    """A callback that writes history.csv and TensorBoard events and, every tenth epoch, progress.png."""
    writer = SummaryWriter(folder)

    def report(result):
        history = result.history
        with open(folder / "history.csv", "w", newline="") as file:
            csv.writer(file).writerows([history, *zip(*history.values(), strict=True)])
        for name in history:
            writer.add_scalar(name, history[name][-1], history["epoch"][-1])
        if result.epochs_done % 10 == 0:
            draw(result, images).savefig(folder / "progress.png", dpi=130)

    return report


def draw(result, images):
    """The pseudo-likelihood and the gap by epoch, and the filters of the best parameters."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    likelihood, gap, filters = figure.subplots(1, 3)
    for axes, name in ((likelihood, "pseudo-log-likelihood, validation"), (gap, "free energy, validation - training")):
        axes.plot(result.history["epoch"], result.history["validation" if axes is likelihood else "gap"])
        axes.axvline(int(result.best.epoch), color="0.6", linestyle="--", label="best so far")
        axes.set(title=name, xlabel="epoch", ylabel="nats per image")
    likelihood.legend()
    rows = result.best.params["weights"][0]["matrix"].T[:36]
    shared.show(filters, "filters of the best epoch", rows, images.shape, largest=float(abs(rows).max()))
    return figure


def main(argv=None):
    """Train or resume, and print the outcome."""
    parser = shared.make_parser(__doc__, 300)
    parser.add_argument("--folder", type=Path, default=Path("long_run"), help="for all files of the run")
    options = shared.parse(parser, argv)
    folder, images = options.folder, digits.load()
    folder.mkdir(parents=True, exist_ok=True)
    result = train(images, options.epochs, jax.random.key(options.seed), folder, reporter(folder, images))
    draw(result, images).savefig(folder / "progress.png", dpi=130)
    print(f"{pj.Outcome(result.outcome).name} after {result.epochs_done} epochs, the best {result.best.epoch}")
    return result


if __name__ == "__main__":
    main()
