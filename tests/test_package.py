"""The result of `python -m build`: its contents, and that it works without the repository."""

import re
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

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


# --- continuous integration --------------------------------------------------------------------------


def workflow(name):
    """A file of GitHub Actions; YAML 1.1 reads its key `on` as True."""
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())


def test_ci_runs_the_script_on_every_python_that_is_supported():
    (job,) = workflow("ci.yml")["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert oldest == f">={pythons[0]}"
    assert pythons == [f"3.{minor}" for minor in range(11, 11 + len(pythons))]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    # Both ends of jax, in every one of them.
    script = (ROOT / ".ci/run").read_text()
    assert '"jax==$oldest"' in script
    assert "environment ../newest" in script
    assert stat.S_IXUSR & (ROOT / ".ci/run").stat().st_mode


def test_a_release_is_tested_and_only_then_published_without_a_password():
    release = workflow("release.yml")
    assert release[True] == {"release": {"types": ["published"]}}
    assert release["permissions"] == {"contents": "read"}
    test, publish = release["jobs"]["test"], release["jobs"]["publish"]
    assert publish["needs"] == "test"
    runs = [step["run"] for step in test["steps"] if "run" in step]
    assert runs[0] == ".ci/run"
    assert "permissions" not in test  # no step that runs code of ours may ask for an identity
    assert publish["permissions"] == {"id-token": "write"}
    download, upload = publish["steps"]
    assert download["with"]["path"] == "dist"  # where the next step looks for it
    assert upload["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert upload["with"] == {"attestations": True}
    assert "password" not in (ROOT / ".github/workflows/release.yml").read_text().replace("no password", "")
    # What the script leaves is what is uploaded.
    assert test["steps"][-1]["with"]["path"] == ".ci/work/copy/dist"
    script = (ROOT / ".ci/run").read_text()
    assert "python -m build\n" in script
    assert "twine check --strict dist/*\n" in script
