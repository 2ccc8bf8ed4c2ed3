"""Checkpoints of runs: save, find the latest complete one, restore. Orbax writes the files atomically.

A checkpoint contains the leaves of a tree in a flat dictionary, and, as JSON, their paths, shapes and dtypes and the
settings of the run. It can therefore be read without the code of the model, and errors can name leaves and settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.tree_util import keystr, tree_flatten_with_path

from .._core.devices import put
from .._core.pytree import check_count
from .._core.types import Leaf, Tree
from .history import empty_rows

VERSION = 1

Directory = str | bytes | os.PathLike[str] | os.PathLike[bytes]

Settings = dict[str, object]  # the settings of a run, as for JSON
Description = dict[str, Any]  # the description of the leaves of a checkpoint, as from JSON


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError:
        raise ImportError("checkpoints need orbax: pip install orbax-checkpoint") from None
    return orbax.checkpoint


def _local(name: str, folder: Directory) -> Path:
    """The absolute path of a local directory. Raises TypeError or ValueError for a URL, or if it is not a path."""
    try:
        path = os.path.expanduser(os.fsdecode(folder))
    except TypeError:
        raise TypeError(f"{name} must be the path of a directory, got {folder!r}") from None
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", path):  # also as pathlib writes it, with one slash
        raise ValueError(
            f"{name} must be a local directory, got the URL {path!r}; mount it, or copy the directory there later"
        )
    return Path(path).absolute()


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often `fit` writes checkpoints.

    Args:
        directory: a local directory, which is created if it does not exist.
        every: the number of epochs between checkpoints, a positive integer.
        keep: the number of latest checkpoints to keep, a positive integer.

    Raises:
        TypeError, ValueError: for other values, and for a URL.
    """

    directory: Directory
    every: int = 1
    keep: int = 3

    def __post_init__(self) -> None:
        _local("Checkpoints: directory", self.directory)
        check_count("Checkpoints: every", self.every)
        check_count("Checkpoints: keep", self.keep)

    @classmethod
    def of(cls, checkpoints: Checkpoints | Directory) -> Checkpoints:
        """Return `Checkpoints` unchanged; a directory becomes `Checkpoints` with the defaults."""
        return checkpoints if isinstance(checkpoints, Checkpoints) else cls(checkpoints)


class CheckpointManager:
    """The checkpoints of one run in a directory, numbered by epochs.

    Args:
        options: the directory, the interval and the number of checkpoints.
        settings: the settings of the run, as for JSON; checkpoints with other settings are rejected.
    """

    def __init__(self, options: Checkpoints, settings: Settings) -> None:
        self._folder, self._settings = _local("Checkpoints: directory", options.directory), settings
        self.every = int(options.every)
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(f"Checkpoints: {self._folder} is not a directory")
        orbax = _orbax()
        self._manager = orbax.CheckpointManager(
            self._folder, options=orbax.CheckpointManagerOptions(max_to_keep=int(options.keep), create=True)
        )

    @property
    def epoch(self) -> int | None:
        """The epoch of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, epoch: int, tree: Tree) -> None:
        """Start writing a checkpoint, unless this epoch has been written. An earlier write is completed first."""
        if epoch in self._manager.all_steps():
            return
        args = _orbax().args
        leaves, description = _flat(tree)
        content = args.Composite(
            leaves=args.StandardSave(leaves),
            about=args.JsonSave({"version": VERSION, "settings": self._settings} | description),
        )
        self._manager.save(epoch, args=content, force=True)

    def latest(self, like: Tree) -> Tree:
        """The latest complete checkpoint as a tree like `like`, or None.

        Its history may have any number of rows. Metrics and early stopping may have been added or removed.

        Raises:
            ValueError: if the checkpoint does not fit or cannot be read; the message names the leaf or the setting.
        """
        epoch = self.epoch
        if epoch is None:
            return None
        try:
            arrays, about = _read(self._manager, epoch, self._folder)
        except _DamagedError as error:
            older = _older(self._manager, epoch, self._folder)
            resumes = f"resume from epoch {older[0]}" if older else "start again"
            damaged = [step for step in sorted(self._manager.all_steps()) if not older or step > older[0]]
            delete = " and ".join(str(self._folder / str(step)) for step in damaged)
            found = f"Older checkpoints that can be read: {older or 'none'}"
            raise ValueError(f"fit: {error} {found}. To {resumes}, delete {delete}.") from None
        where = f"fit: the checkpoint {self._folder / str(epoch)}"
        written = {"shards": 1} | about["settings"]  # early checkpoints of version 0.2 have no shards
        for name, value in self._settings.items():
            if written.get(name) != value:
                raise ValueError(f"{where} was written with {name}={written.get(name)}, not {value}")
        _check(where, about, _flat(like)[1], _names_of_states(like._replace(best=(), history={})))
        saved = {leaf["name"]: x for leaf, x in zip(about["leaves"], arrays, strict=True)}
        rows = len(saved[".history['epoch']"])
        no_rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), like.history)
        without = like._replace(history=empty_rows(no_rows, rows))
        paths, structure = tree_flatten_with_path(without)
        result = structure.unflatten(
            [_as(x, saved[name]) if (name := keystr(path)) in saved else x for path, x in paths]
        )
        if result.best == () or ".best.epoch" in saved:
            return result
        return result._replace(best=result.best._replace(params=jax.tree.map(jnp.copy, result.params)))

    def wait(self) -> None:
        """Wait until the current write is complete."""
        self._manager.wait_until_finished()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the manager. Errors in writing are raised by `wait`, not here."""
        with contextlib.suppress(Exception):
            self._manager.close()


