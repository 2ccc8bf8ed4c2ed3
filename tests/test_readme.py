"""The code of README, CONTRIBUTING, the pages of docs/ and docstrings runs as written."""

import doctest
import importlib
import re
import tomllib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MADE = {"_build", "_examples", "gallery"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if not MADE & set(path.parts))
BLOCKS = {
    path.relative_to(ROOT).as_posix(): re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    for path in PAGES
}
INTEGRATIONS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["integrations"]
COMMANDS = re.findall(r"^```\n(python3 .*)\n```$", README, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    # As a user has it: without the stricter settings of the test suite.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for i, block in enumerate(BLOCKS[page]):
            try:
                exec(compile(block, f"{page} block {i}", "exec"), namespace)
            except ModuleNotFoundError as error:
                if error.name not in INTEGRATIONS:
                    raise
                pytest.skip(f"{page} needs {error.name}: pip install -e '.[integrations]'")


EXAMPLES = {
    "_optim.transformation": ["chain"],
    "_ebm.estimators": ["contrastive_divergence", "persistent_contrastive_divergence", "loss_gradient"],
    "_train.fit": ["fit"],
    "_ebm.tempering": ["parallel_tempering"],
    "_ebm.model": ["Model"],
    "_optim.textbook": ["adam"],
    "rbm.machine": ["RBM"],
    "rbm.standardize": ["standardize"],
    "rbm.units": ["Unit"],
    "optimizers": ["StochasticGradientDescent", "Momentum", "RMSProp", "ADAM"],
}


@pytest.mark.parametrize("room", EXAMPLES)
def test_examples_of_docstrings(room):
    module = importlib.import_module(f"paysage_jax.{room}")
    for name in EXAMPLES[room]:
        assert ">>>" in getattr(module, name).__doc__, name
    failed, _ = doctest.testmod(module)
    assert not failed


def test_five_blocks_of_python_are_only_shown():
    """NetKet enables 64 bits for the whole process, and the other libraries are not installed."""
    shown = [
        block
        for path in PAGES
        for block in re.findall(r"^```text\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        if "import " in block
    ]
    imports = ["import netket as nk", "import blackjax", "import torch", "import grain", "import pandas"]
    assert [block.splitlines()[0] for block in shown] == imports


def test_there_are_blocks():
    assert len(BLOCKS["README.md"]) >= 2
    assert len(BLOCKS["CONTRIBUTING.md"]) >= 1
    assert len([page for page, blocks in BLOCKS.items() if blocks]) >= 2


def test_commands_of_one_line_each():
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert (ROOT / COMMANDS[0].split()[-1]).is_file()
    assert COMMANDS[1].endswith(".venv/bin/python -m pytest")
    assert COMMANDS[2].endswith(".venv/bin/sphinx-build -W -b html docs docs/_build")


def test_files_named_exist():
    for name in re.findall(r"`(examples/\w+\.py)`", README):
        assert (ROOT / name).is_file(), name
