"""The result of `python -m build`: its contents, and that it works without the repository."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import paysage_jax

ROOT = Path(__file__).parent.parent
VERSION = paysage_jax.__version__


def run(*command, folder, **environment):
    done = subprocess.run(command, cwd=folder, env=environment or None, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder / f"paysage_jax-{VERSION}.tar.gz", folder / f"paysage_jax-{VERSION}-py3-none-any.whl"


def test_the_wheel_has_the_package_and_nothing_else(built):
    _, wheel = built
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"paysage_jax-{VERSION}.dist-info/"
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "paysage_jax").rglob("*.py")}
    expected = {f"{info}{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    assert names == package | {"paysage_jax/py.typed"} | expected


def test_only_jax_is_required(built):
    _, wheel = built
    metadata = zipfile.ZipFile(wheel).read(f"paysage_jax-{VERSION}.dist-info/METADATA").decode()
    required = [line for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE) if "extra ==" not in line]
    assert {re.match(r"\w+", line)[0] for line in required} == {"jax", "jaxlib"}


def test_the_source_distribution_is_small_and_has_what_tests_and_site_need(built):
    source, _ = built
    assert source.stat().st_size < 5_000_000
    with tarfile.open(source) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
    needed = ["README.md", "CHANGELOG.md", "LICENSE", "tests/conftest.py", "tests/golden/optimizers.npz"]
    needed += ["docs/conf.py", "docs/index.md", "docs/_static/katex/katex.min.js", "examples/rbm_digits.py"]
    assert set(needed) <= names
    assert not [name for name in names if re.match(r"docs/(_build|_examples|gallery)/|\.venv|shared/", name)]


def test_the_wheel_works_without_the_repository(built, tmp_path):
    _, wheel = built
    target = tmp_path / "target"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    run(sys.executable, *install, folder=tmp_path)
    program = "import paysage_jax as pj; print(pj.__file__, pj.__version__, pj.sgd(0.5).init({}))"
    path, version, state = run(sys.executable, "-c", program, folder=tmp_path, PYTHONPATH=str(target)).split(" ", 2)
    assert Path(path).is_relative_to(target)
    assert version == VERSION
    assert state.startswith("SgdState")


def test_the_version_is_one():
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == VERSION
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == VERSION


def test_the_hooks_of_a_commit_have_the_pinned_versions():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = re.findall(r'"((?:ruff|pyright)\S*==\S+)"', (ROOT / "pyproject.toml").read_text())
    assert len(pinned) == 2
    for requirement in pinned:
        assert f'["{requirement}"]' in hooks, requirement
