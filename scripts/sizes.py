"""Prints the longest modules and functions of the package: information for the author, no threshold."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHOWN = 10


def functions(node: ast.AST, scope: str = "") -> Iterator[tuple[int, str]]:
    """The lines and the qualified name of each function below `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{scope}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield (child.end_lineno or child.lineno) - child.lineno + 1, name
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, scope)


def show(title: str, rows: list[tuple[int, str]]) -> None:
    """Prints the largest rows and the median."""
    rows.sort(reverse=True)
    print(f"{title}: {len(rows)}, median {rows[len(rows) // 2][0]} lines")
    for lines, name in rows[:SHOWN]:
        print(f"{lines:6} {name}")


def main() -> None:
    """Reads src/ and prints."""
    modules: list[tuple[int, str]] = []
    found: list[tuple[int, str]] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT / "src"))
        modules.append((text.count("\n"), name))
        found.extend((lines, f"{name}:{function}") for lines, function in functions(ast.parse(text)))
    show("modules", modules)
    show("functions", found)


if __name__ == "__main__":
    main()
