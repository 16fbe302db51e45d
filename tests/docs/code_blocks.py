"""Reads the Python programs out of a Markdown page and runs them.

```python                 a program of its own: fresh names, fresh working directory
```python no-run          compiled, not run
<!-- continue -->         the next block goes on where the program before it stopped
"""

import ast
import asyncio
import contextlib
import inspect
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
CONTINUE = "<!-- continue -->"


@dataclass
class Block:
    """One fenced block; `line` is the number of its first line of code in the page."""

    page: Path
    line: int
    code: str

    def compiled(self) -> CodeType:
        """The code, with errors at the page's own lines; `await` is allowed at the top."""
        source = "\n" * (self.line - 1) + self.code
        return compile(source, str(self.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@dataclass
class Program:
    """Blocks that share their names."""

    blocks: list[Block] = field(default_factory=list)
    no_run: bool = False

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.blocks[0].page.name}:{self.blocks[0].line}"

    def run(self, directory: Path) -> None:
        """Runs the blocks in `directory` one after the other, awaiting ones on one event loop."""
        codes = [block.compiled() for block in self.blocks]
        if self.no_run:
            return
        names: dict[str, Any] = {"__name__": "__main__"}
        with contextlib.chdir(directory), asyncio.Runner() as runner:
            for code in codes:
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    runner.run(result)


def programs(page: Path) -> list[Program]:
    """The Python programs of a page.

    Raises:
        ValueError: A `<!-- continue -->` follows no program, or a block is not closed.
    """
    found: list[Program] = []
    goes_on = False
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if line.strip() == CONTINUE:
            goes_on = True
            continue
        opening = FENCE.match(line)
        if opening is None:
            continue
        code: list[str] = []
        for _, inner in lines:
            if inner.strip() == opening["fence"]:
                break
            code.append(inner)
        else:
            raise ValueError(f"{page}:{number}: the block is not closed")
        info = opening["info"].split()
        if info[:1] != ["python"]:
            continue
        block = Block(page, number + 1, textwrap.dedent("\n".join(code)))
        if not goes_on:
            found.append(Program([block], no_run="no-run" in info))
        elif found:
            found[-1].blocks.append(block)
        else:
            raise ValueError(f"{page}:{number}: nothing to continue")
        goes_on = False
    return found
