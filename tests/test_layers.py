"""Modules import from their own layer and from lower ones, never in a circle; public names are listed."""

import ast
import graphlib
import inspect
import pydoc
from pathlib import Path

import paysage_jax

PACKAGE = Path(paysage_jax.__file__).parent
LAYERS = ["_core", "_optim", "_ebm", "_train", "public"]  # lowest first; public: every module outside the four folders
MODULES = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")]


def layer_of(module):
    folder = module.split("/")[0]
    return LAYERS.index(folder if folder in LAYERS else "public")


def imports_of(module):
    """The modules of the package that a module imports from, anywhere in its source."""
    path = PACKAGE / f"{module}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("paysage_jax") for alias in node.names), ast.unparse(node)
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = path.parents[node.level - 1]
        names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            target = folder.joinpath(*name.split("."))
            yield (target / "__init__" if target.is_dir() else target).relative_to(PACKAGE).as_posix()


def test_a_module_imports_from_its_own_layer_and_from_lower_ones():
    upward = [f"{a} imports {b}" for a in MODULES for b in imports_of(a) if layer_of(a) < layer_of(b)]
    assert upward == []


def test_no_two_modules_import_each_other():
    graph = {module: set(imports_of(module)) for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_public_names_are_listed():
    """Every name without an underscore."""
    exported = {name for name in vars(paysage_jax) if not name.startswith("_")}
    assert set(paysage_jax.__all__) == exported
    assert len(set(paysage_jax.__all__)) == len(paysage_jax.__all__)


def test_help_lists_every_public_name_with_its_summary():
    text = pydoc.plain(pydoc.render_doc(paysage_jax))
    for name in paysage_jax.__all__:
        assert name in text
        value = getattr(paysage_jax, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value).splitlines()[0] in text, name
