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


EXAMPLES = {
    "_base": ["chain"],
    "_estimators": ["contrastive_divergence", "persistent_contrastive_divergence", "loss_gradient"],
    "_fit": ["fit"],
    "_tempering": ["parallel_tempering"],
    "_textbook": ["adam"],
    "optimizers": ["StochasticGradientDescent", "Momentum", "RMSProp", "ADAM"],
}


@pytest.mark.parametrize("room", EXAMPLES)
def test_examples_of_docstrings(room):
    module = importlib.import_module(f"paysage_jax.{room}")
    for name in EXAMPLES[room]:
        assert ">>>" in getattr(module, name).__doc__, name
    failed, _ = doctest.testmod(module)
    assert not failed


def test_two_blocks_of_python_are_only_shown():
    """NetKet turns on 64 bits for the whole process, and blackjax is not installed."""
    shown = [
        block
        for path in PAGES
        for block in re.findall(r"^```text\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        if "import " in block
    ]
    assert [block.splitlines()[0] for block in shown] == ["import netket as nk", "import blackjax"]


def test_there_are_blocks():
    assert len(BLOCKS["README.md"]) >= 2
    assert len(BLOCKS["CONTRIBUTING.md"]) >= 1
    assert len([page for page, blocks in BLOCKS.items() if blocks]) >= 2


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
