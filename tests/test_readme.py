"""The pages: every Python block runs as it stands, and the commands are the ones that CI runs."""

import doctest
import importlib
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^```\n(python3 .*)\n```$", README, re.MULTILINE)


def _pages():
    """Each page that has Python blocks, and these."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        if blocks and not {"_build", "_examples", "gallery"} & set(page.parts):
            yield pytest.param(page, blocks, id=page.relative_to(ROOT).as_posix())


@pytest.mark.parametrize(("page", "blocks"), list(_pages()))
def test_blocks_run_one_after_the_other(page, blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pictures and checkpoints of a page
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": page.stem}
    # As a user has it: without the stricter settings of the test suite.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for i, block in enumerate(blocks):
            exec(compile(block, f"{page.name} block {i}", "exec"), namespace)


def _documented():
    """Rooms with examples in their docstrings."""
    for path in sorted((ROOT / "paysage_jax").rglob("*.py")):
        if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("room", list(_documented()))
def test_examples_in_docstrings(room):
    failed, tried = doctest.testmod(importlib.import_module(room), optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed


def test_two_commands_of_one_line_each():
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert (ROOT / COMMANDS[0].split()[-1]).is_file()
    assert COMMANDS[1].endswith(".venv/bin/python -m pytest")


def test_files_named_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for name in re.findall(r"`(examples/\w+\.py)`", page.read_text()):
            assert (ROOT / name).is_file(), f"{page}: {name}"
