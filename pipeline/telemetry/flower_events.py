"""What Flower hears and remembers: its listener, made to last, and its memory on disk."""

from __future__ import annotations

import gc
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from celery.events import EventReceiver
from flower.events import Events

from pipeline.celery import RELAY
from pipeline.errors import ConfigurationError
from pipeline.settings import PREFIX, Settings

log = logging.getLogger(__name__)

#: A task and what Celery knows of it refer to each other: without a collection now and then, thousands of tasks that
#: were forgotten stay, until Python comes to look at its oldest objects.
_EVENTS_PER_COLLECTION: Final = 2_000
#: Runs every second, and would push everything else out of the list.
_UNSHOWN: Final = frozenset({RELAY})
#: Runs of these whose later events, which carry no name, may still come.
_MAX_UNSHOWN: Final = 1_000
#: How soon it listens again after Redis went away, in seconds.
_LISTEN_AGAIN: Final = 2.0
#: How often it writes down what it has seen, beside when it ends, in milliseconds.
SAVE_MS: Final = 60_000

_FILE: Final = "events"


class LastingEvents(Events):  # type: ignore[misc]
    """Flower's listener.

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
        if event.get("uuid") not in self._unshown:
            self.io_loop.add_callback(self._see, event)

    def _see(self, event: dict[str, Any]) -> None:
        """In the thread of Flower's loop, which its memory belongs to, in the order of the events."""
        if event["type"].startswith("task-") and "name" not in event and event["uuid"] not in self.state.tasks:
            return  # it began before anybody listened: nothing would be known of it but its id
        self.state.event(event)
        self._num_events += 1
        if self._num_events % _EVENTS_PER_COLLECTION == 0:
            gc.collect()
        if event["type"].startswith("worker-"):
            self._on_worker(event["hostname"], event["type"] == "worker-online")

    def save_state(self) -> None:
        """A disk that is full costs what was seen, and nothing else."""
        try:
            super().save_state()
        except OSError as error:
            log.warning("what Flower has seen can't be kept in %s: %s", self.db, error.strerror)


def state_file(settings: Settings) -> Path | None:
    """Where Flower keeps what it has seen; its folder is made. None: nowhere.

    Raises ConfigurationError for a folder that others may write to: what is read from it is code as good as ours.
    """
    folder = settings.flower_state_dir or (settings.data_dir / "flower" if settings.data_dir else None)
    if folder is None:
        return None
    advice = f"Set {PREFIX}FLOWER_STATE_DIR to a folder of your own, or leave it unset."
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise ConfigurationError(
            f"Flower can't keep what it has seen in {folder}: {error.strerror}. {advice}"
        ) from None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(f"Others may write to {folder}, and Flower would run what they write. {advice}")
    return folder / _FILE
