"""What Prometheus is told of a server. Labels are apps, routes and outcomes: never ids of users, sessions or runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sojourn import platform
from sojourn.errors import SojournError
from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord
from sojourn.runner.observe import Observer
from sojourn.runner.runner import Runner
from sojourn.server.counting import count_runs
from sojourn.server.operations.stores import is_failure

WAITING_SECONDS = 30.0
"""For how long the number of runs that wait for people is taken to be what it was: only the store knows it."""

MAX_WAITING = 10_000
"""How many of them are counted, for each app."""

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SLOW = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        runners: What is served, by app.

    Attributes:
        streamed_bytes: Bytes sent on streams and WebSockets. Added to for each piece, so a number and no `Counter`.
    """

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self._runners = runners
        self._waiting = dict.fromkeys(runners, 0)
        self._waiting_known_until = -1.0
        registry.register(_Runs(runners, self._waiting))
        ProcessCollector(registry=registry)
        app = ("app",)
        self.ended = Counter(
            "sojourn_runs_ended", "Attempts of runs that ended here; `queued`: cut off by a shutdown.", (*app, "status"),
            registry=registry,
        )  # fmt: skip
        self.run_seconds = Histogram("sojourn_run_seconds", "What attempts took.", app, registry=registry, buckets=_SLOW)
        self.queue_seconds = Histogram(
            "sojourn_queue_seconds", "How long runs waited for their turn and a slot.", app, registry=registry, buckets=_SLOW
        )
        self.events = Counter("sojourn_events", "Events of agents that were stored.", app, registry=registry)
        self.store_seconds = Histogram(
            "sojourn_store_seconds", "What writes to the store took.", (*app, "operation"), registry=registry, buckets=_FAST
        )
        self.store_errors = Counter("sojourn_store_errors", "Writes that failed.", (*app, "operation"), registry=registry)
        self._requests: dict[tuple[str, str, int], Histogram] = {}
        self._request_seconds = Histogram(
            "sojourn_http_request_seconds", "What requests took; of streams and WebSockets, until their end.",
            ("method", "route", "status"), registry=registry, buckets=_SLOW,
        )  # fmt: skip
        self.open_streams = Gauge("sojourn_open_streams", "Event streams and WebSockets that are open.", registry=registry)
        self.streamed_bytes = 0
        registry.register(_StreamedBytes(self))
        for name, runner in runners.items():
            runner.add_observer(RunMetrics(self, name))

    def request_took(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request.

        Args:
            method: Its method, of those there are.
            route: The template of its path.
            status: What it was answered.
            seconds: What it took.
        """
        labels = method, route, status
        histogram = self._requests.get(labels)
        if histogram is None:
            histogram = self._requests[labels] = self._request_seconds.labels(method, route, str(status))
        histogram.observe(seconds)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """All of it, in the format that is asked for, and the name of that."""
        now = platform.monotonic()
        if now >= self._waiting_known_until:
            self._waiting_known_until = now + WAITING_SECONDS
            for name, runner in self._runners.items():
                try:
                    self._waiting[name] = await count_runs(runner, (RunStatus.WAITING,), MAX_WAITING)
                except SojournError:
                    continue  # What is known of this process is told all the same.
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


class RunMetrics(Observer):
    """Counts what one Runner does.

    Args:
        metrics: Where.
        app: The Runner's app.
    """

    def __init__(self, metrics: Metrics, app: str) -> None:
        self._app = app
        self._queue_seconds = metrics.queue_seconds.labels(app)
        self._run_seconds = metrics.run_seconds.labels(app)
        self._events = metrics.events.labels(app)
        statuses = (RunStatus.QUEUED, RunStatus.WAITING, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)
        self._ended = {status: metrics.ended.labels(app, status.value) for status in statuses}
        operations = ("submit", "begin", "append")
        self._store_seconds = {operation: metrics.store_seconds.labels(app, operation) for operation in operations}
        self._store_errors = {operation: metrics.store_errors.labels(app, operation) for operation in operations}

    def run_started(self, record: RunRecord, waited: float) -> None:
        """See `Observer`."""
        self._queue_seconds.observe(waited)

    def run_ended(self, record: RunRecord, seconds: float) -> None:
        """See `Observer`."""
        ended = self._ended.get(record.status)
        if ended is not None:
            ended.inc()
        self._run_seconds.observe(seconds)

    def events_stored(self, record: RunRecord, count: int) -> None:
        """See `Observer`."""
        self._events.inc(count)

    def store_called(self, operation: str, seconds: float, error: BaseException | None) -> None:
        """See `Observer`."""
        self._store_seconds[operation].observe(seconds)
        if is_failure(error):
            self._store_errors[operation].inc()


class _StreamedBytes(Collector):
    """What was sent on streams, read when it is asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        yield CounterMetricFamily(
            "sojourn_streamed_bytes", "Bytes sent on streams and WebSockets.", value=self._metrics.streamed_bytes
        )


class _Runs(Collector):
    """The runs that there are, read when they are asked for."""

    def __init__(self, runners: Mapping[str, Runner], waiting: Mapping[str, int]) -> None:
        self._runners = runners
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        family = GaugeMetricFamily(
            "sojourn_runs",
            "Runs: executing and queued in this process; waiting for people in all, as of the last half minute, up to "
            f"{MAX_WAITING}; abandoned: stopped, but their code does not end.",
            labels=("app", "status"),
        )
        for name, runner in self._runners.items():
            load = runner.load
            counts: Iterable[tuple[str, int]] = (
                ("running", load.running),
                ("queued", load.queued),
                ("waiting", self._waiting[name]),
                ("abandoned", load.abandoned),
            )
            for status, count in counts:
                family.add_metric((name, status), count)
        yield family
