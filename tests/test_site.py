"""The pages of the site before it is built: all public names are in the reference, all links have targets."""

import inspect
import re
import runpy
from pathlib import Path

import pytest

import paysage_jax as pj

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "_examples", "gallery"} & set(path.parts))
NAMESPACES = [
    pj,
    pj.classic,
    pj.optimizers,
    pj.rbm,
    pj.packing,
    pj.states,
    pj.extend,
    pj.paysage_0_2,
    pj.paysage_0_2.gradient_util,
    pj.paysage_0_2.optimizers,
    pj.paysage_0_2.schedules,
]


def public_names(module):
    """`__all__`, or the functions and classes that the module defines."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", [name for name in defined if not name.startswith("_")])


def names_in_the_reference():
    """The full names of all entries, with repetitions."""
    entries = []
    for page in (DOCS / "reference").glob("*.md"):
        module = ""
        for directive, argument in re.findall(r"^\.\. ([\w:]+):: (\S+)$", page.read_text(), re.MULTILINE):
            if directive in ("currentmodule", "automodule", "py:module"):
                module = argument
                entries += [argument] if directive != "currentmodule" else []
            elif re.match("auto|py:", directive):
                entries.append(f"{module}.{argument}")
    return entries


@pytest.mark.parametrize("module", NAMESPACES, ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module):
    entries = names_in_the_reference()
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    for name in public_names(module):
        value = getattr(module, name)
        full = value.__name__ if inspect.ismodule(value) else f"{module.__name__}.{name}"
        if full in entries:
            continue
        # Another name of a class that has an entry: `SGD`, or `pj.ADAM`.
        assert f"{value.__module__}.{value.__name__}" in entries, full
        assert f"`{name}`" in pages, full


def test_no_name_has_two_entries():
    entries = names_in_the_reference()
    assert [entry for entry in entries if entries.count(entry) > 1] == []


def test_entries_are_names():
    for entry in set(names_in_the_reference()) - {pj.__name__}:
        value = pj
        for name in entry.split(".")[1:]:
            value = getattr(value, name)


def links(page):
    """Relative targets of the links and pictures of a page, without its code."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^:link: (\S+)$", text, re.MULTILINE)
    return [link.split("#")[0] for link in found if not re.match(r"\w+:|#", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_have_targets(page):
    for link in links(page):
        program = re.fullmatch(r"(?:\.\./)*gallery/(\w+)(?:\.rst|\.md|\.html)?", link)
        target = ROOT / "examples" / f"{program[1]}.py" if program and program[1] != "index" else page.parent / link
        exists = (
            target.exists() or target.with_suffix(".md").exists() or link.removesuffix(".rst").endswith("gallery/index")
        )
        assert exists, link


def toctree(page):
    """The pages that are named in the toctrees of a page."""
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                name = re.sub(r".*<(.*)>", r"\1", line).removesuffix(".md")
                yield (page.parent / f"{name}.md").resolve()


def test_every_page_is_in_a_toctree_and_every_entry_is_a_page():
    entries = [entry for page in PAGES for entry in toctree(page)]
    assert len(entries) == len(set(entries))
    assert set(entries) - {DOCS / "gallery" / "index.md"} == set(PAGES) - {DOCS / "index.md"}


def test_every_example_is_in_the_gallery():
    programs = re.findall(r'^    "(\w+)": \(', (DOCS / "_gallery.py").read_text(), re.MULTILINE)
    assert {*programs, "digits", "shared"} == {path.stem for path in (ROOT / "examples").glob("*.py")}


def test_the_list_for_language_models_names_pages():
    named = re.findall(r"\]\((\S+)\.html\)", (DOCS / "llms.txt").read_text())
    assert named
    for name in named:
        assert (DOCS / f"{name}.md").exists() or name.startswith("gallery/"), name


def test_the_diagrams_are_those_that_the_script_draws():
    diagrams = runpy.run_path(str(DOCS / "_diagrams.py"))["DIAGRAMS"]
    assert {path.stem for path in (DOCS / "pictures").glob("*.svg")} == set(diagrams)
    pages = "".join(page.read_text() for page in PAGES)
    for name, draw in diagrams.items():
        assert (DOCS / "pictures" / f"{name}.svg").read_text() == draw(), "run python docs/_diagrams.py"
        assert f"pictures/{name}.svg)" in pages
