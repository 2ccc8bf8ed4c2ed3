"""The README: every Python block runs as it stands, and its commands are the ones that CI runs."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```\n(python3 .*)\n```$", README, re.MULTILINE)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_block_runs(block):
    # As a user has it: without the stricter settings of the test suite.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(BLOCKS[block], f"README block {block}", "exec"), {"__name__": "readme"})


def test_there_are_blocks():
    assert len(BLOCKS) >= 4


def test_two_commands_of_one_line_each():
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert (ROOT / COMMANDS[0].split()[-1]).is_file()
    assert COMMANDS[1].endswith(".venv/bin/python -m pytest")


def test_files_named_exist():
    for name in re.findall(r"`(examples/\w+\.py)`", README):
        assert (ROOT / name).is_file(), name
