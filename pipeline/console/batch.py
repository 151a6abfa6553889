"""One batch: how it stands, why it waits, what it costs, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipeline.console.batch_costs import cost_so_far
from pipeline.console.batch_rows import UNFINISHED, BatchRow, find_batch, rows_of
from pipeline.console.batches import Reader
from pipeline.console.rendering import render
from pipeline.jobs.explaining import explain
from pipeline.schemas.explanations import BatchExplanation
from pipeline.tables import BatchStatus, DroppedBatch, Quote
from pipeline.tables.batches import PAUSABLE, PAUSED_BY_CLIENT
from pipeline.tables.session import transaction

router = APIRouter()

_ENDED = (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


@dataclass(frozen=True)
class Step:
    """Something that has happened to a batch, or will."""

    title: str
    at: datetime
    #: Whether it is still to come.
    is_ahead: bool = False


@router.get("/batches/{batch_id}")
def show_batch(request: Request, viewer: Reader, batch_id: str) -> Response:
    caller = viewer.principal
    with transaction() as session:
        batch = find_batch(session, caller, batch_id)
        row = rows_of(session, [batch])[0]
        explanation = None
        if row.is_open:
            explanation = BatchExplanation.of(explain(session, batch.id, caller.tenant_id, caller.project_id))
        quote = None if batch.quote_id is None else session.get(Quote, batch.quote_id)
        cost = cost_so_far(session, batch)
        is_dropped = session.get(DroppedBatch, batch.id) is not None
    estimate = None if explanation is None or explanation.estimated_finish is None else explanation.estimated_finish
    return render(
        request,
        "batch.html",
        batch=batch,
        row=row,
        tab="overview",
        reasons=[] if explanation is None else explanation.reasons,
        slices=None if explanation is None else explanation.slices,
        seconds_left=max(estimate - row.now.timestamp(), 0) if estimate is not None else row.seconds_left,
        quote=quote,
        cost=cost,
        steps=steps_of(row),
        is_dropped=is_dropped,
        is_cancellable=batch.status in PAUSABLE,
        is_pausable=batch.status in PAUSABLE and batch.pause_reason is None,
        is_resumable=row.is_paused and batch.pause_reason == PAUSED_BY_CLIENT,
        is_retryable=batch.status in _ENDED and batch.num_unsuccessful > 0 and not is_dropped,
    )


def steps_of(row: BatchRow) -> list[Step]:
    """What has happened, in order, and what is to come."""
    batch = row.batch
    happened = [
        ("Created", batch.created_at),
        ("Checked, and planned", batch.in_progress_at),
        ("Paused", batch.paused_at if row.is_paused else None),
        ("Refused: it has invalid lines", batch.failed_at),
        ("Cancelling began", batch.cancelling_at),
        ("All requests had an outcome", batch.finalizing_at),
        ("Completed", batch.completed_at),
        ("Cancelled", batch.cancelled_at),
        ("Its window ended first", batch.expired_at),
    ]
    steps = sorted((Step(title, at) for title, at in happened if at is not None), key=lambda step: step.at)
    if batch.status in UNFINISHED:
        steps.append(Step("End of its window", batch.expires_at, is_ahead=batch.expires_at > row.now))
    return steps
