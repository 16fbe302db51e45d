"""A world in which much goes wrong: scripted agents, a store with weather, clients, and processes that die.

All of it follows from one seed. `World.check` holds what must be true in the end, whatever happened.
"""

import asyncio
from collections import Counter, defaultdict

from sojourn.agents.function import FunctionAgent
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content
from sojourn.errors import SojournError, Unavailable
from sojourn.event import Event, Partial
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.session.state import State, StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.faults import Fault
from tests.runner.support import APP, Process, assert_at_rest, collect, log_of, read_frames, state_of

SESSIONS = [("alice", "s1"), ("alice", "s2"), ("bob", "s1")]
AGENTS = ("root", "left", "right")
FAILURES = ("agent.failed", "store.unavailable", "run.lost", "run.crash_loop", "run.timeout")


class Chance:
    """Repeatable chance."""

    def __init__(self, seed):
        self._platform = ManualPlatform(seed=seed)

    def __call__(self, probability):
        return self._platform.random() < probability

    def number(self, below):
        return int(self._platform.random() * below)

    def pick(self, things):
        return things[self.number(len(things))]

    def seconds(self, most):
        return self._platform.random() * most


# -- what agents do -----------------------------------------------------------------------------------------------------


class Script:
    """What a run does, by its message: stages of moves, each stage by another agent."""

    def __init__(self, message):
        chance = Chance(message)
        self._count = 0
        self.stages = [self._moves(chance, depth=0) for _ in range(1 + chance.number(3))]

    def _moves(self, chance, depth):
        moves = []
        for _ in range(1 + chance.number(5)):
            self._count += 1
            kind = chance.pick(
                ["piece", "piece", "content", "sleep", "step", "count", "ask", "fail", "stubborn", "child", "branches"]
                if depth < 2
                else ["piece", "content", "sleep", "step", "count"]
            )
            if kind == "fail" and chance(0.7):
                kind = "piece"
            if kind == "child":
                moves.append((kind, self._moves(chance, depth + 1)))
            elif kind == "branches":
                moves.append((kind, [self._moves(chance, depth + 1) for _ in range(2)]))
            else:
                moves.append((kind, f"{kind}{self._count}"))
        return [*moves, ("piece", "end. ")]

    @property
    def branches(self):
        return any(kind == "branches" for kind, _ in _all_moves(sum(self.stages, [])))

    def expected(self):
        """The texts of a run that completes, by branch."""
        texts = defaultdict(list)
        for number, stage in enumerate(self.stages):
            _expect(stage, None, f"{number}.", texts)
        return dict(texts)


def _all_moves(moves):
    for kind, value in moves:
        yield kind, value
        if kind == "child":
            yield from _all_moves(value)
        elif kind == "branches":
            for branch in value:
                yield from _all_moves(branch)


def _expect(moves, branch, where, texts):
    open_message = []

    def seal():
        if open_message:
            texts[branch].append("".join(open_message))
            open_message.clear()

    for number, (kind, value) in enumerate(moves):
        if kind in ("child", "branches", "content", "ask"):
            seal()
        match kind:
            case "piece" | "stubborn":
                open_message.append(f"{value} ")
            case "content":
                texts[branch].append(f"{value} ")
            case "step":
                open_message.append(f"[{value}] ")
            case "ask":
                open_message.append(f"(yes to {value}) ")
            case "child":
                _expect(value, branch, f"{where}{number}.", texts)
            case "branches":
                for n, inner in enumerate(value):
                    path = f"b{n}" if branch is None else f"{branch}.b{n}"
                    _expect(inner, path, f"{where}{number}.{n}.", texts)
    seal()


