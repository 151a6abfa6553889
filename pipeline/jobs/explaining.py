"""Why a batch waits, with numbers: what is ahead of it by class, by share and of its own tenant, who is there to work
on it, and when that would be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.estimating import Ahead, time_for, work_ahead
from pipeline.jobs.fairness import EXPECTED_COST, ITS_BATCH_IS_WORKED_ON, weights_of
from pipeline.jobs.load import Load, Queue, load_of
from pipeline.settings import get_settings
from pipeline.tables import Batch, BatchStatus, ServiceClass
from pipeline.tables.batches import PAUSED_BY_CLIENT
from pipeline.tenancy.scopes import is_in_project

#: Tenants that an explanation shows, without their names: those with the lowest counters.
MAX_OTHERS: Final = 50
#: How far back the speed of a model is shown.
RECENT_SECONDS: Final = 900


class WaitReason(StrEnum):
    """What a batch waits for."""

    PREPARING = "preparing"  #: Its input file is yet to be read and planned.
    BUDGET = "budget"  #: It is paused: a budget has no room for its next request.
    PAUSED = "paused"  #: Its client has paused it.
    NO_GROUP = "no_group"  #: No group works for its model.
    COLD_START = "cold_start"  #: The groups of its model are loading it.
    CLASS_AHEAD = "class_ahead"  #: Slices of a higher class wait too.
    SHARE_AHEAD = "share_ahead"  #: Other tenants of its class wait who were served less.
    OWN_WORK = "own_work"  #: Slices of other batches of its tenant have the nearer deadline.
    ENGINES_FULL = "engines_full"  #: It is next; the groups are at work on what they have.
    RUNNING = "running"  #: Nothing of it waits: groups have all that is left of it.
    ENDED = "ended"  #: It has ended, or is just being closed.


#: While one of these holds, nothing can be said of when it would be done.
_WITHOUT_END: Final = frozenset({WaitReason.BUDGET, WaitReason.PAUSED, WaitReason.ENDED})


@dataclass(frozen=True, slots=True)
class Slices:
    """Those of a batch, and the weighted tokens that are expected of the pending ones."""

    num_pending: int
    num_at_work: int
    num_done: int
    pending_cost: Decimal
    #: When the first was claimed.
    started_at: datetime | None
    #: Slices of its tenant's other batches that come first, and what is expected of them.
    num_own_ahead: int
    own_cost_ahead: Decimal


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a batch waits. What concerns its model is None until intake has found which that is."""

    batch: Batch
    reasons: Sequence[WaitReason]
    slices: Slices
    load: Load | None
    #: The queue of its tenant in its class.
    queue: Queue | None
    #: What is ahead of its first pending slice.
    ahead: Ahead | None
    #: Tokens that the groups of its model computed of late, per second.
    recent_tokens_per_second: float
    estimated_start: datetime | None
    estimated_finish: datetime | None
    #: What the finish would be if all that waits of it were of another class.
    finish_in_class: Mapping[ServiceClass, datetime | None]

    @property
    def others(self) -> list[Queue]:
        """Other tenants who wait in its class, the lowest counter first."""
        if self.load is None or self.queue is None:
            return []
        others = [
            other
            for other in self.load.queues
            if other.num_pending
            and other.service_class is self.queue.service_class
            and other.tenant_id != self.queue.tenant_id
        ]
        return sorted(others, key=lambda other: other.counter)


_SLICES: Final = text(f"""
    SELECT count(*) FILTER (WHERE s.status = 'pending') AS num_pending,
           count(*) FILTER (WHERE s.status = 'claimed') AS num_at_work,
           count(*) FILTER (WHERE s.status = 'done') AS num_done,
           coalesce(sum({EXPECTED_COST}) FILTER (WHERE s.status = 'pending'), 0) AS pending_cost,
           (SELECT min(a.started_at) FROM attempts a JOIN slices mine ON mine.id = a.slice_id
            WHERE mine.batch_id = :batch_id) AS started_at
    FROM slices s WHERE s.batch_id = :batch_id
""")  # noqa: S608 - constants
_OWN_AHEAD: Final = text(f"""
    SELECT count(*) AS num_slices, coalesce(sum({EXPECTED_COST}), 0) AS cost
    FROM batches me, slices s
    WHERE me.id = :batch_id AND s.model = me.model AND s.status = 'pending' AND s.service_class = me.service_class
      AND s.tenant_id = me.tenant_id AND s.batch_id <> me.id AND {ITS_BATCH_IS_WORKED_ON}
      AND (s.deadline, s.id) < (SELECT deadline, id FROM slices
                                WHERE batch_id = me.id AND status = 'pending' ORDER BY deadline, id LIMIT 1)
""")  # noqa: S608 - constants
_RECENT: Final = text("""
    SELECT coalesce(sum(a.num_tokens), 0) FROM attempts a JOIN slices s ON s.id = a.slice_id
    WHERE s.model = :model AND a.started_at > now() - make_interval(secs => :seconds)
""")


