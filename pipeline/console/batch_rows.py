"""Batches as the console shows them: what they are, how fast they go, and how long they have to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, func, or_, select, text
from sqlalchemy.orm import Session

from pipeline.console.failures import not_found
from pipeline.paging import Page, read_page
from pipeline.tables import Batch, BatchStatus, File
from pipeline.tables.batches import PAUSABLE, PAUSED_BY_CLIENT
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.scopes import is_in_project

#: What a list can be narrowed to beside the statuses.
OPEN: Final = "open"
PAUSED: Final = "paused"
FILTERS: Final = (OPEN, PAUSED, *(status.value for status in BatchStatus))
UNFINISHED: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)

# What groups hold of a batch at this moment, and how fast they have been since they claimed it.
_AT_WORK: Final = text("""
    SELECT s.batch_id, count(*) AS num_slices,
           sum(a.num_tokens / greatest(extract(epoch FROM clock_timestamp() - a.started_at), 1)) AS tokens_per_second
    FROM slices s JOIN attempts a ON a.slice_id = s.id AND a.lease_epoch = s.lease_epoch
    WHERE s.batch_id = ANY(:batch_ids) AND s.status = 'claimed'
    GROUP BY s.batch_id
""")
# Who could work on a model.
_GROUPS: Final = text("""
    SELECT model, count(*) FILTER (WHERE state = 'ready') AS num_ready,
           count(*) FILTER (WHERE state IN ('starting', 'restarting')) AS num_starting
    FROM groups WHERE model = ANY(:models) GROUP BY model
""")


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """A batch at one moment by the database's clock."""

    batch: Batch
    filename: str
    now: datetime
    num_slices_at_work: int
    #: Tokens that are computed for it at the moment, in and out.
    tokens_per_second: float
    #: Of its model.
    num_groups_ready: int = 0
    num_groups_starting: int = 0

    @property
    def status(self) -> str:
        """`paused` and `waiting` are no statuses of the API, but what a person wants to know of one in progress."""
        if self.is_paused:
            return PAUSED
        is_waiting = self.batch.status is BatchStatus.IN_PROGRESS and self.batch.num_unfinished > 0
        return "waiting" if is_waiting and self.num_slices_at_work == 0 else self.batch.status.value

    @property
    def is_open(self) -> bool:
        return self.batch.status in UNFINISHED

    @property
    def is_paused(self) -> bool:
        return self.batch.status in PAUSABLE and self.batch.pause_reason is not None

    @property
    def reason(self) -> str | None:
        """In a few words, why nothing of it runs; its own page says all of it, with numbers."""
        match self.status:
            case "paused" if self.batch.pause_reason == PAUSED_BY_CLIENT:
                return "by you"
            case "paused":
                return "a budget has no room"
            case "waiting" if self.num_groups_ready:
                return "other work comes first"
            case "waiting" if self.num_groups_starting:
                return "its groups are starting"
            case "waiting":
                return "no group works for its model"
            case "validating":
                return "its file is being read"
        return None

    @property
    def num_done(self) -> int:
        """Lines with an outcome."""
        return self.batch.num_succeeded + self.num_failed

    @property
    def num_failed(self) -> int:
        """As the API counts them: failed, cancelled, expired, or skipped."""
        return self.batch.num_unsuccessful + self.batch.num_skipped

    @property
    def num_total(self) -> int:
        return self.batch.num_requests + self.batch.num_skipped

    @property
    def seconds_running(self) -> float | None:
        """From its first request could run to its end, or to now; None before."""
        batch = self.batch
        if batch.in_progress_at is None:
            return None
        ends = (batch.completed_at, batch.cancelled_at, batch.expired_at, batch.finalizing_at)
        end = next((moment for moment in ends if moment is not None), self.now)
        return max((end - batch.in_progress_at).total_seconds(), 0.001)

    @property
    def requests_per_minute(self) -> float | None:
        """In the mean since it could run; None where nothing is done."""
        finished = self.batch.num_succeeded + self.batch.num_unsuccessful
        return finished / self.seconds_running * 60 if finished and self.seconds_running else None

    @property
    def seconds_left(self) -> float | None:
        """If it goes on as it did so far; None where nothing can be said, or it does not go on."""
        if self.status != BatchStatus.IN_PROGRESS or not self.requests_per_minute:
            return None
        return self.batch.num_unfinished / self.requests_per_minute * 60


def find_batch(session: Session, caller: Principal, batch_id: str) -> Batch:
    """Raises ApiError (404) for what is not there, and for what the caller may not see."""
    query = select(Batch).where(is_in_project(Batch, caller.tenant_id, caller.project_id), Batch.id == batch_id)
    batch = session.execute(query).scalar_one_or_none()
    if batch is None:
        raise not_found("batch")
    return batch


def list_rows(
    session: Session, caller: Principal, *, only: str, model: str, search: str, after: str | None, limit: int
) -> Page[Batch]:
    """The newest first. `only` is one of FILTERS, or empty; `search` is the beginning of an id, or part of a file's
    name. Raises UnknownCursorError."""
    conditions = [*_narrowed(only)]
    if model:
        conditions.append(Batch.model == model)
    if search:
        named = File.filename.contains(search, autoescape=True)
        of_tenant = (File.tenant_id == caller.tenant_id) & (File.id == Batch.input_file_id)
        conditions.append(
            or_(
                *(
                    column.startswith(search, autoescape=True)
                    for column in (Batch.id, Batch.input_file_id, Batch.output_file_id, Batch.error_file_id)
                ),
                select(File.id).where(of_tenant, named).exists(),
            )
        )
    return read_page(
        session, Batch, caller.tenant_id, *conditions, project_id=caller.project_id, after=after, limit=limit
    )


def rows_of(session: Session, batches: Sequence[Batch]) -> list[BatchRow]:
    now = session.execute(select(func.now())).scalar_one()
    file_ids = {batch.input_file_id for batch in batches}
    found_files = session.execute(select(File.id, File.filename).where(File.id.in_(file_ids)))
    names = {row.id: row.filename for row in found_files}
    running = [batch.id for batch in batches if batch.status is BatchStatus.IN_PROGRESS]
    found = session.execute(_AT_WORK, {"batch_ids": running}).all() if running else ()
    at_work = {row.batch_id: row for row in found}
    models = sorted({batch.model for batch in batches if batch.status is BatchStatus.IN_PROGRESS and batch.model})
    groups = {row.model: row for row in session.execute(_GROUPS, {"models": models})} if models else {}
    return [
        BatchRow(
            batch=batch,
            filename=names.get(batch.input_file_id, ""),
            now=now,
            num_slices_at_work=at_work[batch.id].num_slices if batch.id in at_work else 0,
            tokens_per_second=float(at_work[batch.id].tokens_per_second) if batch.id in at_work else 0.0,
            num_groups_ready=groups[batch.model].num_ready if batch.model in groups else 0,
            num_groups_starting=groups[batch.model].num_starting if batch.model in groups else 0,
        )
        for batch in batches
    ]


def _narrowed(only: str) -> list[ColumnElement[bool]]:
    match only:
        case "":
            return []
        case "open":
            return [Batch.status.in_(UNFINISHED)]
        case "paused":
            return [Batch.status.in_(PAUSABLE), Batch.pause_reason.is_not(None)]
        case _:
            return [Batch.status == BatchStatus(only)]
