"""Writes docs/app.schema.json, the JSON schema of configs for editors, from `sojourn.builder.schema`.

Usage: python scripts/app_schema.py [--check]

With --check nothing is written; it fails if the file differs from what an `app.yaml` may say.
"""

import json
import sys
from pathlib import Path

from sojourn.builder.editor import editor_schema

FILE = Path(__file__).parent.parent / "docs" / "app.schema.json"


def rendered() -> str:
    """The file as it should be."""
    return json.dumps(editor_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Writes the file, or checks it; returns the exit status."""
    if arguments == ["--check"]:
        differs = not FILE.exists() or FILE.read_text(encoding="utf-8") != rendered()
        if differs:
            print(f"{FILE} differs from sojourn.builder.schema; run `make docs`", file=sys.stderr)
        return int(differs)
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    FILE.write_text(rendered(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
