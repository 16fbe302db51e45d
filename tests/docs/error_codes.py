"""Finds the error codes in the package's source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent / "src" / "sojourn"
_TAKES_CODE_FIRST = ("RunError", "_Meaning")
CODE = re.compile(r"[a-z]+(_[a-z]+)*(\.[a-z]+(_[a-z]+)*)?")


def codes_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The codes in a tree, each with the name of what is given it.

    These are `Class(…, code="…")`, `RunError("…", …)` and what else takes the code first, and `default_code = "…"` in the body of a class.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.Assign | ast.AnnAssign) and "default_code" in _targets(statement):
                    yield from ((code, node.name) for code in _constants(statement.value))
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if name in _TAKES_CODE_FIRST:
                values += node.args[:1]
            yield from ((code, name) for value in values for code in _constants(value))


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _constants(value: ast.AST | None) -> Iterator[str]:
    """The texts that an expression may be: itself, or the two sides of a condition."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from _constants(value.body)
        yield from _constants(value.orelse)


def codes_in_source() -> dict[str, set[tuple[str, str]]]:
    """All codes, each with (module, what is given it); `sojourn.testing`, which raises on purpose, is left out."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).as_posix()
        if not module.startswith("testing/"):
            for code, name in codes_of(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(code, set()).add((module, name))
    return found
