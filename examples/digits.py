"""Binary images for the examples: scikit-learn's digits, or an NPZ or MNIST IDX file, which may be gzipped."""

import gzip
import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH = 50


class Images(NamedTuple):
    """Rows of 0.0 and 1.0: batches (steps, BATCH, pixels) to train on, validation (images, pixels).

    shape: rows and columns of an image.
    """

    batches: np.ndarray
    validation: np.ndarray
    shape: tuple[int, int]

    @property
    def train(self):
        return self.batches.reshape(-1, self.batches.shape[-1])


def load(path=None) -> Images:
    """The images of a file, or scikit-learn's digits, thresholded at 0.5 and shuffled; about 90 % are for training.

    Raises OSError if the file cannot be read and ValueError if it does not hold images with values in [0, 1].
    """
    if path is None:
        from sklearn.datasets import load_digits  # the import takes a second; with a file it is not needed

        images = load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16
    else:
        images = read(path)
    rows = images.reshape(len(images), -1)
    rows = rows[np.random.RandomState(137).permutation(len(rows))]
    binary = (rows >= 0.5).astype(np.float32)
    steps = int(0.9 * len(rows)) // BATCH
    return Images(binary[: steps * BATCH].reshape(steps, BATCH, -1), binary[steps * BATCH :], images.shape[1:])


def read(path):
    """The images of a file, (images, rows, columns) in [0, 1]. Raises OSError and ValueError as `load` does."""
    content = Path(path).read_bytes()
    try:
        if content.startswith(b"PK"):
            return _as_images(_read_npz(content))
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return _as_images(_read_idx(content))
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_npz(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        name = "data" if "data" in arrays.files else arrays.files[0] if len(arrays.files) == 1 else None
        if name is None:
            raise ValueError(f"expected one array, or one called 'data', got {', '.join(arrays.files) or 'none'}")
        return arrays[name]


def _read_idx(content):
    if not content.startswith(b"\x00\x00\x08\x03") or len(content) < 16:
        raise ValueError("expected an NPZ file or an MNIST IDX file of images")
    shape = tuple(np.frombuffer(content[4:16], ">u4").tolist())
    if len(content) != 16 + math.prod(shape):
        raise ValueError(f"the IDX header says {math.prod(shape)} bytes of images {shape}, got {len(content) - 16}")
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape) / np.float32(255)


def _as_images(array):
    """The array as (images, rows, columns), checked."""
    array = np.asarray(array)
    if array.dtype.kind not in "buif":
        raise ValueError(f"expected real numbers, got dtype {array.dtype}")
    if array.size and array.ndim == 2 and math.isqrt(array.shape[1]) ** 2 == array.shape[1]:
        array = array.reshape(len(array), math.isqrt(array.shape[1]), -1)
    if array.ndim != 3 or array.size == 0:
        raise ValueError(f"expected shape (images, rows, columns) or (images, pixels of a square), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("expected values in [0, 1], got NaN or infinite ones")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"expected values in [0, 1], got them from {array.min():g} to {array.max():g}")
    if int(0.9 * len(array)) < BATCH:
        raise ValueError(f"expected at least {math.ceil(BATCH / 0.9)} images, got {len(array)}")
    return array
