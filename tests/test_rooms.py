"""The plan of the house: rooms import from the ground upward, and what is public is listed and documented."""

import ast
import inspect
import pydoc
from pathlib import Path

import paysage_jax

PACKAGE = Path(paysage_jax.__file__).parent
ROOMS = [  # ground floor first
    "_pytree",
    "_trees",
    "_base",
    "_leafwise",
    "_packing",
    "_schedules",
    "_textbook",
    "classic",
    "_transforms",
    "_wrappers",
    "_groups",
    "_centering",
    "_convergence",
    "_data",
    "_sharding",
    "_processes",
    "_placement",
    "_phases",
    "_domain",
    "_estimators",
    "_tempering",
    "_annealing",
    "_likelihood",
    "_metrics",
    "_checkpoints",
    "_interrupts",
    "_training",
    "_loop",
    "_fit",
    "rbm",
    "_host",
    "optimizers",
    "paysage_0_2/schedules",
    "paysage_0_2/gradient_util",
    "paysage_0_2/optimizers",
    "paysage_0_2/__init__",
    "__init__",
]


def imported_rooms(room):
    """The rooms that a module imports from, wherever in it the import stands."""
    path = PACKAGE / f"{room}.py"
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


def test_every_module_is_a_room():
    assert {p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py")} == set(ROOMS)


def test_a_room_imports_only_from_the_ground_upward():
    upward = [
        f"{room} imports {other}"
        for i, room in enumerate(ROOMS)
        for other in imported_rooms(room)
        if other not in ROOMS[:i]
    ]
    assert upward == []


def test_no_room_is_larger_than_400_lines():
    lines = {room: len((PACKAGE / f"{room}.py").read_text().splitlines()) for room in ROOMS}
    assert {room: count for room, count in lines.items() if count > 400} == {}


def test_what_is_public_is_listed():
    """All that has no underscore, but for the modules in which it is written."""
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
