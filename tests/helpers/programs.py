"""Programs as users start them: their environment, output, pictures and errors."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tests.helpers.runs import HUNG

ROOT = Path(__file__).parents[2]


def start(*command, folder=ROOT, **environment):
    """The finished process of a Python command, warnings being errors as in the rest of the suite."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-W", "error", "-W", os.environ["PYTHONWARNINGS"], *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HUNG)


def run_as_command(name, *arguments, folder, **environment):
    """The finished process of an example."""
    return start(ROOT / "examples" / name, *arguments, folder=folder, **environment)


def run(example, folder, *arguments):
    """The output of the example; its picture must be a PNG with content in each quarter."""
    path = folder / "picture"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        example.main([*map(str, arguments), "--output", str(path)])
    assert_is_picture(path)
    return printed.getvalue()


def run_and_record(example, name, folder, *arguments):
    """The output of the example, and the arguments and result of every call of the named function."""
    function, calls = getattr(example, name), []

    def recording(*args):
        calls.append((args, function(*args)))
        return calls[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, name, recording)
        return run(example, folder, *arguments), calls


def assert_is_picture(path, height=300, contrast=0.05):
    """Check that a file is a PNG with content in each quarter."""
    assert path.read_bytes().startswith(b"\x89PNG")
    for part in np.array_split(imread(path, format="png")[..., :3], 4, axis=1):
        assert min(part.shape[:2]) > height
        assert part.std() > contrast


def assert_one_line(capsys, arguments, expected, example):
    """Check that the example ends with status 2 and one line on standard error that contains the expected words."""
    with pytest.raises(SystemExit) as exit_:
        example.main(arguments)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert re.fullmatch(r".*: error: .*\n", err)
    assert expected in err


def numbers(pattern, printed):
    """The groups of the pattern, as numbers."""
    return [float(x) for x in re.search(pattern, printed).groups()]
