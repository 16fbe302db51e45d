"""What the tests of agents per user share."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import anyio

from sojourn import platform
from sojourn.agents.function import agent


class World:
    """A builder, what its agents have open, and what they notice.

    An agent says the words of its message one by one; `slow` takes a second first, `hang` for ever, `ask` asks.

    Attributes:
        build_seconds: How long a user's build takes; 0 if not listed, for ever if None.
        broken: What a user's build raises.
        builds: How often each user's agent was built.
        open: The users whose agents are entered.
        left: The users whose agents were left, in order.
        wrong: What must not happen to a builder.
    """

    per_user = True

    def __init__(self, **build_seconds):
        self.build_seconds = build_seconds
        self.exit_seconds = {}
        self.broken = {}
        self.builds = Counter()
        self.open = set()
        self.left = []
        self.wrong = []

    def build(self, config, user_id):
        return self.entered(user_id)

    @asynccontextmanager
    async def entered(self, user_id):
        self.builds[user_id] += 1
        if user_id in self.open:
            self.wrong.append(f"two agents of {user_id}")
        task = asyncio.current_task()
        await asyncio.sleep(self.build_seconds.get(user_id, 0) if self.build_seconds.get(user_id, 0) is not None else 1e6)
        if user_id in self.broken:
            raise self.broken[user_id]
        self.open.add(user_id)
        try:
            # Refuses to be left in another task than the one that it was entered in.
            with anyio.CancelScope():
                yield self.agent(user_id)
        finally:
            if asyncio.current_task() is not task:
                self.wrong.append(f"{user_id}'s agent was left in another task")
            await asyncio.sleep(self.exit_seconds.get(user_id, 0))
            self.open.discard(user_id)
            self.left.append(user_id)

    def agent(self, owner):
        number = self.builds[owner]

        @agent
        async def helper(ctx):
            assert ctx.user_id == owner, "another user's agent"
            for word in ctx.user_content.text.split():
                assert owner in self.open, "its agent was let go"
                if word == "hang":
                    await asyncio.Event().wait()
                if word == "ask":
                    await ctx.ask("q", "?")
                if word == "slow":
                    await asyncio.sleep(1)
                assert owner in self.open, "its agent was let go"
                yield f"{word} "
            yield f"from {owner}'s {number}"

        return helper


async def answer(manager, user_id, text="hi", session_id=None):
    async with manager.session(user_id, session_id) as session, session.run(text) as run:
        return await run.result()


def drawn(options):
    return options[int(platform.random() * len(options))]


def now():
    return asyncio.get_running_loop().time()
