"""Flower over our Celery app: who works, what waits, and what ran. It may look and not touch."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import flower.options  # noqa: F401  defines the options that are set below
from tornado.options import options

from pipeline.celery import app
from pipeline.errors import ConfigurationError
from pipeline.settings import PREFIX, get_settings
from pipeline.telemetry.flower_access import (
    GuardedHealthcheck,
    GuardedMetrics,
    access_options,
    oauth_settings,
    tell_server,
)
from pipeline.telemetry.flower_events import SAVE_MS, LastingEvents, state_file
from pipeline.telemetry.flower_pages import TemplateLoader, batch_in_console, format_task

if TYPE_CHECKING:
    from flower.app import Flower

log = logging.getLogger(__name__)

#: Tasks that it remembers, 5 kB each; the truth about batches is in SQL. Few enough that its memory is flat soon.
_MAX_TASKS: Final = 2_000


def run_flower() -> None:
    """Serve Flower where the settings say, until SIGTERM. Raises ConfigurationError for settings that can't work."""
    server = make_flower()
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _exit)
    settings = get_settings()
    try:
        port = server.start_http_server()
    except OSError as error:
        raise ConfigurationError(
            f"Flower can't listen on {settings.flower_host}:{settings.flower_port}: {error.strerror}. "
            f"Set {PREFIX}FLOWER_HOST or {PREFIX}FLOWER_PORT."
        ) from None
    log.info("Flower listens on http://%s:%d", settings.flower_host, port)
    if not settings.flower_read_only:
        log.warning("Flower is not read-only: whoever signs in may stop workers and send tasks to them")
    try:
        server.start()
    finally:
        server.events.stop()  # keeps what it has seen


def make_flower() -> Flower:
    """Flower as the settings want it: read-only, behind a password or OAuth."""
    settings = get_settings()
    file = state_file(settings)
    chosen: dict[str, Any] = {
        **access_options(settings),
        "address": settings.flower_host,
        "port": settings.flower_port,
        "read_only": settings.flower_read_only,
        "max_tasks": _MAX_TASKS,
        "tasks_columns": "name,args,state,result,worker,runtime,received,uuid",
        "format_task": format_task,
        # A worker that is gone for a day is no news.
        "purge_offline_workers": 86_400,
        "persistent": file is not None,
        "db": str(file),
        "state_save_interval": SAVE_MS,
    }
    for name, value in chosen.items():
        setattr(options, name, value)
    tell_server(settings)
    # Not before: its handlers read where to sign in when they are imported.
    from flower.app import Flower
    from flower.urls import settings as tornado_settings

    events = LastingEvents(
        app,
        on_worker=lambda worker, is_new: inspect(worker, is_new),
        io_loop=None,
        db=options.db,
        persistent=options.persistent,
        state_save_interval=options.state_save_interval,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
    )
    server = Flower(
        capp=app,
        options=options,
        events=events,
        **tornado_settings,
        **oauth_settings(settings),
        template_loader=TemplateLoader(),
        ui_methods={"batch_in_console": batch_in_console},
    )
    events.io_loop = server.io_loop
    # Looked at before Flower's own.
    server.add_handlers(r".*", [(r"/metrics", GuardedMetrics), (r"/healthcheck", GuardedHealthcheck)])

    def inspect(worker: str, is_new: bool) -> None:
        # It announces itself before it listens, so that the first question may stay unanswered.
        if is_new or "active_queues" not in server.workers.get(worker, {}):
            server.update_workers(worker)

    return server


def _exit(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)
