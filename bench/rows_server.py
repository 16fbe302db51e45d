"""What the server costs: a request, a streamed piece, an open stream, and all of it after a hundred thousand requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec

from bench import agents, load
from bench.load import Client
from bench.measure import Budget, Cost, Measure, Row, Sample, Scale, cpu_sample
from bench.rows_run import cost_of_runs
from bench.served import Served, allow_connections, serving
from bench.stores import on_sqlite
from sojourn import platform

CLIENTS = 50
"""Clients that ask at the same time, each in a session of its own."""

STREAMS = 2000
WARM_UP = 10
MEGABYTE = 2**20

Ask = Callable[[int, Client], Awaitable[None]]


async def run(n: int, client: Client) -> None:
    """A request for a run."""
    response = await client.ask(load.run_sse(f"s{n}"))
    assert response.startswith(b"HTTP/1.1 200"), response
    assert b"data: " in response, response


async def probe(n: int, client: Client) -> None:
    """A request for next to nothing."""
    response = await client.ask(load.get("/livez"))
    assert response.startswith(b"HTTP/1.1 200"), response


async def cost_of_requests(served: Served, clients: list[Client], ask: Ask, requests: int) -> Cost:
    """What one of so many requests costs a server."""

    async def ask_often(n: int, client: Client) -> None:
        for _ in range(requests // len(clients)):
            await ask(n, client)

    before, started = served.usage(), platform.monotonic()
    await load.each(clients, ask_often)
    wall = platform.monotonic() - started
    count = requests // len(clients) * len(clients)
    return Cost((served.usage().cpu - before.cpu) / count, wall / count)


async def cost_at(server: str, ask: Ask, scale: Scale, *, full: int) -> Cost:
    """What one request costs a server of its own, at 50 clients."""
    with serving(server) as served:
        clients = await load.clients_of(served.port, scale.of(CLIENTS, 2), sessions=server != "floor")
        await cost_of_requests(served, clients, ask, len(clients) * WARM_UP)
        return await cost_of_requests(served, clients, ask, scale.of(full, len(clients)))


# -- a request ------------------------------------------------------------------------------------------------------

AT_ONCE = f"/run_sse, {CLIENTS} clients"


async def _requests(scale: Scale) -> Sequence[Sample]:
    runs = scale.of(2000, 10)
    alone = await cost_of_runs(agents.returns, on_sqlite("full"), runs, sessions=scale.of(CLIENTS, 2))
    trivial = await cost_at("floor", run, scale, full=3000)
    floor = (alone.cpu + trivial.cpu) * 1e6
    note = f"the runner alone {alone.micros:,.0f}, a trivial stream of FastAPI {trivial.micros:,.0f}"
    servers = ("uvicorn",) if scale.quick else ("uvicorn", "logged")
    return [
        cpu_sample(what, await cost_at(server, run, scale, full=3000), floor, note)
        for server, what in zip(servers, (AT_ONCE, f"{AT_ONCE}, with the log of `sojourn serve`"), strict=False)
    ]


# -- a piece --------------------------------------------------------------------------------------------------------


async def _cost_of_pieces(server: str, agent: str, sizes: tuple[int, int]) -> Cost:
    """What one piece costs: the difference between two streams, of which nothing but their lengths differs."""
    with serving(server, agent) as served:
        (client,) = await load.clients_of(served.port, 1, sessions=server != "floor")
        used = []
        for pieces in (sizes[0], *sizes):
            before, started = served.usage(), platform.monotonic()
            response = await client.ask(load.run_sse("s0", str(pieces)))
            wall = platform.monotonic() - started
            used.append((served.usage().cpu - before.cpu, wall))
            assert response.count(b'"partial":true') == pieces, "pieces were joined on the way: that is another measurement"
        # The first one was for the server to warm up.
        (_, (cpu, wall), (more_cpu, more_wall)), more = used, sizes[1] - sizes[0]
        return Cost((more_cpu - cpu) / more, (more_wall - wall) / more)


def _pieces(what: str, agent: str) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        sizes = scale.of(2000, 10), scale.of(22_000, 30)
        floor = None if scale.quick else await _cost_of_pieces("floor", agent, sizes)
        return [cpu_sample(what, await _cost_of_pieces("uvicorn", agent, sizes), floor)]

    return lambda scale: load.ran(measure(scale))


IN_A_BURST, ONE_BY_ONE = "a piece, in a burst", "a piece, one at a time"


# -- many streams ---------------------------------------------------------------------------------------------------


MANY_STREAMS = f"{STREAMS:,} open streams, each of a run"


async def _open_streams(scale: Scale) -> Sequence[Sample]:
    count = scale.of(STREAMS, 20)
    allow_connections()
    with serving("uvicorn", "stays") as served:
        first = await Client.to(served.port)
        for n in range(count + 1):
            await first.ask(load.session(f"s{n}"))
        await first.ask_first(load.run_sse(f"s{count}"))
        before = served.usage()
        clients = await load.clients_of(served.port, count, sessions=False)

        async def stay(n: int, client: Client) -> None:
            await client.ask_first(load.run_sse(f"s{n}"))

        await load.each(clients, stay)
        used = served.usage().resident - before.resident
    note = f"{used / count / 1024:.1f} KiB each, with its connection and its run"
    return [Sample(MANY_STREAMS, used / MEGABYTE, "MB", note=note)]


# -- many requests --------------------------------------------------------------------------------------------------


async def _long(scale: Scale) -> Sequence[Sample]:
    requests = scale.of(100_000, 40)
    tenth = requests // 10
    with serving("uvicorn") as served:
        clients = await load.clients_of(served.port, scale.of(CLIENTS, 2))
        first = await cost_of_requests(served, clients, run, tenth)
        early = served.usage().resident
        await cost_of_requests(served, clients, run, tenth * 8)
        last = await cost_of_requests(served, clients, run, tenth)
        late = served.usage().resident
    return [
        cpu_sample(f"/run_sse, the last tenth of {requests:,}", last, first, f"{first.rate:,.0f}/s in the first tenth"),
        Sample("resident memory after all of them", late / MEGABYTE, "MB", early / MEGABYTE),
    ]


# -- servers --------------------------------------------------------------------------------------------------------


def _side_by_side(what: str, ask: Ask, full: int) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        samples = [cpu_sample(f"{what} on uvicorn", await cost_at("uvicorn", ask, scale, full=full))]
        if find_spec("granian") is not None:
            samples.append(cpu_sample(f"{what} on granian", await cost_at("granian", ask, scale, full=full)))
        return samples

    return lambda scale: load.ran(measure(scale))


ROWS = (
    Row(
        "server",
        "a request for a run of an agent that does nothing, on SQLite, and a streamed piece of a message",
        (lambda scale: asyncio.run(_requests(scale)), _pieces(IN_A_BURST, "burst"), _pieces(ONE_BY_ONE, "paced")),
        floor="the runner alone and a trivial stream of FastAPI's; of a piece, one that FastAPI streams",
        repeats=3,
        budgets={AT_ONCE: (Budget(1200),), IN_A_BURST: (Budget(15),), ONE_BY_ONE: (Budget(15),)},
    ),
    Row(
        "server-streams",
        "memory of a server with many open streams, on top of what it has without",
        (lambda scale: load.ran(_open_streams(scale)),),
        repeats=1,
        budgets={MANY_STREAMS: (Budget(200),)},
    ),
    Row(
        "server-long",
        "whether a server stays as it is",
        (lambda scale: load.ran(_long(scale)),),
        floor="the first tenth",
        repeats=1,
        budgets={"resident memory after all of them": (Budget(1.3, "ratio"),)},
    ),
    Row(
        "server-granian",
        f"the same app on two servers, {CLIENTS} clients"
        + ("" if find_spec("granian") else " (granian is not installed: pip install granian)"),
        (_side_by_side("/livez", probe, 10_000), _side_by_side("/run_sse", run, 3000)),
        repeats=3,
    ),
) if all(map(find_spec, ("fastapi", "uvicorn", "httptools", "prometheus_client"))) else ()  # fmt: skip
