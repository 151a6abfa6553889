"""Logs of every process: structlog over the standard library's logging, for people or for machines.

What is logged are events with ids, names, counts and times. Prompts, answers and keys never are, which is why the
text of an exception is cut to its first line: a database says the offending row in the lines after it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from pipeline.settings import Settings

#: Loggers that say something every second, or repeat what SQL knows better; their warnings are kept.
_NOISY: Final = (
    "alembic",
    "amqp",
    "celery.app.trace",
    "celery.beat",
    "celery.worker.strategy",
    "fsspec",
    "httpx2",
    "kombu",
    "openai",
    "urllib3",
    "uvicorn.access",
)

#: Longest text of an exception that is logged, in characters.
_MAX_ERROR_CHARS: Final = 300


def configure_logging(process: str, settings: Settings | None = None) -> None:
    """Send all logs of this process to stderr, in the format of the settings, marked with `process`.

    Can be called again; replaces whatever handlers the root logger had.
    """
    if settings is None:
        from pipeline.settings import get_settings

        settings = get_settings()
    _configure({"process": process}, settings.log_level, settings.log_format)


def configure_rank_logging(rank: int, level: str, log_format: str) -> None:
    """The same in a shard process, which has no settings of its own, and starts sooner without reading any."""
    _configure({"process": "rank", "rank": rank}, level, log_format)


def _configure(marks: dict[str, Any], level: str, log_format: str) -> None:
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mark(marks),
        _format_exception,
    ]
    if log_format == "json":
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def _mark(marks: dict[str, Any]) -> structlog.typing.Processor:
    def mark(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.update(marks)
        return event

    return mark


def _format_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace `exc_info` with frames, and the first line of each exception's text."""
    info = event.pop("exc_info", None)
    if not info:
        return event
    if isinstance(info, BaseException):
        error: BaseException | None = info
    elif isinstance(info, tuple):
        error = info[1]
    else:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = format_error(error)
    return event


def format_error(error: BaseException) -> str:
    """The traceback of `error` and of what caused it, without anything but the first line of their texts."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = "".join(traceback.format_tb(current.__traceback__))
        parts.append(f"{frames}{summarize_error(current)}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\ncaused\n\n".join(reversed(parts))


def summarize_error(error: BaseException) -> str:
    """The type of `error` and the first line of its text, cut to a length that fits a log line."""
    text = (str(error).splitlines() or [""])[0][:_MAX_ERROR_CHARS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