def read_checkpoint(directory: Directory, epoch: int | None = None) -> Tree:
    """Read a checkpoint as nested dictionaries of NumPy arrays, without the code of the model.

    Args:
        directory: the directory of `fit(..., checkpoints=directory)`.
        epoch: the epoch of the checkpoint; None for the latest.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint cannot be read; the message lists older ones that can.
    """
    directory = _local("read_checkpoint: directory", directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"read_checkpoint: no directory {directory}")
    with _orbax().CheckpointManager(directory) as manager:
        steps = sorted(manager.all_steps())
        if not steps or (epoch is not None and epoch not in steps):
            which = "checkpoint" if epoch is None else f"checkpoint {epoch}"
            raise FileNotFoundError(f"read_checkpoint: no {which} in {directory}; has {steps}")
        chosen = steps[-1] if epoch is None else epoch
        try:
            arrays, about = _read(manager, chosen, directory)
        except _DamagedError as error:
            older = _older(manager, chosen, directory)
            hint = f"; read_checkpoint(directory, epoch={older[0]}) reads the newest of them" if older else ""
            raise ValueError(
                f"read_checkpoint: {error} Older checkpoints that can be read: {older or 'none'}{hint}."
            ) from None
    tree: Tree = {}
    for leaf, array in zip(about["leaves"], arrays, strict=True):
        inner = tree
        for name in leaf["path"][:-1]:
            inner = inner.setdefault(name, {})
        inner[leaf["path"][-1]] = np.asarray(array)
    return tree


# --- leaves and their description --------------------------------------------------------------------


def _is_key(x: Leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _as(old: Leaf, x: np.ndarray) -> Leaf:
    """An array from a file, converted to the kind (PRNG key, JAX or NumPy array) and the sharding of `old`."""
    if not isinstance(old, jax.Array):
        return x
    new = jnp.asarray(x)
    if _is_key(old):
        new = jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))
    return put(new, old.sharding) if isinstance(old.sharding, NamedSharding) else new


def _flat(tree: Tree) -> tuple[dict[str, Leaf], Description]:
    """The leaves by number, without empty leaves, which orbax rejects; and the description of all leaves."""
    leaves, described = {}, []
    for number, (path, leaf) in enumerate(tree_flatten_with_path(tree)[0]):
        x = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        names = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
        described.append({"name": keystr(path), "path": names, "shape": list(x.shape), "dtype": str(x.dtype)})
        if x.size:
            leaves[f"{number:06d}"] = x
    return leaves, {"leaves": described, "states": _names_of_states(tree)}


def _names_of_states(tree: Tree) -> list[str]:
    """The types of the NamedTuples in the tree, which distinguish optimizers with equal leaves."""
    if not isinstance(tree, tuple | list | dict):
        return []
    own = [type(tree).__name__] if hasattr(tree, "_fields") else []
    children = tree.values() if isinstance(tree, dict) else tree
    return own + [name for child in children for name in _names_of_states(child)]


class _DamagedError(Exception):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert errors of orbax, tensorstore and JSON to errors that the checkpoint is damaged."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 200 else f"{reason[:200]}..."
        raise _DamagedError(f"the checkpoint {path} is damaged: {type(error).__name__}: {reason}.") from None


def _read(manager: Any, epoch: int, folder: Path) -> tuple[list[np.ndarray], Description]:
    path, args = folder / str(epoch), _orbax().args
    if not (path / "about").is_dir():
        raise ValueError(f"{path} is not a checkpoint of paysage_jax: it has no directory 'about'")
    with _reading(path):
        about = manager.restore(epoch, args=args.Composite(about=args.JsonRestore())).about
        version = about["version"]
    if version > VERSION:
        raise ValueError(f"{path}: written by a newer paysage_jax (format {version})")
    with _reading(path):
        # Restore to NumPy arrays, so that the devices at the time of writing do not matter.
        leaves = [np.empty(leaf["shape"], jnp.dtype(leaf["dtype"])) for leaf in about["leaves"]]
        content = {f"{number:06d}": x for number, x in enumerate(leaves) if x.size}
        content |= manager.restore(epoch, args=args.Composite(leaves=args.StandardRestore(content))).leaves
    return [content.get(f"{number:06d}", x) for number, x in enumerate(leaves)], about


def _older(manager: Any, epoch: int, folder: Path) -> list[int]:
    """The checkpoints before `epoch` that can be read, the newest first."""
    found = []
    for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(Exception):
            if step < epoch and _read(manager, step, folder):
                found.append(step)
    return found


def _check(where: str, saved: Description, expected: Description, states: list[str]) -> None:
    """Raise ValueError if leaves or types of states differ, except for the leaves of metrics and early stopping."""
    old, new = ({leaf["name"]: leaf for leaf in described["leaves"]} for described in (saved, expected))
    for name in old | new:
        is_state = not name.startswith((".history", ".best"))
        if name not in old and is_state:
            raise ValueError(f"{where} has no leaf {name}, which this run has")
        if name not in new and is_state:
            raise ValueError(f"{where} has a leaf {name}, which this run does not have")
        rows = int(name.startswith(".history"))
        for what in ("dtype", "shape") if name in old and name in new else ():
            a, b = old[name][what], new[name][what]
            if a[rows:] != b[rows:] if what == "shape" else a != b:
                raise ValueError(f"{where}: {name} has {what} {a}, but in this run {b}")
    if (written := saved["states"][: len(states)]) != states:
        raise ValueError(f"{where} has the states {written}, but the optimizer of this run has {states}")
