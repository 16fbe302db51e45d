"""Every Python block of the README and of docs/ runs as it is written."""

import re
import textwrap
from pathlib import Path

import pytest
from pydantic_ai.models.test import TestModel

from tests.docs.code_blocks import Program, programs

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PROGRAMS = [program for page in PAGES for program in programs(page)]


@pytest.fixture(autouse=True)
def model_behind_a_name(monkeypatch):
    """Programs may name a provider's model; there is no key, so one answers that calls each tool and then says `done`."""
    monkeypatch.setattr("sojourn.agents.llm.models.infer_model", lambda name: TestModel(custom_output_text="done"))


@pytest.fixture
def databases(request, monkeypatch):
    """Gives a program an empty database of its own by the URL in its environment."""

    def give(name: str) -> None:
        server = request.getfixturevalue("postgres")
        database = f"docs_{re.sub('[^a-z0-9]', '_', name)}"
        server.psql(f"CREATE DATABASE {database}")
        monkeypatch.setenv("DATABASE_URL", server.url(database))

    return give


@pytest.mark.parametrize("program", PROGRAMS, ids=[p.name for p in PROGRAMS])
def test_program(program: Program, tmp_path, databases):
    if any("DATABASE_URL" in block.code for block in program.blocks):
        databases(program.name)
    program.run(tmp_path)


class TestTheHarness:
    @pytest.fixture
    def page(self, tmp_path):
        def write(text: str) -> Path:
            path = tmp_path / "page.md"
            path.write_text(textwrap.dedent(text).replace("'''", "```"), encoding="utf-8")
            return path

        return write

    def test_blocks_run_apart_unless_they_continue(self, page, tmp_path):
        first, second = programs(
            page("""
            '''python
            x = 1
            '''
            <!-- continue -->
            '''python
            assert x == 1
            '''
            '''python
            assert "x" not in globals()
            '''
            """)
        )
        assert len(first.blocks) == 2
        first.run(tmp_path)
        second.run(tmp_path)

    def test_await_at_the_top_shares_one_loop_with_what_continues(self, page, tmp_path):
        (program,) = programs(
            page("""
            '''python
            import asyncio
            queue = asyncio.Queue()
            task = asyncio.create_task(queue.get())
            await queue.put(1)
            '''

            <!-- continue -->
            '''python
            assert await task == 1
            async def numbers():
                yield 1
            async for number in numbers():
                assert number == 1
            '''
            """)
        )
        program.run(tmp_path)

    def test_plain_code_may_own_the_loop(self, page, tmp_path):
        (program,) = programs(
            page("""
            '''python
            import asyncio
            assert __name__ == "__main__"
            asyncio.run(asyncio.sleep(0))
            '''
            """)
        )
        program.run(tmp_path)

    def test_a_failure_points_at_the_page(self, page, tmp_path):
        path = page("""
            # Title

            '''python
            x = 1
            assert x == 2
            '''
            """)
        (program,) = programs(path)
        with pytest.raises(AssertionError) as caught:
            program.run(tmp_path)
        assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(path), 6)
        assert program.name == "page.md:5"

    def test_other_languages_and_no_run(self, page, tmp_path):
        (program,) = programs(
            page("""
            '''sh
            exit 1
            '''
            '''
            text
            '''
            '''pycon
            >>> 1
            '''
            '''python no-run
            raise SystemExit
            '''
            """)
        )
        program.run(tmp_path)

    def test_a_block_that_is_not_run_is_compiled(self, page, tmp_path):
        (program,) = programs(page("'''python no-run\nawait x +\n'''"))
        with pytest.raises(SyntaxError):
            program.run(tmp_path)

    def test_fences_inside_lists_and_inside_other_fences(self, page, tmp_path):
        (program,) = programs(
            page("""
            ~~~~markdown
            '''python
            raise AssertionError("not a program")
            '''
            ~~~~
            - a point
              '''python
              if True:
                  x = 1
              '''
            """)
        )
        assert program.blocks[0].code == "if True:\n    x = 1"
        program.run(tmp_path)

    @pytest.mark.parametrize("text", ["<!-- continue -->\n'''python\n1\n'''", "'''python\n1\n"])
    def test_broken_pages_are_refused(self, page, text):
        with pytest.raises(ValueError, match=r"nothing to continue|not closed"):
            programs(page(text))

    def test_a_program_runs_in_its_directory(self, page, tmp_path):
        (program,) = programs(
            page("""
            '''python
            open("made.txt", "w").close()
            '''
            """)
        )
        before = Path.cwd()
        program.run(tmp_path)
        assert (tmp_path / "made.txt").exists()
        assert Path.cwd() == before