class Actors:
    """The agents of one process."""

    def __init__(self, world, alive):
        self._world = world
        self._alive = alive
        self.root = FunctionAgent(self._play, name="root", sub_agents=[FunctionAgent(self._play, name=n) for n in AGENTS[1:]])

    async def _play(self, ctx):
        script = Script(ctx.user_content.text)
        stage = ctx.state.get(f"stage of {ctx.run_id}", 0)
        async for said in self._moves(ctx, script.stages[stage], f"{stage}."):
            yield said
        if stage + 1 < len(script.stages):
            ctx.state[f"stage of {ctx.run_id}"] = stage + 1
            ctx.transfer_to(next(name for name in (*AGENTS[1:], "root") if name != ctx.agent_name))

    async def _moves(self, ctx, moves, where):
        for number, (kind, value) in enumerate(moves):
            match kind:
                case "piece":
                    yield f"{value} "
                case "content":
                    yield Content("model").with_text(f"{value} ")
                case "sleep":
                    await asyncio.sleep(0.1)
                case "count":
                    ctx.state.increment("count")
                    ctx.state.increment("user:count", 10)
                    ctx.state["user:last"] = [ctx.run_id, value]
                case "step":
                    yield f"[{await ctx.step(f'{where}{value}', lambda: self._effect(ctx, f'{where}{value}', value))}] "  # noqa: B023
                case "ask":
                    yield f"({await ctx.ask(f'{where}{value}', value)}) "
                case "fail":
                    raise ValueError(value)
                case "stubborn":
                    try:
                        await asyncio.sleep(0.2)
                    except asyncio.CancelledError:
                        await asyncio.sleep(20)
                    yield f"{value} "
                case "child":
                    await ctx.run_agent(self._actor("child", value, f"{where}{number}."))
                case "branches":
                    branches = [self._actor(f"b{n}", inner, f"{where}{number}.{n}.") for n, inner in enumerate(value)]
                    await ctx.run_agent(ParallelAgent(name="par", sub_agents=branches))

    def _actor(self, name, moves, where):
        async def play(ctx):
            async for said in self._moves(ctx, moves, where):
                yield said

        return FunctionAgent(play, name=name)

    async def _effect(self, ctx, key, value):
        await asyncio.sleep(0.02)
        if self._alive():
            self._world.effects[ctx.run_id, key].append(ctx.attempt)
        return value


# -- the store's weather ------------------------------------------------------------------------------------------------


class Weather(Fault):
    """Some calls take their time, some fail before they have written anything, some lose their reply."""

    def __init__(self, chance, *, after, failures):
        super().__init__("fail", "*", frozenset(), after=after)
        self._chance = chance
        self._failures = failures

    async def strike(self, method):
        if self._chance(0.3):
            await asyncio.sleep(self._chance.seconds(0.05))
        if self._chance(self._failures):
            raise Unavailable(f"bad weather {'after' if self.after else 'before'} {method}")


# -- clients ------------------------------------------------------------------------------------------------------------


