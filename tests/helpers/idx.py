"""Files in the format of MNIST's."""

import gzip
import struct

import numpy as np
import rbm_mnist
from sklearn.datasets import load_digits


def idx(array, magic=b"\x00\x00\x08\x03"):
    return magic + struct.pack(">3I", *array.shape) + array.tobytes()


def write_digits_as_mnist(folder, suffix=""):
    """Eight by eight pixels in the two files of MNIST, small enough for the exact likelihood."""
    grey = np.uint8(load_digits().images * 15.9)
    for name, images in zip(rbm_mnist.FILES, (grey[:1200], grey[1200:]), strict=True):
        (folder / (name + suffix)).write_bytes(gzip.compress(idx(images)) if suffix else idx(images))
