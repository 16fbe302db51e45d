"""R7: the start and the end of every run are one structured log line each and a span, without code in the agent."""

import asyncio
import logging
import subprocess
import sys

import pytest

from sojourn.agents.function import agent
from sojourn.run.config import RunConfig
from sojourn.testing.loop import for_seeds
from tests.runner.support import APP, SESSION, USER, idle, make_runner, outcome_of


class Lines(logging.Handler):
    def __init__(self):
        super().__init__(logging.INFO)
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def lines():
    handler, logger = Lines(), logging.getLogger("sojourn.run")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.records
    logger.removeHandler(handler)
    logger.setLevel(before)


@agent
async def helper(ctx):
    """Ends as its message says."""
    match ctx.user_content.text:
        case "fail":
            raise ValueError("secret")
        case "hang":
            await asyncio.Event().wait()
        case "ask":
            await ctx.ask("q", "?")
        case _:
            return "done"


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("hi", "completed", None),
        ("fail", "failed", "agent.failed"),
        ("hang", "failed", "run.timeout"),
        ("ask", "waiting", None),
    ],
)
def test_a_line_at_the_start_and_one_at_the_end(lines, message, status, code):
    @for_seeds(1)
    async def case():
        runner = make_runner(helper, run_config=RunConfig(timeout=5))
        run = await runner.start(USER, SESSION, message)
        await outcome_of(run)
        await idle()
        infos = [r for r in lines if r.levelno == logging.INFO]
        assert [r.getMessage() for r in infos] == ["run started", f"run {status}"]
        for record in infos:
            assert (record.run_id, record.app_name, record.user_id, record.session_id, record.attempt) == (
                run.id, APP, USER, SESSION, 1,
            )  # fmt: skip
        assert infos[1].status == status
        assert getattr(infos[1], "error_code", None) == code
        assert infos[1].seconds == (5 if message == "hang" else 0)

    case()


def test_the_operators_log_has_the_stack_of_a_failure(lines):
    @for_seeds(1)
    async def case():
        await outcome_of(await make_runner(helper).start(USER, SESSION, "fail"))
        errors = [r for r in lines if r.levelno == logging.ERROR]
        assert len(errors) == 1
        assert isinstance(errors[0].exc_info[1], ValueError)

    case()


PROGRAM = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sojourn import Runner, SojournError, agent

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

@agent
async def helper(ctx):
    with trace.get_tracer("mine").start_as_current_span("inside"):
        await asyncio.sleep(0)
    if ctx.user_content.text == "fail":
        raise ValueError("secret")
    return "done"

async def main():
    runner = Runner(app_name="app", agent=helper)
    with trace.get_tracer("mine").start_as_current_span("request"):
        await (await runner.start("alice", "s1", "hi", run_id="r1")).result()
    try:
        await (await runner.start("alice", "s1", "fail", run_id="r2")).result()
    except SojournError:
        pass
    await runner.close()

asyncio.run(main())
spans = exporter.get_finished_spans()
by_id = {s.context.span_id: s for s in spans}
for s in spans:
    if s.name.startswith("store "):
        continue
    parent = by_id[s.parent.span_id].name if s.parent else None
    a = s.attributes
    print(s.name, parent, a.get("sojourn.run.id"), a.get("user.id"), a.get("gen_ai.conversation.id"), a.get("sojourn.run.status"), a.get("error.type"))
"""


def test_a_span_around_every_run_below_the_callers():
    pytest.importorskip("opentelemetry.sdk")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "inside invoke_agent helper None None None None None",
        "invoke_agent helper request r1 alice s1 completed None",
        "request None None None None None None",
        "inside invoke_agent helper None None None None None",
        "invoke_agent helper None r2 alice s1 failed agent.failed",
    ]
