"""A process to be killed: it executes one run of an agent that a real model drives, and prints what happens to it.

`python -m tests.real_model.worker DATABASE BASE_URL MAX_TOKENS`. The run is started if there is none, and taken up if there is.
"""

import asyncio
import json
import sys
from typing import Literal

from sojourn.agents.llm.agent import LlmAgent
from sojourn.errors import NotFound
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService
from tests.real_model.support import CallsFirst

APP, USER, SESSION, RUN = "weather", "ann", "s", "r1"


def note(**what):
    print(json.dumps(what), flush=True)


async def get_weather(city: Literal["Oslo", "Paris", "Rome"]) -> str:
    """Gives the weather of a city."""
    note(tool=city)
    return "It is sunny."


async def main(path, base_url, max_tokens):
    answer = {"max_tokens": int(max_tokens), "extra_body": {"ignore_eos": True}}
    model = CallsFirst(base_url, answer, lambda choice: note(asked=choice))
    agent = LlmAgent(name="helper", model=model, instruction="You look up the weather.", tools=[get_weather])
    store = DatabaseSessionService(f"sqlite:///{path}")
    async with model, Runner(app_name=APP, agent=agent, session_service=store) as runner:
        try:
            run = await runner.follow(RUN, user_id=USER)
        except NotFound:
            run = await runner.start(USER, SESSION, "What is the weather in Paris?", run_id=RUN)
        async for item in run.events():
            if item.partial and item.call is None:
                note(piece=item.delta)
        note(result=await run.result(), attempt=run.record.attempt)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
