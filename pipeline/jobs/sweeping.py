"""The sweeper: sets right what a lost message, a dead group or the passing of time has left behind.

Runs every few seconds, and is safe if two run. All moments are by the database's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, exists, func, select, text, update
from sqlalchemy.exc import DBAPIError

from pipeline import storage
from pipeline.billing import holds
from pipeline.billing.budgets import alert_budgets
from pipeline.celery import BROKER_ERRORS, CONTROL_QUEUE, PREPARE, QUOTE, generate_queue, queue_lengths
from pipeline.jobs import outbox, quoting
from pipeline.jobs.ending import end_slices, end_waiting_requests
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.idempotency import forget_old_keys
from pipeline.jobs.pausing import resume_paused
from pipeline.jobs.preparing import try_lock
from pipeline.settings import get_settings
from pipeline.tables import Batch, BatchStatus, File, Group, GroupState, OutboxMessage, OutcomeKind, Quote, QuoteStatus
from pipeline.tables.session import connection, get_engine
from pipeline.telemetry.logs import summarize_error
from pipeline.webhooks.delivering import forget_old, send_due

log = structlog.get_logger(__name__)

TOO_MANY_ATTEMPTS: Final = "too_many_attempts"

#: Rows that one sweep touches at most, of each kind; the next sweep takes the next.
_PAGE: Final = 100
#: Tickets that one sweep adds at most, for each model.
_MAX_TICKETS: Final = 1_000
#: Leases that a group lets pass without a heartbeat before it counts as stopped.
_SILENT_LEASES: Final = 2
#: Longest that a group may take to load its model before it counts as stopped.
_LONGEST_START: Final = timedelta(minutes=30)

#: Of the sweeper's advisory lock.
_LOCK_CLASS: Final = 2


def sweep(engine: Engine | None = None) -> dict[str, int]:
    """One sweep; returns how much of what was set right. A part that fails does not keep the others from running."""
    engine = engine or get_engine()
    done: dict[str, int] = {}
    with engine.connect() as guard, guard.begin():
        if not guard.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_CLASS, 0))):
            return done
        for name, part in _PARTS.items():
            try:
                done[name] = part(engine)
            except DBAPIError as error:
                log.warning("part of a sweep failed", part=name, reason=summarize_error(error))
            except Exception as error:  # whatever ails one part, leases must go on being swept
                log.error("part of a sweep failed", part=name, exc_info=error)
    done = {name: count for name, count in done.items() if count > 0}
    if done:
        log.info("swept", **done)
        outbox.publish_soon(engine)
    return done


_LOCK_LOST: Final = text("""
    SELECT id, model FROM slices WHERE status = 'claimed' AND lease_expires_at <= clock_timestamp()
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")
_END_ATTEMPTS: Final = text("""
    UPDATE attempts a SET "end" = 'lost', ended_at = clock_timestamp() FROM slices s
    WHERE s.id = ANY(:ids) AND a.slice_id = s.id AND a.lease_epoch = s.lease_epoch AND a."end" IS NULL
""")
# Slices that were given back do not count: that is how a group ends in order. Nor do attempts that got on: however
# often a group is killed, what it does between is not for nothing.
_WORN_OUT: Final = text("""
    SELECT slice_id FROM attempts
    WHERE slice_id = ANY(:ids) AND "end" = 'lost' AND num_succeeded + num_unsuccessful = 0
    GROUP BY slice_id HAVING count(*) >= :max_attempts
""")
_PUT_BACK: Final = text("""
    UPDATE slices SET status = 'pending', lease_epoch = lease_epoch + 1, lease_expires_at = NULL WHERE id = ANY(:ids)
""")


