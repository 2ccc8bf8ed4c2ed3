"""Count what makes the package easy or hard to read: `python -m tests.counts` prints it."""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

import paysage_jax

PACKAGE = Path(paysage_jax.__file__).parent


class Function(NamedTuple):
    """name: module and name; lines: of the body without its docstring; parameters: with those by keyword."""

    name: str
    lines: int
    parameters: int


def sources():
    """The text of each module, by its path in the package."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def functions():
    """Every function and method of the package."""
    for module, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                given = node.args
                parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                names = [p.arg for p in parameters if p is not None and p.arg not in ("self", "cls")]
                yield Function(f"{module}: {node.name}", lines, len(names))


def any_per_100_lines():
    """Occurrences of the name Any in code (not in strings and comments) per 100 lines."""
    count, lines = 0, 0
    for text in sources().values():
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        count += sum(token.type == tokenize.NAME and token.string == "Any" for token in tokens)
        lines += text.count("\n")
    return 100 * count / lines


def main():
    """Print the counts."""
    found = list(functions())
    fit = next(f for f in found if f.name == "_train/fit.py: fit")
    print(f"lines of the package: {sum(text.count(chr(10)) for text in sources().values())}")
    print(f"fit: {fit.parameters} parameters, a body of {fit.lines} lines")
    for what in ("lines", "parameters"):
        most = sorted((f for f in found if f is not fit), key=lambda f: -getattr(f, what))[:5]
        print(f"most {what}:", ", ".join(f"{f.name} {getattr(f, what)}" for f in most))
    print(f"names at the top level: {len(paysage_jax.__all__)}")
    print(f"Any per 100 lines: {any_per_100_lines():.1f}")
    print(f"checks: {len(re.findall(r'check_[a-z_]+[(]', ' '.join(sources().values())))} calls of check_*")


if __name__ == "__main__":
    main()
