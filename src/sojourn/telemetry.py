"""OpenTelemetry, for who has set it up: spans and measurements by the GenAI conventions.

Whoever has set up tracing has imported `opentelemetry.trace`; nobody else pays for importing it. What a processor or an
exporter raises is logged, once, and never reaches what is observed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from sojourn.errors import SojournError

logger = logging.getLogger("sojourn.telemetry")

SCOPE = "sojourn"
"""The name of the instrumentation."""

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The environment variable that asks for content: what was said, and what tools were given and gave."""

Attributes = Mapping[str, Any]

DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Seconds: the buckets that the conventions give for durations."""

TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""The buckets that the conventions give for tokens."""

_tracer: tuple[Any, Any] | None = None
_instruments: dict[str, Any] = {}
_meter_provider: Any = None
_has_failed = False


def tracer() -> Any | None:
    """The tracer; None if nobody has set up tracing."""
    global _tracer
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if _tracer is None or _tracer[0] is not provider:
        if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            return None
        _tracer = provider, provider.get_tracer(SCOPE)
    return _tracer[1]


def captures_content() -> bool:
    """Whether spans are to tell what was said."""
    return os.environ.get(CONTENT, "").strip().lower() in ("true", "1", "span_only", "span_and_event")


class Span:
    """A span around a block, or nothing if nobody has set up tracing.

    An error that leaves the block makes the span one of an error, by its code or type; its message may be a secret.
    """

    __slots__ = ("_args", "_span", "_token")

    def __init__(self, name: str, attributes: Attributes, *, client: bool = False) -> None:
        """Describes a span.

        Args:
            name: Its name.
            attributes: What is known at the start.
            client: Whether it is about something that another process does.
        """
        self._args = name, attributes, client
        self._span: Any = None
        self._token: Any = None

    def __enter__(self) -> Self:
        tracing = tracer()
        if tracing is not None:
            name, attributes, client = self._args
            try:
                trace, context = sys.modules["opentelemetry.trace"], sys.modules["opentelemetry.context"]
                kind = trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
                self._span = tracing.start_span(name, kind=kind, attributes=attributes)
                self._token = context.attach(trace.set_span_in_context(self._span))
            except Exception:
                _failed()
        return self

    @property
    def recording(self) -> bool:
        """Whether anybody wants to know more."""
        return self._span is not None

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""
        if self._span is not None:
            try:
                self._span.set_attributes(attributes)
            except Exception:
                _failed()

    def fail(self, error_type: str) -> None:
        """Makes it the span of an error."""
        if self._span is not None:
            try:
                self._span.set_attribute("error.type", error_type)
                self._span.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR, error_type)
            except Exception:
                _failed()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._span is None:
            return
        if isinstance(error, Exception):
            self.fail(error_type(error))
        try:
            if self._token is not None:
                sys.modules["opentelemetry.context"].detach(self._token)
            self._span.end()
        except Exception:
            _failed()


def annotate(attributes: Attributes) -> None:
    """Adds attributes to the span that is around the caller, if there is one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        try:
            trace.get_current_span().set_attributes(attributes)
        except Exception:
            _failed()


def past(name: str, attributes: Attributes, began: float, ended: float) -> None:
    """Tells of something that is over.

    Args:
        name: The name of the span.
        attributes: Its attributes.
        began: When it began, in seconds since the epoch.
        ended: When it ended.
    """
    tracing = tracer()
    if tracing is not None:
        try:
            tracing.start_span(name, attributes=attributes, start_time=int(began * 1e9)).end(int(ended * 1e9))
        except Exception:
            _failed()


def measure(name: str, value: float, attributes: Attributes, *, unit: str = "s") -> None:
    """Adds to a histogram, if somebody has set up metrics.

    Args:
        name: Its name in the conventions.
        value: What was measured.
        attributes: Of what; never ids of users, sessions or runs.
        unit: `s`, or `{token}`.
    """
    try:
        instrument = _histogram(name, unit)
        if instrument is not None:
            instrument.record(value, attributes)
    except Exception:
        _failed()


def _histogram(name: str, unit: str) -> Any | None:
    global _meter_provider
    metrics = sys.modules.get("opentelemetry.metrics")
    if metrics is None:
        return None
    provider = metrics.get_meter_provider()
    if provider is not _meter_provider:
        _instruments.clear()
        _meter_provider = provider
    if name not in _instruments:
        # The one that stands in until there is another has no public name.
        if type(provider).__name__ in ("_ProxyMeterProvider", "NoOpMeterProvider"):
            return None
        buckets = TOKENS if unit == "{token}" else DURATIONS
        meter = provider.get_meter(SCOPE)
        _instruments[name] = meter.create_histogram(name, unit=unit, explicit_bucket_boundaries_advisory=buckets)
    return _instruments[name]


def error_type(error: BaseException) -> str:
    """What kind of error it is: its code, or its class."""
    return error.code if isinstance(error, SojournError) else type(error).__qualname__


def _failed() -> None:
    global _has_failed
    if not _has_failed:
        _has_failed = True
        logger.exception("OpenTelemetry failed; what it observes goes on, and this is not told again")
