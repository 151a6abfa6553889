"""Pausing and resuming by the client: a batch that is to wait for a while, and loses nothing by it.

No slice of a paused batch is claimed. What groups hold of it goes on to its end, a minute of work at most, or goes back
where a group stops: it is kept, and billed, as ever. The window stands still meanwhile, as for budgets.
"""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pipeline.errors import PipelineError
from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.pausing import go_on
from pipeline.tables import Batch, BatchStatus
from pipeline.tables.batches import PAUSABLE, PAUSED_BY_CLIENT
from pipeline.tenancy.scopes import is_in_project

log = structlog.get_logger(__name__)

_ENDED: Final = "Cannot {action} a batch with status '{status}'."


class BatchNotPausableError(PipelineError):
    """The batch has ended, or is about to."""

    def __init__(self, action: str, status: BatchStatus) -> None:
        super().__init__(_ENDED.format(action=action, status=status.value))


class PausedByBudgetError(PipelineError):
    """The batch waits for a budget, and not for its client."""

    def __init__(self, budget_id: str) -> None:
        super().__init__(
            f"The batch is paused by '{budget_id}', which has no room for its next request. It goes on by itself when "
            "there is: raise the limit, or wait for the next period."
        )


def pause_batch(
    session: Session, batch_id: str, tenant_id: str, *, project_id: str | None = None, note: str | None = None
) -> Batch:
    """Have no more of a batch claimed until `resume_batch`. `note` says why, for people.

    A batch that a budget has paused stays paused when the budget has room again. One that a client has paused is
    returned as it is. Raises BatchNotFoundError, BatchNotPausableError.
    """
    batch = _find(session, batch_id, tenant_id, project_id, "pause", is_locked=True)
    if batch.pause_reason == PAUSED_BY_CLIENT:
        return batch
    if batch.pause_reason is None:  # else its window stands still already
        batch.paused_at = func.clock_timestamp()
    batch.pause_reason, batch.pause_note, batch.pause_needs = PAUSED_BY_CLIENT, note, None
    session.flush()
    session.refresh(batch)
    log.info("batch paused by its client", batch=batch_id)
    return batch


def resume_batch(session: Session, batch_id: str, tenant_id: str, *, project_id: str | None = None) -> Batch:
    """Let a batch go on that its client has paused; one that is not paused is returned as it is.

    Call `outbox.publish_soon` after the commit. Raises BatchNotFoundError, BatchNotPausableError, PausedByBudgetError.
    """
    # Not locked: slices come first in the order of locks.
    batch = _find(session, batch_id, tenant_id, project_id, "resume", is_locked=False)
    if batch.pause_reason not in (None, PAUSED_BY_CLIENT):
        raise PausedByBudgetError(batch.pause_reason)
    if go_on(session.connection(), batch_id, is_by_client=True):
        log.info("batch resumed by its client", batch=batch_id)
    session.refresh(batch)
    return batch


def _find(
    session: Session, batch_id: str, tenant_id: str, project_id: str | None, action: str, *, is_locked: bool
) -> Batch:
    query = select(Batch).where(Batch.id == batch_id, is_in_project(Batch, tenant_id, project_id))
    if is_locked:
        query = query.with_for_update(key_share=True)
    batch = session.scalars(query).one_or_none()
    if batch is None:
        raise BatchNotFoundError
    if batch.status not in PAUSABLE:
        raise BatchNotPausableError(action, batch.status)
    return batch
