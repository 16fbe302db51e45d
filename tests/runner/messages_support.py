"""What the tests of messages share."""

from sojourn.content import Content, Part
from sojourn.event import Event
from sojourn.run.config import RunConfig, StreamingMode
from tests.runner.support import KEY, log_of

SILENT = RunConfig(streaming_mode=StreamingMode.NONE)


def look_up(id="c1", **args):
    """A function call as a part."""
    return Part.from_function_call("look_up", args or {"word": "x"}, id=id)


def reply(text="", *parts, **fields):
    """An event with a text, if any, and other parts."""
    texts = (Part(text=text),) if text else ()
    return Event(content=Content("model", (*texts, *parts)), **fields)


async def only(store):
    """The one event of the agent in the log."""
    [event] = (await log_of(store))[1:]
    return event


async def calls_in_history(store):
    """The ids of all calls, and of all responses, that the next run's model would see."""
    events = (await store.history(KEY, None)).events
    return (
        [c.id for e in events for c in e.get_function_calls()],
        [r.id for e in events for r in e.get_function_responses()],
    )
