"""`--otel`: traces and metrics exported as OpenTelemetry's environment variables say."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from sojourn.errors import InvalidInput, Unsupported

logger = logging.getLogger("sojourn.telemetry")

FLUSH_SECONDS = 5.0
"""How long the last spans may take to leave at the end."""


@contextmanager
def exporting() -> Iterator[None]:
    """Exports what happens in the block, from threads of its own: what becomes of it touches nothing else.

    `OTEL_TRACES_EXPORTER` and `OTEL_METRICS_EXPORTER` name exporters that are installed (`otlp` by default, `console`, `none`);
    each reads its own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT`. `OTEL_SERVICE_NAME` is `sojourn` by default.

    Raises:
        Unsupported: `otel.not_installed`.
        InvalidInput: `otel.invalid` if an exporter cannot be made.
    """
    try:
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise _not_installed("the SDK of OpenTelemetry") from error
    os.environ.setdefault("OTEL_SERVICE_NAME", "sojourn")
    providers: list[TracerProvider | MeterProvider] = []
    if (spans := _exporter("traces")) is not None:
        tracing = TracerProvider(resource=Resource.create(), shutdown_on_exit=False)
        tracing.add_span_processor(BatchSpanProcessor(spans))
        trace.set_tracer_provider(tracing)
        providers.append(tracing)
    if (numbers := _exporter("metrics")) is not None:
        metering = MeterProvider([PeriodicExportingMetricReader(numbers)], Resource.create(), shutdown_on_exit=False)
        metrics.set_meter_provider(metering)
        providers.append(metering)
    try:
        yield
    finally:
        # A collector that does not answer must not keep the process.
        flushing = threading.Thread(target=_shut_down, args=(providers,), daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)


def _exporter(signal: str) -> Any | None:
    name = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower()
    if name == "none":
        return None
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if name == "otlp":
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = next(iter(entry_points(group=f"opentelemetry_{signal}_exporter", name=name)), None)
    if found is None:
        raise _not_installed(f"the exporter {name!r} for {signal}")
    try:
        return found.load()()
    except Exception as error:
        raise InvalidInput(f"the exporter {name!r} for {signal} cannot be made: {error}", code="otel.invalid") from error


def _not_installed(what: str) -> Unsupported:
    return Unsupported(f"{what} is not installed; pip install 'sojourn[otel]'", code="otel.not_installed")


def _shut_down(providers: list[Any]) -> None:
    for provider in providers:
        try:
            provider.shutdown()
        except Exception:
            logger.exception("the last traces or metrics were not exported")