def explain(session: Session, batch_id: str, tenant_id: str, project_id: str | None = None) -> Explanation:
    """Explain a batch of this tenant, and of this project if one is given. Raises BatchNotFoundError."""
    found = select(Batch).where(Batch.id == batch_id, is_in_project(Batch, tenant_id, project_id))
    batch = session.execute(found).scalar_one_or_none()
    if batch is None:
        raise BatchNotFoundError
    slices = _slices(session, batch_id)
    if batch.model is None:
        reason = WaitReason.PREPARING if batch.status is BatchStatus.VALIDATING else WaitReason.ENDED
        return Explanation(batch, [reason], slices, None, None, None, 0.0, None, None, {})
    load = load_of(session, batch.model)
    queue = load.queue_of(batch.tenant_id, batch.service_class)
    recent = session.execute(_RECENT, {"model": batch.model, "seconds": RECENT_SECONDS}).scalar_one()
    first = work_ahead(load, queue, cost=Decimal(0), own=slices.own_cost_ahead)
    reasons = list(_reasons(batch, slices, load, first))
    start, finish = None, None
    in_class: dict[ServiceClass, datetime | None] = {}
    if not _WITHOUT_END.intersection(reasons):
        start = slices.started_at or _start(load, first)
        finish = _finish(load, queue, slices, slices.own_cost_ahead)
        if slices.num_pending:
            rest = _without(load, queue, slices)
            others = [rest.queue_of(batch.tenant_id, kind) for kind in ServiceClass if kind is not batch.service_class]
            in_class = {other.service_class: _finish(rest, other, slices, other.pending_cost) for other in others}
    speed = float(recent) / RECENT_SECONDS
    return Explanation(batch, reasons, slices, load, queue, first, speed, start, finish, in_class)


def _finish(load: Load, queue: Queue, slices: Slices, own: Decimal) -> datetime | None:
    """When what waits of a batch would be done in this queue, behind so much of the tenant's own work there."""
    if not slices.num_pending:
        return time_for(load, load.cost_at_work)
    ahead = work_ahead(load, queue, cost=slices.pending_cost, own=own)
    return time_for(load, ahead.total + slices.pending_cost)


def _without(load: Load, queue: Queue, slices: Slices) -> Load:
    """The load if what waits of a batch were not in the queue that it is in."""
    rest = replace(
        queue,
        pending_cost=queue.pending_cost - slices.pending_cost,
        num_pending=queue.num_pending - slices.num_pending,
    )
    return replace(load, queues=[rest if other is queue else other for other in load.queues])


def _slices(session: Session, batch_id: str) -> Slices:
    params: dict[str, Any] = {"batch_id": batch_id, **weights_of(get_settings())}
    row = session.execute(_SLICES, params).one()
    own = session.execute(_OWN_AHEAD, params).one()
    return Slices(
        num_pending=row.num_pending,
        num_at_work=row.num_at_work,
        num_done=row.num_done,
        pending_cost=row.pending_cost,
        started_at=row.started_at,
        num_own_ahead=own.num_slices,
        own_cost_ahead=own.cost,
    )


def _reasons(batch: Batch, slices: Slices, load: Load, ahead: Ahead) -> Iterator[WaitReason]:
    """All that hold, the weightiest first."""
    if batch.status is not BatchStatus.IN_PROGRESS:
        yield WaitReason.ENDED
        return
    if batch.pause_reason is not None:
        yield WaitReason.PAUSED if batch.pause_reason == PAUSED_BY_CLIENT else WaitReason.BUDGET
        return
    if slices.num_pending == 0:
        yield WaitReason.RUNNING
        return
    if load.num_ready == 0:
        yield WaitReason.COLD_START if load.num_starting else WaitReason.NO_GROUP
    if ahead.num_by_class:
        yield WaitReason.CLASS_AHEAD
    if ahead.num_by_share:
        yield WaitReason.SHARE_AHEAD
    if slices.num_own_ahead:
        yield WaitReason.OWN_WORK
    if load.num_ready and not ahead.waiting:
        yield WaitReason.ENGINES_FULL


def _start(load: Load, ahead: Ahead) -> datetime | None:
    """When its first slice would be claimed: what is ahead is, and a place is free."""
    num_at_work = sum(queue.num_at_work for queue in load.queues)
    return time_for(load, ahead.waiting + (ahead.at_work / num_at_work if num_at_work else 0))
