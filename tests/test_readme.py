"""README and CONTRIBUTING: every Python block runs as it stands, and the commands are the ones that CI runs."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = {
    f"{name} {i}": block
    for name in ("README", "CONTRIBUTING")
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```$", (ROOT / f"{name}.md").read_text(), re.M | re.S))
}
COMMANDS = re.findall(r"^```\n(python3 .*)\n```$", README, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block):
    # As a user has it: without the stricter settings of the test suite.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(BLOCKS[block], block, "exec"), {"__name__": "readme"})


def test_there_are_blocks():
    assert len([name for name in BLOCKS if name.startswith("README")]) >= 4
    assert "CONTRIBUTING 0" in BLOCKS


def test_two_commands_of_one_line_each():
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert (ROOT / COMMANDS[0].split()[-1]).is_file()
    assert COMMANDS[1].endswith(".venv/bin/python -m pytest")


def test_files_named_exist():
    for name in re.findall(r"`(examples/\w+\.py)`", README):
        assert (ROOT / name).is_file(), name
