"""Spans and measurements by the GenAI conventions; whatever becomes of them, runs go on."""

import asyncio
import logging
import threading

import pytest
from opentelemetry import metrics, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sojourn import telemetry
from sojourn.agents.function import agent
from sojourn.agents.llm.agent import LlmAgent
from sojourn.agents.llm.tool import tool
from sojourn.agents.workflow import ParallelAgent
from sojourn.errors import Unavailable
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.memory.types import Memory
from sojourn.run.status import RunStatus
from sojourn.runner.observe import Observer
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, ScriptedModel
from tests.memory.embedders import WordEmbedder
from tests.runner.support import APP, SESSION, USER, idle, make_runner, outcome_of

pytestmark = pytest.mark.anyio


class Spans:
    def __init__(self, monkeypatch):
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: self._provider)

    @property
    def all(self):
        return self._exporter.get_finished_spans()

    def named(self, name):
        return [s for s in self.all if s.name == name]

    def tree(self):
        """The spans as names below names, in the order in which they began."""
        children = {}
        for span in sorted(self.all, key=lambda s: s.start_time):
            children.setdefault(span.parent.span_id if span.parent else None, []).append(span)

        def below(id_):
            return [(s.name, below(s.context.span_id)) for s in children.get(id_, ())]

        return below(None)


@pytest.fixture
def spans(monkeypatch):
    return Spans(monkeypatch)


