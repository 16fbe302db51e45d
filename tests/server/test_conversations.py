"""How long a conversation may last, in virtual time."""

import asyncio

from sojourn.agents.function import agent
from sojourn.agents.live import LiveRequest
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.config import ServerConfig
from sojourn.server.conversations import Conversations
from sojourn.session.types import SessionKey
from sojourn.testing.loop import for_seeds

KEY = SessionKey("app", "ann", "s")
SPEAKS = LiveRequest(activity_start=True)


class Line:
    """Somebody on the line, who notes when and why it was cut."""

    def __init__(self):
        self.cut = None

    def hang_up(self, error):
        self.cut = self.cut or (round(asyncio.get_running_loop().time()), error.code)


@agent
async def polite(ctx):
    async for _ in ctx.live:
        pass
    yield "Bye."


@agent
async def deaf(ctx):
    await asyncio.sleep(100_000)


async def begun(target, **config):
    runner = Runner(app_name="app", agent=target)
    await runner.create_session("ann", "s")
    conversations = Conversations(ServerConfig(**config))
    conversation = await conversations.begin(runner, KEY)
    line = Line()
    conversation.join(line)
    return conversations, conversation, line


def now():
    return round(asyncio.get_running_loop().time())


@for_seeds(10)
async def test_who_says_something_is_not_idle():
    conversations, conversation, line = await begun(polite, live_idle_timeout=60, live_max_duration=None)
    for _ in range(10):
        await asyncio.sleep(50)
        conversation.send(SPEAKS)
    assert line.cut is None
    assert (await conversation.run.wait()).status is RunStatus.COMPLETED
    assert line.cut == (560, "live.idle_timeout")
    assert now() == 560


@for_seeds(10)
async def test_a_conversation_has_a_longest_duration():
    conversations, conversation, line = await begun(deaf, live_idle_timeout=None, live_max_duration=300, disconnect_grace=7)
    for _ in range(10):
        await asyncio.sleep(20)
        conversation.send(SPEAKS)
    # It does not listen: after the grace it is cancelled.
    assert (await conversation.run.wait()).status is RunStatus.CANCELLED
    assert line.cut == (300, "live.max_duration")
    assert now() == 307


@for_seeds(10)
async def test_without_bounds_it_goes_on():
    conversations, conversation, line = await begun(polite, live_idle_timeout=None, live_max_duration=None)
    await asyncio.sleep(50_000)
    assert (line.cut, conversation.run.status) == (None, RunStatus.RUNNING)
    conversations.close()
    assert (await conversation.run.wait()).status is RunStatus.COMPLETED
    assert line.cut == (50_000, "server.draining")


@for_seeds(10)
async def test_who_comes_back_in_time_keeps_the_run():
    conversations, conversation, line = await begun(polite, on_disconnect="cancel", disconnect_grace=10)
    for _ in range(3):
        conversation.part(line)
        await asyncio.sleep(9)
        conversation.join(line)
        await asyncio.sleep(9)
    conversation.part(line)
    assert (await conversation.run.wait()).status is RunStatus.CANCELLED
    assert now() == 64
    await asyncio.sleep(1)
    assert conversations.find(KEY) is None


@for_seeds(10)
async def test_a_run_that_is_detached_waits_until_it_is_idle():
    conversations, conversation, line = await begun(polite, live_idle_timeout=100, disconnect_grace=1)
    conversation.part(line)
    assert (await conversation.run.wait()).status is RunStatus.COMPLETED
    assert (now(), line.cut) == (100, None)


@for_seeds(10)
async def test_nobody_saves_a_conversation_that_was_ended():
    conversations, conversation, line = await begun(deaf, live_idle_timeout=100, disconnect_grace=5)
    await asyncio.sleep(102)
    late = Line()
    conversation.join(late)
    assert (await conversation.run.wait()).status is RunStatus.CANCELLED
    assert now() == 105


@for_seeds(10)
async def test_the_older_line_is_cut_and_means_nothing_any_more():
    conversations, conversation, older = await begun(polite, on_disconnect="cancel", disconnect_grace=5)
    newer = Line()
    conversation.join(newer)
    assert older.cut == (0, "live.taken_over")
    conversation.part(older)
    await asyncio.sleep(50)
    assert (newer.cut, conversation.run.status) == (None, RunStatus.RUNNING)
    conversations.close()
    await conversation.run.wait()
