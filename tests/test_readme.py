"""README and CONTRIBUTING: every Python block runs as it stands, and the commands are the ones that CI runs."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```$", (ROOT / f"{name}.md").read_text(), re.MULTILINE | re.DOTALL)
    for name in ("README", "CONTRIBUTING")
}
COMMANDS = re.findall(r"^```\n(python3 .*)\n```$", README, re.MULTILINE)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_run_one_after_the_other(name):
    namespace = {"__name__": "readme"}
    # As a user has it: without the stricter settings of the test suite.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for i, block in enumerate(BLOCKS[name]):
            exec(compile(block, f"{name} block {i}", "exec"), namespace)


def test_there_are_blocks():
    assert len(BLOCKS["README"]) >= 7
    assert len(BLOCKS["CONTRIBUTING"]) >= 1


def test_two_commands_of_one_line_each():
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert (ROOT / COMMANDS[0].split()[-1]).is_file()
    assert COMMANDS[1].endswith(".venv/bin/python -m pytest")


def test_files_named_exist():
    for name in re.findall(r"`(examples/\w+\.py)`", README):
        assert (ROOT / name).is_file(), name