def take_back_lost_slices(engine: Engine) -> int:
    """Slices whose lease ran out are pending again, under a new epoch; one that keeps losing it fails."""
    max_attempts = get_settings().max_attempts
    with connection(engine) as conn:
        lost = {row.id: row.model for row in conn.execute(_LOCK_LOST, {"limit": _PAGE})}
        if not lost:
            return 0
        conn.execute(_END_ATTEMPTS, {"ids": list(lost)})
        worn_out = sorted(conn.scalars(_WORN_OUT, {"ids": list(lost), "max_attempts": max_attempts}))
        again = [slice_id for slice_id in lost if slice_id not in worn_out]
        conn.execute(_PUT_BACK, {"ids": again})
        holds.release(conn, list(lost))
        for model in {lost[slice_id] for slice_id in again}:
            outbox.add_tickets(conn, model, sum(lost[slice_id] == model for slice_id in again))
        message = f"The groups that tried to answer this request were lost, {max_attempts} times."
        end_slices(conn, worn_out, OutcomeKind.FAILED, TOO_MANY_ATTEMPTS, message)
    log.warning("leases lost", slices=again, failed=worn_out)
    return len(lost)


_ENDING: Final = text("""
    SELECT id, status FROM batches b
    WHERE (status = 'cancelling' OR (status = 'in_progress' AND expires_at <= now() AND pause_reason IS NULL))
      AND EXISTS (SELECT FROM slices s WHERE s.batch_id = b.id AND s.status = 'pending')
    ORDER BY id LIMIT :limit
""")


def end_waiting(engine: Engine) -> int:
    """What waits of batches that were cancelled or whose window has passed; their groups end what runs."""
    with connection(engine) as conn:
        ending = conn.execute(_ENDING, {"limit": _PAGE}).all()
    return sum(
        end_waiting_requests(
            batch_id,
            OutcomeKind.CANCELLED if status == BatchStatus.CANCELLING else OutcomeKind.EXPIRED,
            engine,
        )
        for batch_id, status in ending
    )


def finalize_finished(engine: Engine) -> int:
    """Batches of which every request has an outcome, and whose message was lost."""
    is_finished = Batch.num_requests == Batch.num_succeeded + Batch.num_unsuccessful
    is_open = Batch.status.in_([BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING, BatchStatus.FINALIZING])
    with connection(engine) as conn:
        batch_ids = list(conn.scalars(select(Batch.id).where(is_open, is_finished).limit(_PAGE)))
    return sum(finalize(batch_id, engine) is not None for batch_id in batch_ids)


def prepare_forgotten(engine: Engine) -> int:
    """Batches whose message was lost, or that are to be tried again. One message is enough: it prepares all."""
    grace = timedelta(seconds=get_settings().sweep_seconds)
    is_due = func.coalesce(Batch.prepare_after, Batch.created_at + grace) <= func.now()
    is_on_its_way = exists().where(OutboxMessage.task == PREPARE)
    forgotten = (
        select(Batch.id)
        .where(Batch.status == BatchStatus.VALIDATING, is_due, ~is_on_its_way)
        .order_by(Batch.created_at)
        .limit(_PAGE)
    )
    with connection(engine) as conn:
        for batch_id in conn.scalars(forgotten).all():
            if try_lock(conn, batch_id):  # else it is being prepared, and takes its time
                outbox.add(conn, queue=CONTROL_QUEUE, task=PREPARE, args=[batch_id])
                return 1
    return 0


def compute_forgotten(engine: Engine) -> int:
    """Quotes whose message was lost, or that are to be tried again. One message is enough: it computes all."""
    grace = timedelta(seconds=get_settings().sweep_seconds)
    is_forgotten = (Quote.status == QuoteStatus.COMPUTING) & (Quote.created_at <= func.now() - grace)
    is_on_its_way = exists().where(OutboxMessage.task == QUOTE)
    with connection(engine) as conn:
        oldest = select(Quote.id).where(is_forgotten, ~is_on_its_way).order_by(Quote.created_at).limit(1)
        quote_id = conn.scalar(oldest)
        if quote_id is None or not quoting.try_lock(conn, quote_id):  # it is being computed, and takes its time
            return 0
        outbox.add(conn, queue=CONTROL_QUEUE, task=QUOTE, args=[quote_id])
    return 1


