"""Helpers of the examples: the command line, mosaics of images, and writing the picture."""

import argparse
import math
import os
from pathlib import Path

import matplotlib
import numpy as np


def make_parser(doc, epochs, picture=None):
    """A parser with the options --epochs and --seed, and with --output if the example writes a picture."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        usage=argparse.SUPPRESS,  # report errors in one line
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=epochs, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    if picture is not None:
        parser.add_argument("--output", type=Path, default=Path(picture), help="file of the picture")
    return parser


def parse(parser, argv, **limits):
    """Parse the options; exit with one line if an option is outside name=(low, high) or the picture is not writable."""
    options = parser.parse_args(argv)
    for name, (low, high) in {"epochs": (1, 100_000), "seed": (0, 2**32 - 1), **limits}.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            parser.error(f"argument {option}: expected a number from {low:g} to {high:.10g}, got {value}")
    # Fail now and not after training.
    path = vars(options).get("output")
    if path and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
        parser.error(f"argument --output: cannot write {path}")
    return options


def show(axes, title, rows, shape, largest=None):
    """Draw rows as images side by side: from 0 (white) to 1 (black), or from -largest (blue) to largest (red)."""
    side = math.ceil(math.sqrt(len(rows)))
    tiles = np.full((side**2, *(n + 1 for n in shape)), np.nan)
    tiles[: len(rows), 1:, 1:] = np.asarray(rows).reshape(-1, *shape)
    tiles = tiles.reshape(side, side, *tiles.shape[1:]).swapaxes(1, 2)
    mosaic = np.pad(tiles.reshape(side * tiles.shape[1], -1), ((0, 1), (0, 1)), constant_values=np.nan)
    low, high, colors = (0, 1, "binary") if largest is None else (-largest, largest, "RdBu_r")
    axes.imshow(mosaic, matplotlib.colormaps[colors].with_extremes(bad="0.8"), vmin=low, vmax=high)
    axes.set_title(title)
    axes.axis("off")


def save(figure, path):
    """Write the picture as PNG and print its path."""
    figure.savefig(path, format="png", dpi=130)
    print(f"wrote {path}")