@pytest.fixture
def measured(monkeypatch):
    """Gives what was measured: (name, attributes) -> (count, sum)."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)

    def read():
        data = reader.get_metrics_data()
        points = [
            (m.name, p) for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics for p in m.data.data_points
        ]
        return {(name, frozenset(p.attributes.items())): (p.count, p.sum) for name, p in points}

    yield read
    provider.shutdown()


@tool
def look_up(word: str) -> str:
    """Looks up."""
    if word == "broken":
        raise RuntimeError("the password is 1234")
    return f"{word} is a secret"


def helper(word="lamp"):
    model = ScriptedModel(Calls("look_up", {"word": word}), "That is all.")
    return LlmAgent(name="helper", model=model, instruction="Help.", tools=[look_up])


# -- spans --------------------------------------------------------------------------------------------------------------


def test_an_llm_agents_run(spans):
    @for_seeds(1)
    async def case():
        runner = make_runner(helper())
        runner.add_observer(noting)
        run = await runner.start(USER, SESSION, "What is a lamp?", run_id="r1")
        await run.result()
        await idle()

    noting = Noting()
    case()
    [submit, invoke] = spans.tree()
    assert submit == ("store submit", [])
    name, below = invoke
    assert name == "invoke_agent helper"
    done = [name for name, _ in below]
    assert [n for n in done if n != "store append"] == ["chat scripted", "execute_tool look_up", "chat scripted"]
    assert done.count("store append") == noting.told.count(("append", None)) > 2
    [span] = spans.named("invoke_agent helper")
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "helper",
        "gen_ai.conversation.id": SESSION,
        "sojourn.run.id": "r1",
        "sojourn.app.name": APP,
        "sojourn.run.attempt": 1,
        "sojourn.run.status": "completed",
        "user.id": USER,
    }
    chat = spans.named("chat scripted")[0]
    assert chat.kind is trace.SpanKind.CLIENT
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.request.model"] == "scripted"
    assert chat.attributes["gen_ai.usage.input_tokens"] > 0
    [call] = spans.named("execute_tool look_up")
    assert call.attributes["gen_ai.tool.name"] == "look_up"
    assert call.attributes["gen_ai.tool.call.id"]
    assert call.status.is_unset


def _told(spans):
    return " ".join(str(dict(span.attributes)) + str(span.status.description) + str(span.events) for span in spans.all)


@pytest.mark.parametrize("asked", [False, True])
def test_what_was_said_is_told_only_if_asked_for(spans, monkeypatch, asked):
    if asked:
        monkeypatch.setenv(telemetry.CONTENT, "true")

    @for_seeds(1)
    async def case():
        await (await make_runner(helper()).start(USER, SESSION, "What is a lamp?")).result()

    case()
    told = _told(spans)
    for content in ("What is a lamp?", "lamp is a secret", "That is all.", "Help."):
        assert (content in told) is asked, content


def test_errors_are_told_by_their_type_alone(spans):
    @agent
    async def failing(ctx):
        await ctx.step("key", lambda: 1 / 0)

    @for_seeds(1)
    async def case():
        await outcome_of(await make_runner(failing).start(USER, SESSION, "go"))
        await outcome_of(await make_runner(helper("broken")).start(USER, "s2", "go"))

    case()
    [step] = spans.named("step")
    assert step.attributes["error.type"] == "ZeroDivisionError"
    [invoke] = spans.named("invoke_agent failing")
    assert (invoke.attributes["error.type"], invoke.status.description) == ("agent.failed", "agent.failed")
    [call] = spans.named("execute_tool look_up")
    assert call.attributes["error.type"] == "tool.failed"
    assert "division" not in _told(spans)
    assert "1234" not in _told(spans)


def test_agents_inside_of_others_have_spans_of_their_own(spans):
    @agent
    async def one(ctx):
        return "1"

    @agent(sub_agents=[one])
    async def handing(ctx):
        ctx.transfer_to("one")

    @agent
    async def two(ctx):
        return "2"

    @for_seeds(1)
    async def case():
        await (await make_runner(handing).start(USER, SESSION, "go")).result()
        both = ParallelAgent(name="both", sub_agents=[two])
        await (await make_runner(both).start(USER, SESSION, "go")).result()

    case()
    below = {name: [n for n, _ in inner] for name, inner in spans.tree()}
    assert "invoke_agent one" in below["invoke_agent handing"]
    assert "invoke_agent two" in below["invoke_agent both"]


def test_what_waits_has_a_span_for_it(spans):
    first = asyncio.Event()

    @agent
    async def slow(ctx):
        if ctx.user_content.text == "first":
            await first.wait()
        return "done"

    @for_seeds(1)
    async def case():
        runner = make_runner(slow)
        with trace.get_tracer_provider().get_tracer("mine").start_as_current_span("request"):
            one = await runner.start(USER, SESSION, "first")
            two = await runner.start(USER, SESSION, "second", run_id="r2")
        await asyncio.sleep(5)
        first.set()
        await one.result()
        await two.result()

    case()
    [queued] = spans.named("queue")
    assert queued.end_time - queued.start_time == pytest.approx(5e9, rel=0.01)
    assert queued.attributes["sojourn.run.id"] == "r2"
    [request] = spans.named("request")
    assert queued.parent.span_id == request.context.span_id
    assert {s.context.trace_id for s in spans.all} == {request.context.trace_id}


def test_a_call_out_carries_the_trace(spans):
    headers = {}

    @agent
    async def caller(ctx):
        await ctx.step("call", lambda: propagate.inject(headers))

    @for_seeds(1)
    async def case():
        await (await make_runner(caller).start(USER, SESSION, "go")).result()

    case()
    [step] = spans.named("step")
    assert (
        headers["traceparent"] == f"00-{step.context.trace_id:032x}-{step.context.span_id:016x}-{step.context.trace_flags:02x}"
    )


def test_what_an_earlier_attempt_did_is_not_told_again(spans):
    @agent
    async def asker(ctx):
        await ctx.step("once", lambda: 1)
        return await ctx.ask("q", "?")

    @for_seeds(1)
    async def case():
        runner = make_runner(asker)
        run = await runner.start(USER, SESSION, "go")
        await run.wait()
        [question] = await run.interrupts()
        await (await runner.answer(run.id, question.id, "yes")).result()

    case()
    assert len(spans.named("step")) == 1
    assert [s.attributes["sojourn.run.status"] for s in spans.named("invoke_agent asker")] == ["waiting", "completed"]


# -- measurements -------------------------------------------------------------------------------------------------------


def test_measurements_by_the_conventions(spans, measured):
    @for_seeds(1)
    async def case():
        await (await make_runner(helper()).start(USER, SESSION, "What is a lamp?")).result()

    case()
    found = measured()
    counts = {}
    for (name, attributes), (count, _) in found.items():
        counts[name] = counts.get(name, 0) + count
        assert USER not in dict(attributes).values()
        assert SESSION not in dict(attributes).values()
    assert counts["gen_ai.client.operation.duration"] == 2
    assert counts["gen_ai.client.token.usage"] == 4
    assert counts["gen_ai.execute_tool.duration"] == 1
    assert counts["gen_ai.invoke_agent.duration"] == 1


# -- exporters ----------------------------------------------------------------------------------------------------------


class Failing(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("no room")

    def on_end(self, span):
        raise RuntimeError("no network")


def test_a_processor_that_fails_touches_no_run(monkeypatch, caplog):
    provider = TracerProvider()
    provider.add_span_processor(Failing())
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(telemetry, "_has_failed", False)

    @for_seeds(3)
    async def case():
        run = await make_runner(helper()).start(USER, SESSION, "What is a lamp?")
        assert await run.result() == "That is all."
        assert run.status is RunStatus.COMPLETED

    case()
    assert len([r for r in caplog.records if r.name == "sojourn.telemetry"]) == 1


class Stuck(SpanExporter):
    def __init__(self):
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def export(self, spans):
        self.reached.set()
        self.go_on.wait()
        return SpanExportResult.FAILURE


async def test_an_exporter_that_does_not_answer_touches_no_run(monkeypatch):
    exporter = Stuck()
    provider = TracerProvider()
    provider.add_span_processor(
        BatchSpanProcessor(exporter, schedule_delay_millis=1, max_queue_size=8, max_export_batch_size=4)
    )
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    runner = make_runner(helper())
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        async with runner:
            for n in range(20):
                assert await (await make_runner(helper()).start(USER, f"s{n}", "What is a lamp?")).result() == "That is all."
            assert await asyncio.to_thread(exporter.reached.wait, 30)
            assert await (await make_runner(helper()).start(USER, "last", "What is a lamp?")).result() == "That is all."
    finally:
        exporter.go_on.set()
        provider.shutdown()
        logging.getLogger("opentelemetry").setLevel(logging.NOTSET)


# -- observers ----------------------------------------------------------------------------------------------------------


class Noting(Observer):
    def __init__(self):
        self.told = []

    def run_started(self, record, waited):
        self.told.append(("started", record.id, waited))

    def run_ended(self, record, seconds):
        self.told.append((record.status.value, record.id, seconds))

    def events_stored(self, record, count):
        self.told.append(("events", record.id, count))

    def store_called(self, operation, seconds, error):
        self.told.append((operation, type(error).__name__ if error else None))


class Broken(Observer):
    def run_started(self, record, waited):
        raise RuntimeError("broken")

    run_ended = events_stored = store_called = run_started


@agent
async def speaker(ctx):
    yield "one"
    match ctx.user_content.text:
        case "ask":
            await ctx.ask("q", "?")
        case "fail":
            raise ValueError
        case "wait":
            await asyncio.sleep(5)


@pytest.mark.parametrize(("message", "status"), [("go", "completed"), ("fail", "failed"), ("ask", "waiting")])
def test_observers_are_told_what_happens(message, status):
    @for_seeds(2)
    async def case():
        noting = Noting()
        runner = make_runner(speaker)
        for observer in (Broken(), noting, noting):
            runner.add_observer(observer)
        await outcome_of(await runner.start(USER, SESSION, message, run_id="r1"))
        await idle()
        events = [e for e in noting.told if e[0] == "events"]
        rest = [e for e in noting.told if e[0] not in ("events", "append")]
        assert rest == [("submit", None), ("started", "r1", 0.0), (status, "r1", 0.0)]
        assert sum(count for *_, count in events) == (2 if message == "ask" else 1)
        runner.remove_observer(noting)
        before = len(noting.told)
        await outcome_of(await runner.start(USER, "s2", "go"))
        assert len(noting.told) == before

    case()


def test_observers_are_told_of_what_waits_and_of_what_never_begins():
    @for_seeds(2)
    async def case():
        noting = Noting()
        runner = make_runner(speaker)
        runner.add_observer(noting)
        first = await runner.start(USER, SESSION, "wait", run_id="r1")
        await asyncio.sleep(1)
        second = await runner.start(USER, SESSION, "go", run_id="r2")
        third = await runner.start(USER, SESSION, "go", run_id="r3")
        await runner.cancel(third.id, user_id=USER)
        await first.wait()
        await second.wait()
        await idle()
        told = [e for e in noting.told if e[0] in ("started", "completed", "cancelled")]
        assert told == [
            ("started", "r1", 0.0), ("cancelled", "r3", 0.0), ("completed", "r1", 5.0), ("started", "r2", 4.0),
            ("completed", "r2", 0.0),
        ]  # fmt: skip

    case()


# -- memory -------------------------------------------------------------------------------------------------------------


class Away(InMemoryMemoryService):
    """A memory service whose searches fail."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    async def search(self, *args, **options):
        raise self.error