_PENDING: Final = text("""
    SELECT s.model, count(*) AS num_slices FROM slices s JOIN batches b ON b.id = s.batch_id
    WHERE s.status = 'pending' AND b.status = 'in_progress' AND b.pause_reason IS NULL GROUP BY s.model ORDER BY s.model
""")
_UNPUBLISHED: Final = text("SELECT queue, count(*) AS num_messages FROM outbox GROUP BY queue")


def add_missing_tickets(engine: Engine) -> int:
    """For models that have more pending slices than tickets, as after Redis has lost everything."""
    with connection(engine) as conn:
        pending = {row.model: row.num_slices for row in conn.execute(_PENDING)}
        if not pending:
            return 0
        unpublished = {row.queue: row.num_messages for row in conn.execute(_UNPUBLISHED)}
        try:
            published = queue_lengths(map(generate_queue, pending))
        except BROKER_ERRORS as error:
            log.debug("Redis can't be asked for its tickets", reason=summarize_error(error))
            return 0
        return sum(
            _add_tickets(conn, model, num_slices - published[queue] - unpublished.get(queue, 0))
            for model, num_slices in pending.items()
            for queue in [generate_queue(model)]
        )


def _add_tickets(conn: Connection, model: str, num_missing: int) -> int:
    num_tickets = max(0, min(num_missing, _MAX_TICKETS))
    outbox.add_tickets(conn, model, num_tickets)
    return num_tickets


def remove_expired_files(engine: Engine) -> int:
    """Files whose age has come, but for those that a batch has yet to read. The blob goes first."""
    is_unread = exists().where(Batch.input_file_id == File.id, Batch.status == BatchStatus.VALIDATING)
    expired = (
        select(File.id, File.storage_key)
        .where(File.expires_at <= func.now(), File.deleted_at.is_(None), ~is_unread)
        .order_by(File.expires_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    num_removed = 0
    while num_removed < _PAGE:
        with connection(engine) as conn:
            file = conn.execute(expired).one_or_none()
            if file is None:
                break
            if file.storage_key is not None:
                storage.delete_blob(file.storage_key)
            conn.execute(update(File).where(File.id == file.id).values(deleted_at=func.now()))
        num_removed += 1
    return num_removed


def stop_silent_groups(engine: Engine) -> int:
    """Groups without a heartbeat; one that was only slow says at its next that it is not."""
    silence = timedelta(seconds=_SILENT_LEASES * get_settings().lease_seconds)
    is_silent = (Group.heartbeat_at < func.now() - silence) & (
        (Group.state != GroupState.STARTING) | (Group.heartbeat_at < func.now() - _LONGEST_START)
    )
    with connection(engine) as conn:
        stopped = conn.execute(
            update(Group)
            .where(Group.state != GroupState.STOPPED, is_silent)
            .values(state=GroupState.STOPPED, reason="It sent no heartbeat.", rank_pids=[])
        )
    return stopped.rowcount


#: Leases first: what they free is then ended or gets its tickets in the same sweep.
_PARTS: Final[dict[str, Callable[[Engine], int]]] = {
    "lost_slices": take_back_lost_slices,
    "ended_requests": end_waiting,
    "finalized_batches": finalize_finished,
    "forgotten_batches": prepare_forgotten,
    "forgotten_quotes": compute_forgotten,
    "resumed_batches": resume_paused,
    "budget_alerts": alert_budgets,
    "missing_tickets": add_missing_tickets,
    "expired_files": remove_expired_files,
    "silent_groups": stop_silent_groups,
    "old_idempotency_keys": forget_old_keys,
    "old_quotes": quoting.remove_old_quotes,
    "due_webhooks": send_due,
    "old_webhook_events": forget_old,
}
PARTS: Final = tuple(_PARTS)
