"""The gallery: every program of examples/, with its title there and the arguments that it is run with at build time."""

import ast
import logging
import shutil
import struct
import sys
from pathlib import Path

import jax
import numpy as np
from _docstrings import as_rst
from jax.extend.backend import clear_backends
from sklearn.datasets import load_digits
from sphinx_gallery.scrapers import figure_rst

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
COPIES = DOCS / "_examples"  # of the programs, with a title over the docstring, as sphinx-gallery wants them

# In the order of the gallery. None: shown, but not executed.
PROGRAMS = {
    "rbm_digits": ("A first Boltzmann machine", ""),
    "rbm_mnist": (
        "MNIST, with its likelihood",
        "--data digits --hidden 30 --epochs 100 --learning-rate 1 --temperatures 1000",
    ),
    "centering": ("The centred gradient", ""),
    "sweep": ("A sweep of learning rates", ""),
    "long_run": ("A long run", "--epochs 60"),
    "gaussian_rbm": ("Gaussian visible units", "--epochs 30"),
    "ising": ("Spins learn an Ising model", ""),
    "motifs": ("Motifs of a protein family", ""),
    "patches": ("Patches of photographs", ""),
    "impute": ("Missing halves of digits", ""),
    "deep_boltzmann": ("A deep Boltzmann machine", "--epochs 12"),
    "neural_energy": ("A neural energy", "--epochs 20"),
    "potts": ("A Potts model: contacts in a protein family", "--epochs 15"),
    "migrate_from_paysage": ("Scripts of paysage", ""),
    "flax_equinox": ("flax and equinox", "--epochs 5"),
    "thrml_ising": ("An Ising model with thrml", "--side 4 --epochs 10"),
    "data_parallel": ("One run on eight devices", "--devices 8"),
    "launch": ("Several processes", None),
    "netket_ising": ("A quantum Ising chain in NetKet", "--spins 6 --epochs 60"),
}
DATA = {"rbm_mnist": " on scikit-learn's digits, written as the files of MNIST,"}
EXECUTED = "/(" + "|".join(name for name, (_, options) in PROGRAMS.items() if options is not None) + r")\.py$"
HEADER = """\
Gallery
=======

Complete programs. They were run for this site on a CPU, some at a smaller size than by default; each page says how, and
shows what the program printed and drew. They share two small files:
:download:`shared.py <../../examples/shared.py>` (command line, mosaics of images) and
:download:`digits.py <../../examples/digits.py>` (the data).
"""

sys.path.insert(0, str(EXAMPLES))


def write_examples():
    """The copies, and nothing of an earlier run. sphinx-gallery executes those that have changed."""
    shutil.rmtree(COPIES, ignore_errors=True)
    COPIES.mkdir()
    (COPIES / "GALLERY_HEADER.rst").write_text(HEADER)
    for name in PROGRAMS:
        (COPIES / f"{name}.py").write_text(_page(name))
    _write_digits_as_mnist(COPIES / "digits")


def _page(name):
    """The source with the title over its docstring, and under it how it was run."""
    title, options = PROGRAMS[name]
    source = (EXAMPLES / f"{name}.py").read_text()
    doc = ast.get_docstring(ast.parse(source), clean=False)
    lines = ["", title, "=" * len(title), "", *as_rst(doc.splitlines())]
    if options is not None:
        command = f"python examples/{name}.py {options}".strip()
        lines += ["", f"Run for this page{DATA.get(name, '')} as `{command}`.", ""]
    return source.replace(doc, "\n".join(lines).replace("\\", "\\\\").replace("`", "``"), 1)


def _write_digits_as_mnist(folder):
    """scikit-learn's digits in the files that MNIST has."""
    folder.mkdir()
    grey = np.uint8(load_digits().images * 15.9)
    for name, images in {"train-images-idx3-ubyte": grey[:1200], "t10k-images-idx3-ubyte": grey[1200:]}.items():
        (folder / name).write_bytes(b"\0\0\x08\3" + struct.pack(">3I", *images.shape) + images.tobytes())


# --- what sphinx-gallery calls -----------------------------------------------------------------------


def position(filename):
    """Of a program in the gallery."""
    return list(PROGRAMS).index(Path(filename).stem)


def arguments(gallery_conf, script_vars):
    """The command line of a program, which runs in the folder of the copies."""
    title, options = PROGRAMS[Path(script_vars["src_file"]).stem]
    script_vars["example_globals"]["__doc__"] = title  # sphinx-gallery takes it away, the command line shows it
    return options.split()


def pictures(block, block_vars, gallery_conf):
    """The pictures that a program has written, as reStructuredText."""
    found = []
    for path in sorted(COPIES.rglob("*.png")):
        found.append(next(block_vars["image_path_iterator"]))
        path.replace(found[-1])
    return figure_rst(found, gallery_conf["src_dir"])


def _get_sg_image_scraper():
    return pictures


def reset(gallery_conf, filename):
    """Each program starts as if alone: netket turns on 64 bits, data_parallel makes devices, orbax logs much."""
    clear_backends()
    jax.clear_caches()
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("absl").setLevel(logging.WARNING)