async def test_a_search_of_memory_has_a_span(spans):
    memory = InMemoryMemoryService()
    await memory.add(APP, USER, [Memory("the router has a red lamp")])

    @agent
    async def finds(ctx):
        return str(len(ctx.memories))

    runner = make_runner(finds, memory_service=memory)
    assert await outcome_of(await runner.start(USER, SESSION, "my router")) == "1"
    await idle()
    (span,) = spans.named("search_memory")
    (run,) = spans.named("invoke_agent finds")
    assert span.parent.span_id == run.context.span_id
    assert dict(span.attributes) == {"gen_ai.operation.name": "search_memory", "sojourn.memory.found": 1}


@pytest.mark.parametrize(
    ("error", "told"),
    [(Unavailable("Qdrant is away", code="memory.unavailable"), "memory.unavailable"), (RuntimeError("x"), "RuntimeError")],
)
async def test_a_memory_that_is_away_is_told_in_the_trace_and_the_run_goes_on_without(spans, caplog, error, told):
    @agent
    async def finds(ctx):
        return f"{len(ctx.memories)} memories"

    runner = make_runner(finds, memory_service=Away(error))
    assert await outcome_of(await runner.start(USER, SESSION, "my router")) == "0 memories"
    await idle()
    (span,) = spans.named("search_memory")
    assert span.attributes["error.type"] == told
    assert not span.status.is_ok
    (run,) = spans.named("invoke_agent finds")
    assert run.status.status_code is trace.StatusCode.UNSET
    assert "the run goes on without memories" in caplog.text


async def test_a_search_by_words_alone_is_told_in_the_trace(spans, tmp_path):
    embedder = WordEmbedder()
    memory = SqliteMemoryService(tmp_path / "memory.db", embedder=embedder)
    await memory.add(APP, USER, [Memory("the router has a red lamp")])
    embedder.is_away = True

    @agent
    async def finds(ctx):
        return str(len(ctx.memories))

    runner = make_runner(finds, memory_service=memory)
    assert await outcome_of(await runner.start(USER, SESSION, "my router")) == "1"
    await idle()
    (span,) = spans.named("search_memory")
    assert span.attributes["sojourn.memory.words_only"] is True
    assert span.attributes["sojourn.memory.error"] == "embedding.unavailable"
    await memory.close()
