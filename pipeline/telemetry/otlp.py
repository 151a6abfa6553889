"""Spans over OTLP: the one place that knows OpenTelemetry's SDK. Imported only where traces are on."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pipeline.settings import Settings
from pipeline.telemetry.genai_names import ERROR_TYPE, OUR_NAME
from pipeline.telemetry.tracing import Span, Value

log = structlog.get_logger(__name__)

#: Time for a collector to take what it is sent, in seconds; spans wait in a queue meanwhile.
_EXPORT_SECONDS: Final = 5.0
#: Longest that a process's end waits for its last spans, in seconds: no group drains longer for the sake of traces.
_LAST_SECONDS: Final = 2.0
#: Spans that wait for the collector; more are dropped, the oldest first.
_MAX_WAITING: Final = 8_192
_EXPORT_EVERY_MS: Final = 1_000

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class OtlpTracer:
    """Implements `tracing.Tracer`. A collector that is away costs spans, and one warning."""

    def __init__(self, process: str, settings: Settings) -> None:
        # It logs every try; ours says once that the collector is away, and once that it is back.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create(
            {
                "service.namespace": OUR_NAME,
                "service.name": process,
                "service.version": version("ryzanstein"),
                "service.instance.id": f"{process}@{os.uname().nodename}:{os.getpid()}",
            }
        )
        self._provider = TracerProvider(
            resource=resource,
            # Whoever sent us a context has decided already.
            sampler=ParentBased(TraceIdRatioBased(settings.trace_share)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _ReportingExporter(exporter), max_queue_size=_MAX_WAITING, schedule_delay_millis=_EXPORT_EVERY_MS
            )
        )
        self._tracer = self._provider.get_tracer(OUR_NAME, version("ryzanstein"))
        atexit.register(self._flush)

    def start(
        self,
        name: str,
        *,
        parent: str | None,
        links: Iterable[str],
        attributes: Mapping[str, Value | None],
        is_server: bool,
        start_ns: int | None,
    ) -> Span:
        linked = [trace.get_current_span(_extract(link)).get_span_context() for link in links]
        started = self._tracer.start_span(
            name,
            context=None if parent is None else _extract(parent),
            kind=trace.SpanKind.SERVER if is_server else trace.SpanKind.INTERNAL,
            attributes=_known(attributes),
            links=[trace.Link(context) for context in linked if context.is_valid],
            start_time=start_ns,
            record_exception=False,
            set_status_on_exception=False,
        )
        return _OtlpSpan(started)

    @contextmanager
    def activate(self, span: Span) -> Iterator[None]:
        assert isinstance(span, _OtlpSpan)
        token = otel_context.attach(trace.set_span_in_context(span.inner))
        try:
            yield
        finally:
            otel_context.detach(token)

    def current_context(self) -> str | None:
        return _inject(otel_context.get_current())

    def _flush(self) -> None:
        """The SDK itself would wait for half a minute."""
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_LAST_SECONDS)


class _OtlpSpan:
    def __init__(self, inner: trace.Span) -> None:
        self.inner = inner

    @property
    def context(self) -> str | None:
        return _inject(trace.set_span_in_context(self.inner))

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        self.inner.set_attributes(_known(attributes))

    def rename(self, name: str) -> None:
        self.inner.update_name(name)

    def fail(self, error_type: str) -> None:
        self.inner.set_attribute(ERROR_TYPE, error_type)
        self.inner.set_status(trace.StatusCode.ERROR)

    def end(self, at_ns: int | None = None) -> None:
        self.inner.end(at_ns)


class _ReportingExporter(SpanExporter):
    """Says once that the collector is away, and once that it is back."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._is_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_down = result is not SpanExportResult.SUCCESS
        if is_down and not self._is_down:
            log.warning("the collector of traces takes none; spans are dropped")
        elif self._is_down and not is_down:
            log.info("the collector of traces takes them again")
        self._is_down = is_down
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _known(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}


def _extract(traceparent: str) -> otel_context.Context:
    return _PROPAGATOR.extract({"traceparent": traceparent}, context=otel_context.Context())


def _inject(context: otel_context.Context) -> str | None:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=context)
    return carrier.get("traceparent")