class World:
    """A store, the processes that use it one after the other, and what their clients were told."""

    def __init__(self, seed, *, failures=0.04, deaths=2):
        self.chance = Chance(seed)
        self.store = InMemorySessionService()
        self.effects = defaultdict(list)
        self.acknowledged = {}
        self.seen = []
        self.screens = []
        self.whole = []
        self.number = 0
        self._seed = seed
        self._failures = failures
        self._deaths = deaths
        self._processes = []

    async def live(self):
        """Processes live and die; the last one is not disturbed any more and brings everything to its end."""
        for left in range(self._deaths, -1, -1):
            process = self._process()
            await self._enter(process)
            clients = [asyncio.ensure_future(self._client(process)) for _ in range(4)]
            await asyncio.sleep(0.5 + self.chance.seconds(2))
            if left:
                process.die()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            del clients
            collect()
        self.last = process
        process.store.plan.clear()
        await self._bring_to_an_end(process)

    async def _enter(self, process):
        while True:
            try:
                return await process.runner.__aenter__()
            except SojournError:
                await asyncio.sleep(0.05)

    def _process(self):
        actors = Actors(self, lambda: process.alive)
        process = Process(
            actors.root, self.store, max_concurrency=3, max_concurrency_per_user=2, max_queue=50,
            run_config=RunConfig(cancel_grace=5),
        )  # fmt: skip
        process.store.plan += [Weather(self.chance, after=after, failures=self._failures) for after in (False, True)]
        self._processes.append(process)
        return process

    async def bury(self):
        """Lets what is left of dead processes come to its end."""
        for process in self._processes:
            process.bury()
        await asyncio.sleep(100)

    async def _client(self, process):
        while True:
            await asyncio.sleep(self.chance.seconds(0.15))
            act = self.chance.pick(
                [self._start, self._start, self._stream, self._stream, self._cancel, self._answer, self._follow]
            )
            try:
                await act(process.runner)
            except (SojournError, TimeoutError):
                continue

    def _next_message(self):
        self.number += 1
        user, session = self.chance.pick(SESSIONS)
        return user, session, f"{self._seed}/{self.number}"

    def _config(self):
        return RunConfig(timeout=30, when_busy="replace") if self.chance(0.1) else None

    async def _start(self, runner):
        user, session, message = self._next_message()
        run = await runner.start(user, session, message, run_config=self._config())
        self.acknowledged[run.id] = (user, session, message)

    async def _stream(self, runner):
        user, session, message = self._next_message()
        stream = runner.run(user, session, message, run_config=self._config())
        items, most = [], self.chance.number(12)
        try:
            async for item in stream:
                self.acknowledged[stream.run.id] = (user, session, message)
                self._note(item)
                items.append(item)
                if len(items) >= most:
                    break
        finally:
            self.screens.append((message, "".join(i.delta for i in items)))

    async def _cancel(self, runner):
        runs = (await runner.list_runs(limit=10)).items
        if runs:
            record = self.chance.pick(runs)
            await runner.cancel(record.id, user_id=record.user_id)

    async def _answer(self, runner):
        questions = await runner.list_interrupts()
        if questions:
            question = self.chance.pick(questions)
            answer = f"yes to {question.prompt}"
            await runner.answer(question.run_id, question.id, answer, user_id=question.user_id)

    async def _follow(self, runner):
        runs = (await runner.list_runs(limit=5)).items
        if runs:
            record = self.chance.pick(runs)
            run = await runner.follow(record.id, user_id=record.user_id)
            async with asyncio.timeout(5):
                reading = await read_frames(run)
            for event in reading.events:
                self._note(event)
            self.screens.append((record.message.text, reading.screen))
            if reading.frames and reading.frames[-1].terminal:
                self.whole.append((record.id, record.user_id, reading.frames))

    def _note(self, item):
        if isinstance(item, Event) and not isinstance(item, Partial):
            self.seen.append(item)

    async def _bring_to_an_end(self, process):
        runner = process.runner
        for _ in range(200):
            left = await self.store.unfinished(APP)
            if not left:
                return
            for question in await runner.list_interrupts():
                answer = f"yes to {question.prompt}"
                await runner.answer(question.run_id, question.id, answer, user_id=question.user_id)
            await asyncio.sleep(1)
        raise AssertionError(f"these runs do not end: {[(r.id, r.status, r.attempt) for r in left]}")

    # -- what must be true ----------------------------------------------------------------------------------------------

    async def check(self):
        # Those that do not end when they are stopped have ended by then.
        await asyncio.sleep(60)
        assert_at_rest(self.last.runner)
        runs = {r.id: r for r in (await self.last.runner.list_runs(limit=1000)).items}
        logs = {
            where: await log_of(self.store, where[1], user_id=where[0], superseded=True) for where in await self._sessions()
        }
        self._check_told(runs, logs)
        for log in logs.values():
            assert [e.seq for e in log] == list(range(1, len(log) + 1))
        for record in runs.values():
            self._check_run(record, [e for e in logs[record.user_id, record.session_id] if e.run_id == record.id])
        await self._check_frames(runs)
        self._check_screens()
        self._check_effects(runs)
        await self._check_state(logs)
        await self._check_calls(logs)

    async def _sessions(self):
        return [(s.user_id, s.id) for s in (await self.store.list_sessions(app_name=APP)).items]

    def _check_told(self, runs, logs):
        for run_id, (user, session, message) in self.acknowledged.items():
            record = runs[run_id]
            assert (record.user_id, record.session_id, record.message.text) == (user, session, message)
        stored = {e.id: e for log in logs.values() for e in log}
        for event in self.seen:
            assert stored[event.id].text == event.text
            assert stored[event.id].pos == event.pos

    def _check_run(self, record, log):
        script = Script(record.message.text)
        assert record.status.terminal
        frames = [e.pos for e in log if e.pos is not None]
        begun = record.attempt > 0
        assert frames == list(range(2, len(frames) + 2))
        assert record.last_pos == len(frames) + (2 if begun else 1)
        expected = script.expected()
        counting = defaultdict(list)
        for event in log:
            if not event.superseded and event.pos is not None and event.text:
                counting[event.branch].append(event.text)
        if record.status is RunStatus.COMPLETED:
            assert not any(k == "fail" for k, _ in _all_moves(sum(script.stages, [])))
            assert dict(counting) == expected
        for branch, texts in counting.items():
            # Sealing by a stop may cut a message anywhere; nothing is said twice, and nothing out of turn.
            assert "".join(expected.get(branch, [])).startswith("".join(texts)), (record.id, branch, texts, expected)
        if record.status is RunStatus.FAILED:
            assert record.error.code in FAILURES, record.error

    async def _check_frames(self, runs):
        for run_id, user, frames in self.whole:
            replay = await read_frames(await self.last.runner.follow(run_id, user_id=user))
            assert [(f.pos, f.kind) for f in frames] == [(f.pos, f.kind) for f in replay.frames]
            assert [f.event.id for f in frames if f.event] == [f.event.id for f in replay.frames if f.event]

    def _check_screens(self):
        for message, screen in self.screens:
            script = Script(message)
            if not script.branches:
                whole = "".join(script.expected()[None])
                assert whole.startswith(screen), f"{message} was shown as {screen!r}, expected {whole!r}"

    def _check_effects(self, runs):
        for (run_id, key), attempts in self.effects.items():
            again = Counter(attempts)
            assert max(again.values()) == 1, f"{key} of {run_id} was done twice in one attempt: {attempts}"
            assert attempts == sorted(attempts)
            assert len(attempts) <= runs[run_id].attempt

    async def _check_state(self, logs):
        users = defaultdict(lambda: State({}))
        own = {}
        # Keys of users are folded over all their sessions, whose order among each other only the clock knows.
        for where, log in logs.items():
            own[where] = State({})
            for event in log:
                if not event.superseded:
                    delta = StateDelta.of(event.actions)
                    own[where].apply(_part(delta, users=False))
                    users[where[0]].apply(_part(delta, users=True))
        for (user, session), state in own.items():
            stored = await state_of(self.store, session, user_id=user)
            last = stored.pop("user:last", None)
            folded = {**state.to_dict(), **users[user].to_dict()}
            assert (last is None) == (folded.pop("user:last", None) is None)
            assert stored == folded

    async def _check_calls(self, logs):
        for user, session in logs:
            history = await self.store.history(SessionKey(APP, user, session), None)
            calls = {c.id for e in history.events for c in e.get_function_calls()}
            responses = {r.id for e in history.events for r in e.get_function_responses()}
            questions = await self.store.list_interrupts(APP, user_id=user, session_id=session, open_only=False)
            assert responses <= calls
            assert calls - responses <= {q.id for q in questions if q.status == "dropped"}


def _part(delta, *, users):
    return StateDelta(
        {k: v for k, v in delta.values.items() if k.startswith("user:") is users},
        {k: v for k, v in delta.deleted.items() if k.startswith("user:") is users},
        {k: v for k, v in delta.increments.items() if k.startswith("user:") is users},
    )
