"""Queues as a person looks at them: what waits, whose turn is next and why, and what Redis holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.celery import BROKER_ERRORS, generate_queue, queue_lengths
from pipeline.jobs.choosing import CLASS_ORDER
from pipeline.jobs.load import Load, Queue, load_of
from pipeline.telemetry.logs import summarize_error

log = structlog.get_logger(__name__)

_MODELS: Final = text("SELECT name FROM served_models ORDER BY name")
# Reads every pending slice once, as `load_of` does.
_OLDEST: Final = text("""
    SELECT s.model, s.service_class, s.tenant_id, min(b.in_progress_at) AS since, min(s.deadline) AS deadline
    FROM slices s JOIN batches b ON b.id = s.batch_id
    WHERE s.status = 'pending' AND b.status = 'in_progress' AND b.pause_reason IS NULL
    GROUP BY s.model, s.service_class, s.tenant_id
""")
_BATCHES: Final = text("""
    SELECT count(*) FILTER (WHERE status = 'validating') AS num_preparing,
           count(*) FILTER (WHERE status = 'in_progress' AND pause_reason IS NOT NULL) AS num_paused,
           count(*) FILTER (WHERE status = 'in_progress' AND pause_reason IS NULL) AS num_in_progress
    FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
""")
_OUTBOX: Final = text("""
    SELECT count(*) AS num_messages,
           coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS lag_seconds
    FROM outbox
""")
_NAMES: Final = text("SELECT id, name FROM tenants WHERE id = ANY(:ids)")


class TurnReason(StrEnum):
    """Why a tenant is next of a model."""

    ONLY = "only"  #: Nobody else waits.
    CLASS = "class"  #: It alone waits in the highest class that there is.
    SHARE = "share"  #: Of those who wait in that class, it was served least.
    DEADLINE = "deadline"  #: Others were served as little; its deadline is the nearest.


@dataclass(frozen=True, slots=True)
class Waiting:
    """What one tenant has in one class of a model."""

    tenant: str
    queue: Queue
    #: When the oldest batch of those that wait was planned, and the nearest deadline; None where nothing waits.
    since: datetime | None
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class Turn:
    """Who is next, ageing of lower classes and the cache of the group that claims left aside."""

    waiting: Waiting
    reason: TurnReason
    #: Who would be next without it.
    second: Waiting | None


@dataclass(frozen=True, slots=True)
class ModelQueue:
    load: Load
    #: In the order of serving: by class, by counter, by deadline. Those of whom nothing waits are at the end.
    waiting: Sequence[Waiting]
    turn: Turn | None
    #: In Redis; None where it can't be, or was not, asked.
    num_tickets: int | None = None

    @property
    def model(self) -> str:
        return self.load.model

    @property
    def num_pending(self) -> int:
        return sum(one.queue.num_pending for one in self.waiting)


@dataclass(frozen=True, slots=True)
class QueueView:
    """All queues at one moment."""

    now: datetime
    models: Sequence[ModelQueue]
    num_outbox_messages: int
    #: Age of the oldest message that Redis has not got, in seconds.
    outbox_seconds: float
    num_preparing: int
    num_in_progress: int
    num_paused: int
    #: None where Redis was not asked.
    is_redis_reachable: bool | None = None


def view_queues(session: Session, tenant_id: str | None = None) -> QueueView:
    """Of one tenant, who is shown no other, or of all; what Redis holds of them is for `with_tickets`."""
    models = list(session.scalars(_MODELS))
    oldest = {(row.model, row.service_class, row.tenant_id): row for row in session.execute(_OLDEST)}
    loads = [load_of(session, model) for model in models]
    names = _names(session, loads)
    outbox, batches = session.execute(_OUTBOX).one(), session.execute(_BATCHES).one()
    views = [_model_queue(load, names, oldest, tenant_id) for load in loads]
    return QueueView(
        now=session.execute(text("SELECT clock_timestamp()")).scalar_one(),
        models=views,
        num_outbox_messages=outbox.num_messages,
        outbox_seconds=outbox.lag_seconds,
        num_preparing=batches.num_preparing,
        num_in_progress=batches.num_in_progress,
        num_paused=batches.num_paused,
    )


def with_tickets(view: QueueView) -> QueueView:
    """The same with what Redis holds. It is waited for two seconds at most, and no transaction should be open."""
    lengths = _lengths([one.model for one in view.models])
    if lengths is None:
        return replace(view, is_redis_reachable=False)
    models = [replace(one, num_tickets=lengths[generate_queue(one.model)]) for one in view.models]
    return replace(view, models=models, is_redis_reachable=True)


def _model_queue(
    load: Load,
    names: dict[str, str],
    oldest: dict[tuple[str, str, str], Any],
    tenant_id: str | None,
) -> ModelQueue:
    waiting = []
    for queue in load.queues:
        first = oldest.get((load.model, queue.service_class, queue.tenant_id))
        name = names.get(queue.tenant_id, queue.tenant_id)
        waiting.append(Waiting(name, queue, first and first.since, first and first.deadline))
    waiting.sort(key=_order)
    return ModelQueue(
        load=load,
        waiting=[one for one in waiting if tenant_id in (None, one.queue.tenant_id)],
        turn=_turn(waiting) if tenant_id is None else None,
    )


def _order(one: Waiting) -> tuple[Any, ...]:
    deadline = one.deadline.timestamp() if one.deadline else float("inf")
    return (one.queue.num_pending == 0, CLASS_ORDER[one.queue.service_class], one.queue.counter, deadline, one.tenant)


def _turn(ordered: Sequence[Waiting]) -> Turn | None:
    waiting = [one for one in ordered if one.queue.num_pending]
    if not waiting:
        return None
    first, second = waiting[0], waiting[1] if len(waiting) > 1 else None
    if second is None:
        reason = TurnReason.ONLY
    elif second.queue.service_class is not first.queue.service_class:
        reason = TurnReason.CLASS
    elif second.queue.counter != first.queue.counter:
        reason = TurnReason.SHARE
    else:
        reason = TurnReason.DEADLINE
    return Turn(first, reason, second)


def _lengths(models: Sequence[str]) -> dict[str, int] | None:
    try:
        return queue_lengths(generate_queue(model) for model in models)
    except BROKER_ERRORS as error:
        log.warning("Redis can't be asked how many tickets it has", reason=summarize_error(error))
        return None


def _names(session: Session, loads: Sequence[Load]) -> dict[str, str]:
    ids = sorted({queue.tenant_id for load in loads for queue in load.queues})
    return {row.id: row.name for row in session.execute(_NAMES, {"ids": ids})}
