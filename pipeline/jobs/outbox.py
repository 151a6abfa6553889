"""The outbox: messages written in the transaction that makes them necessary, published after its commit.

A message that was committed is published at least once. Publishing twice is harmless, since no message carries a
decision: whoever receives one looks into SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, delete, exists, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pipeline.celery import BROKER_ERRORS, GENERATE, PROMPT_OPTIONS, app, describe_args, generate_queue, queue
from pipeline.settings import get_settings
from pipeline.tables import OutboxMessage
from pipeline.tables.session import get_engine
from pipeline.telemetry import tracing
from pipeline.telemetry.logs import summarize_error

log = structlog.get_logger(__name__)

#: Header of a message that says which span wrote it.
TRACE_HEADER: Final = "traceparent"

#: Messages published in one transaction, which keeps them locked while Redis is asked.
_PAGE: Final = 100
#: Messages that one call publishes at most, so that a flood does not occupy its thread for ever.
_MAX_MESSAGES: Final = 5_000

_ANY_MESSAGE: Final = select(exists(select(OutboxMessage.id)))


def add(conn: Session | Connection, *, queue: str, task: str, args: Sequence[Any], copies: int = 1) -> None:
    """Write a message, `copies` times, in the caller's transaction. Call `publish_soon` after its commit."""
    if copies > 0:
        row = {"queue": queue, "task": task, "args": list(args), "trace_context": tracing.current_context()}
        conn.execute(insert(OutboxMessage), [row] * copies)


def add_tickets(conn: Session | Connection, model: str, copies: int) -> None:
    """Write `copies` tickets for `model`, one for each slice that became pending."""
    add(conn, queue=generate_queue(model), task=GENERATE, args=[model], copies=copies)


class _Publisher:
    """One connection to Redis, shared by the threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Any = None
        self._url = ""
        self._is_down = False

    def send(self, messages: Sequence[OutboxMessage]) -> list[int]:
        """Publish in order until one fails; returns the ids of those that Redis has."""
        sent: list[int] = []
        with self._lock:
            try:
                producer = app.amqp.Producer(self._connect(), auto_declare=False)
                for message in messages:
                    app.send_task(
                        message.task,
                        args=message.args,
                        argsrepr=describe_args(message.task, message.args),
                        kwargsrepr="",
                        queue=queue(message.queue),
                        producer=producer,
                        retry=False,
                        ignore_result=True,
                        add_to_parent=False,
                        headers={TRACE_HEADER: message.trace_context} if message.trace_context else None,
                    )
                    sent.append(message.id)
            except BROKER_ERRORS as error:
                self._close()
                if not self._is_down:
                    log.warning("Redis takes no messages; the relay goes on trying", reason=summarize_error(error))
                self._is_down = True
            else:
                if self._is_down:
                    log.info("Redis takes messages again")
                self._is_down = False
        return sent

    def _connect(self) -> Any:
        url = get_settings().redis_url.get_secret_value()
        if self._connection is None or url != self._url:
            self._close()
            self._url = url
            self._connection = app.connection_for_write(url, transport_options=PROMPT_OPTIONS, connect_timeout=2)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None


_publisher = _Publisher()


def publish(engine: Engine | None = None) -> int:
    """Publish what is in the outbox and not being published by another; returns how many messages that was.

    A Redis that is down or hangs costs a few seconds at most and is no error: the messages stay.
    """
    engine = engine or get_engine()
    num_published = 0
    while num_published < _MAX_MESSAGES:
        with Session(engine) as session, session.begin():
            page = session.scalars(
                select(OutboxMessage).order_by(OutboxMessage.id).limit(_PAGE).with_for_update(skip_locked=True)
            ).all()
            sent = _publisher.send(page) if page else []
            if sent:
                session.execute(
                    delete(OutboxMessage).where(OutboxMessage.id.in_(sent)),
                    execution_options={"synchronize_session": False},
                )
        num_published += len(sent)
        if len(sent) < _PAGE:
            break
    return num_published


def is_empty(engine: Engine | None = None) -> bool:
    """Whether there is nothing to publish. False where the database can't be asked, so that `publish` says why."""
    try:
        with (engine or get_engine()).connect() as conn:
            return not conn.scalar(_ANY_MESSAGE)
    except SQLAlchemyError:
        return False


class _BackgroundPublisher:
    """A thread that publishes when it is woken, so that nobody who commits waits for Redis."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None

    def wake(self, engine: Engine) -> None:
        with self._lock:
            self._engine = engine
            if self._thread is None or not self._thread.is_alive():
                # A daemon: what it leaves unpublished at exit, the relay publishes.
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                engine = self._engine
            try:
                publish(engine)
            except SQLAlchemyError as error:
                log.warning("could not read the outbox; the relay goes on trying", reason=summarize_error(error))


_background = _BackgroundPublisher()


def publish_soon(engine: Engine | None = None) -> None:
    """Have what was just committed published by another thread. Returns at once and never fails."""
    _background.wake(engine or get_engine())
