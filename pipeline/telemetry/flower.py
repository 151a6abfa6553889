"""Flower over our Celery app: who works, what waits, and what ran. It may look and not touch."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import flower.options  # noqa: F401  defines the options that are set below
from celery.events import EventReceiver
from flower.app import Flower
from flower.events import Events
from flower.urls import settings as tornado_settings
from tornado.options import options

from pipeline.celery import RELAY, app
from pipeline.errors import ConfigurationError
from pipeline.settings import PREFIX, get_settings

log = logging.getLogger(__name__)

#: Tasks that it remembers, 5 kB each; the truth about batches is in SQL. Few enough that its memory is flat soon.
_MAX_TASKS = 2_000
#: A task and what Celery knows of it refer to each other: without a collection now and then, thousands of tasks that
#: were forgotten stay, until Python comes to look at its oldest objects.
_EVENTS_PER_COLLECTION = 2_000
#: Runs every second, and would push everything else out of the list.
_UNSHOWN = frozenset({RELAY})
#: Runs of these whose later events, which carry no name, may still come.
_MAX_UNSHOWN = 1_000
#: How soon it listens again after Redis went away, in seconds.
_LISTEN_AGAIN = 2.0


class _Events(Events):  # type: ignore[misc]
    """Flower's listener, made to last.

    Flower doubles its wait at every failure, without a limit: after an outage it would stay deaf for long. And it asks
    for workers and their queues at its start alone: a worker that comes later would have no queue.
    """

    def __init__(self, *args: Any, on_worker: Callable[[str, bool], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_worker = on_worker
        self._unshown: deque[str] = deque(maxlen=_MAX_UNSHOWN)
        self._num_events = 0

    def run(self) -> None:
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:  # noqa: BLE001  whatever it was, the next try is the remedy
                log.warning("Redis can't be listened to (%s); next try in %g s", type(error).__name__, _LISTEN_AGAIN)
                time.sleep(_LISTEN_AGAIN)

    def on_event(self, event: dict[str, Any]) -> None:
        if event.get("name") in _UNSHOWN:
            self._unshown.append(event["uuid"])
        if event.get("uuid") in self._unshown:
            return
        super().on_event(event)
        self._num_events += 1
        if self._num_events % _EVENTS_PER_COLLECTION == 0:
            gc.collect()
        if event["type"].startswith("worker-"):
            self.io_loop.add_callback(self._on_worker, event["hostname"], event["type"] == "worker-online")


def run_flower() -> None:
    """Serve Flower where the settings say, until SIGTERM. Raises ConfigurationError without a password."""
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
    server.start()


def make_flower() -> Flower:
    """Flower as the settings want it: read-only, behind basic authentication."""
    settings = get_settings()
    password = settings.flower_password.get_secret_value() if settings.flower_password else ""
    if not password:
        raise ConfigurationError(f"Flower needs a password: set {PREFIX}FLOWER_PASSWORD.")
    # The only variable that Flower reads by itself; it would open the API to everybody.
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    chosen: dict[str, Any] = {
        "address": settings.flower_host,
        "port": settings.flower_port,
        "basic_auth": [f"{settings.flower_user}:{password}"],
        "read_only": True,
        "max_tasks": _MAX_TASKS,
        "tasks_columns": "name,args,state,result,received,runtime,worker,uuid",
        # A worker that is gone for a day is no news.
        "purge_offline_workers": 86_400,
    }
    for name, value in chosen.items():
        setattr(options, name, value)
    server = Flower(capp=app, options=options, **tornado_settings)

    def inspect(worker: str, is_new: bool) -> None:
        # It announces itself before it listens, so that the first question may stay unanswered.
        if is_new or "active_queues" not in server.workers.get(worker, {}):
            server.update_workers(worker)

    server.events = _Events(
        app,
        on_worker=inspect,
        io_loop=server.io_loop,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
    )
    return server


def _exit(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)
