"""Traces: one of each batch, from the client's POST to its end, through every process that works on it.

Off unless `RYZANSTEIN_OTLP_ENDPOINT` is set: then nothing of OpenTelemetry's SDK is imported, and a span costs an `if`.
A context is a W3C `traceparent`; it is handed from process to process in SQL, in the row of the batch and of a
message, since a ticket names no batch. A span has ids, names and counts; prompts, answers, keys and texts of errors
never.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, Protocol

from pipeline.errors import ConfigurationError
from pipeline.settings import PREFIX, Settings

#: Ids, names, counts and flags.
Value = str | int | float | bool

#: Version, trace, span and flags, in hexadecimal digits.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Span(Protocol):
    """Something that took time. Without tracing it is one that forgets all that it is told."""

    @property
    def context(self) -> str | None:
        """Its `traceparent`, for spans elsewhere that belong below it; None where traces are off."""

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """None of a value: it is not known."""

    def rename(self, name: str) -> None:
        """What it is is known by now."""

    def fail(self, error_type: str) -> None:
        """It came to no good end."""

    def end(self, at_ns: int | None = None) -> None:
        """Now, or at this time of the system's clock. Of a span that `span` gave, that is not called."""


class Tracer(Protocol):
    """What `otlp.py` has; nobody else looks into OpenTelemetry."""

    def start(
        self,
        name: str,
        *,
        parent: str | None,
        links: Iterable[str],
        attributes: Mapping[str, Value | None],
        is_server: bool,
        start_ns: int | None,
    ) -> Span: ...

    def activate(self, span: Span) -> AbstractContextManager[None]: ...

    def current_context(self) -> str | None: ...


class _NoSpan:
    """Where traces are off."""

    context: str | None = None

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def fail(self, error_type: str) -> None:
        pass

    def end(self, at_ns: int | None = None) -> None:
        pass


NO_SPAN: Final = _NoSpan()
_NO_SPAN_CONTEXT: Final = nullcontext(NO_SPAN)
_NOTHING: Final[Mapping[str, Value | None]] = {}

_tracer: Tracer | None = None


def configure_tracing(process: str, settings: Settings) -> None:
    """Send this process's spans where the settings say; `process` is `gateway`, `control`, or the name of a group.

    Does nothing where they name no place. Raises ConfigurationError where what it takes is not installed.
    """
    global _tracer  # one per process, as of logs
    if not settings.otlp_endpoint:
        return
    try:
        from pipeline.telemetry import otlp
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{PREFIX}OTLP_ENDPOINT is set, and the package {error.name} is not installed: "
            "`pip install 'ryzanstein[traces]'`, or leave the setting out."
        ) from None
    _tracer = otlp.OtlpTracer(process, settings)


def is_on() -> bool:
    return _tracer is not None


def current_context() -> str | None:
    """`traceparent` of the span that this thread or task is in; None without one, or where traces are off."""
    return None if _tracer is None else _tracer.current_context()


def is_traceparent(text: str) -> bool:
    """Whether a header of a client is one that we hand on."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id(context: str | None) -> str | None:
    """Of a `traceparent`: what its spans have in common."""
    return None if context is None else context.split("-")[1]


def start_span(
    name: str,
    attributes: Mapping[str, Value | None] = _NOTHING,
    *,
    parent: str | None = None,
    links: Iterable[str | None] = (),
    start_ns: int | None = None,
) -> Span:
    """A span that somebody else ends, in whatever thread; nothing becomes its child by itself."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.start(
        name, parent=parent, links=_known(links), attributes=attributes, is_server=False, start_ns=start_ns
    )


def span(
    name: str,
    attributes: Mapping[str, Value | None] = _NOTHING,
    *,
    parent: str | None = None,
    links: Iterable[str | None] = (),
    start_ns: int | None = None,
    is_server: bool = False,
) -> AbstractContextManager[Span]:
    """A span around a block; what begins within it is its child. An exception marks it, with its type alone.

    Its parent is `parent`, else the span around it. `links` are contexts of spans that it serves as well.
    """
    if _tracer is None:
        return _NO_SPAN_CONTEXT
    return _block(
        _tracer,
        _tracer.start(
            name, parent=parent, links=_known(links), attributes=attributes, is_server=is_server, start_ns=start_ns
        ),
    )


@contextmanager
def _block(tracer: Tracer, started: Span) -> Iterator[Span]:
    try:
        with tracer.activate(started):
            yield started
    except BaseException as error:
        started.fail(type(error).__name__)
        raise
    finally:
        started.end()


def _known(links: Iterable[str | None]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(link for link in links if link))
