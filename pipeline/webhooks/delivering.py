"""Delivering events: again and again, ever more rarely, until the receiver has taken them or 72 hours have passed.

Each attempt is claimed in one transaction and noted in another, and none is open while a receiver is waited for. A
process that dies in between leaves attempts that others make again: a receiver may hear of an event more than once,
each time with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Final

import structlog
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Engine, Row, text

from pipeline.celery import CONTROL_QUEUE, DELIVER
from pipeline.jobs import outbox
from pipeline.settings import get_settings
from pipeline.signing import signing_key
from pipeline.tables.session import connection, get_engine
from pipeline.tenancy import audit_log
from pipeline.webhooks.events import PATIENCE, forget_old_events, payload_of
from pipeline.webhooks.sending import ATTEMPT_SECONDS, Answer, Message, Sender
from pipeline.webhooks.signatures import secret_of, signed_headers

log = structlog.get_logger(__name__)

#: Attempts at once. A place that is free again is filled at once, whatever the others still wait for.
_MAX_AT_ONCE: Final = 64
#: Of these, those to one endpoint and of one tenant, so that receivers that are slow leave room to the others.
_MAX_PER_ENDPOINT: Final = 4
_MAX_PER_TENANT: Final = 16
#: Attempts that end within so long, in seconds, are noted together.
_GATHER_SECONDS: Final = 0.05
#: While receivers are waited for, what has become due is looked for so often, in seconds.
_LOOK_SECONDS: Final = 0.5
#: An attempt that nobody has noted after so long is made again.
_LEASE: Final = timedelta(seconds=6 * ATTEMPT_SECONDS)
#: How long one task goes on; the next one takes what is left.
_LONGEST_SECONDS: Final = 60.0
#: Waits after the first tries; after those that follow, the last of them.
_PAUSES: Final = tuple(timedelta(minutes=minutes) for minutes in (0.1, 0.5, 2, 10, 30, 60, 120, 240, 360))
#: A wait is so much shorter or longer, so that receivers that come back are not called all at once.
_JITTER: Final = 0.2
#: Attempts whose outcome is kept.
_KEPT_ATTEMPTS: Final = 50
#: By this status a receiver says that it wants to hear nothing more.
_GONE: Final = 410

#: A row of `_CLAIM`.
_Claimed = Row[tuple[object, ...]]

_slot = threading.BoundedSemaphore(1)

# An endpoint may have been disabled while an event was added that it did not know of: that one is given up here.
_CLAIM: Final = text("""
    WITH given_up AS (
        UPDATE webhook_deliveries d SET status = 'failed' FROM webhook_endpoints p
        WHERE p.id = d.endpoint_id AND p.disabled_at IS NOT NULL
          AND d.status = 'pending' AND d.next_attempt_at <= clock_timestamp()
    ), busy AS (
        SELECT id, num FROM unnest(CAST(:busy_ids AS text[]), CAST(:busy_nums AS integer[])) AS busy (id, num)
    ), of_endpoints AS (
        SELECT d.id, d.next_attempt_at, d.endpoint_id, p.tenant_id,
               row_number() OVER (PARTITION BY d.endpoint_id ORDER BY d.next_attempt_at, d.id) AS place
        FROM webhook_deliveries d JOIN webhook_endpoints p ON p.id = d.endpoint_id
        WHERE d.status = 'pending' AND d.next_attempt_at <= clock_timestamp() AND p.disabled_at IS NULL
    ), of_tenants AS (
        SELECT id, next_attempt_at, tenant_id,
               row_number() OVER (PARTITION BY tenant_id ORDER BY next_attempt_at, id) AS place
        FROM of_endpoints
        WHERE place <= :per_endpoint - coalesce((SELECT num FROM busy WHERE busy.id = endpoint_id), 0)
    ), due AS (
        SELECT id FROM webhook_deliveries WHERE status = 'pending' AND id IN (
            SELECT id FROM of_tenants
            WHERE place <= :per_tenant - coalesce((SELECT num FROM busy WHERE busy.id = tenant_id), 0)
            ORDER BY next_attempt_at LIMIT :limit
        ) AND next_attempt_at <= clock_timestamp() FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE webhook_deliveries d
    SET num_attempts = num_attempts + 1, num_tries = num_tries + 1, next_attempt_at = clock_timestamp() + :lease
    FROM due, webhook_events e, webhook_endpoints p
    WHERE d.id = due.id AND e.id = d.event_id AND p.id = d.endpoint_id
    RETURNING d.id, d.num_attempts, d.num_tries, d.endpoint_id, p.url, p.secret_generation, p.tenant_id,
              coalesce(p.old_secret_until > now(), false) AS has_old_secret,
              e.id AS event_id, e.type, e.batch_id, e.created_at,
              CAST(extract(epoch FROM clock_timestamp()) AS bigint) AS now
""")
# Only of the attempt that was claimed: one that was lost and made again meanwhile is for whoever made it again.
_NOTE: Final = text("""
    UPDATE webhook_deliveries
    SET attempts = CASE WHEN jsonb_array_length(attempts) >= :kept THEN attempts - 0 ELSE attempts END
                   || jsonb_build_array(jsonb_build_object('at', CAST(:at AS bigint)) || CAST(:attempt AS jsonb)),
        status = CASE WHEN :is_success THEN 'delivered'
                      WHEN clock_timestamp() + CAST(:pause AS interval) > give_up_at THEN 'failed' ELSE status END,
        delivered_at = CASE WHEN :is_success THEN clock_timestamp() END,
        next_attempt_at = clock_timestamp() + CAST(:pause AS interval)
    WHERE id = :id AND num_attempts = :num_attempts AND status = 'pending'
    RETURNING status
""")
_SUCCEEDED: Final = text("""
    UPDATE webhook_endpoints SET failing_since = NULL WHERE id = :id AND failing_since IS NOT NULL
""")
_FAILED: Final = text("""
    UPDATE webhook_endpoints SET failing_since = coalesce(failing_since, clock_timestamp()) WHERE id = :id
    RETURNING failing_since <= clock_timestamp() - CAST(:patience AS interval)
""")
_DISABLE: Final = text("""
    UPDATE webhook_endpoints
    SET disabled_at = clock_timestamp(), disabled_reason = :reason, updated_at = clock_timestamp()
    WHERE id = :id AND disabled_at IS NULL
""")
_GIVE_UP: Final = text("""
    UPDATE webhook_deliveries SET status = 'failed' WHERE endpoint_id = :id AND status = 'pending'
""")
_IS_DUE: Final = text("""
    SELECT EXISTS (SELECT FROM webhook_deliveries WHERE status = 'pending' AND next_attempt_at <= clock_timestamp())
       AND NOT EXISTS (SELECT FROM outbox WHERE task = :task)
""")


def deliver_due(engine: Engine | None = None, *, chance: Callable[[], float] = random.random) -> dict[str, int]:
    """Make every attempt that is due; returns how many succeeded and failed.

    One thread of a process does this, for a minute at most, so that slow receivers keep nobody else waiting. `chance`
    gives numbers from 0 to 1, for the jitter.
    """
    if not _slot.acquire(blocking=False):
        return {"delivered": 0, "failed": 0}
    try:
        return asyncio.run(_deliver(engine or get_engine(), chance))
    finally:
        _slot.release()


async def _deliver(engine: Engine, chance: Callable[[], float]) -> dict[str, int]:
    """Keep as many attempts on their way as there may be, until none is due or the time is over.

    SQL is asked in other threads, so that a lock that is waited for there costs no attempt its time.
    """
    done = {"delivered": 0, "failed": 0}
    limit = time.monotonic() + _LONGEST_SECONDS
    under_way: dict[asyncio.Task[Answer], _Claimed] = {}
    async with Sender(get_settings()) as sender:
        try:
            while True:
                if len(under_way) < _MAX_AT_ONCE and time.monotonic() < limit:
                    for row in await asyncio.to_thread(_claim, engine, list(under_way.values())):
                        under_way[asyncio.create_task(sender.send(_message(row), ATTEMPT_SECONDS))] = row
                if not under_way:
                    return done
                ended = await _some_that_ended(under_way)
                if ended:
                    rows, answers = [under_way.pop(task) for task in ended], [task.result() for task in ended]
                    await asyncio.to_thread(_note, engine, rows, answers, chance)
                    num_delivered = sum(answer.is_success for answer in answers)
                    done["delivered"] += num_delivered
                    done["failed"] += len(answers) - num_delivered
        finally:  # what is given up by an error is made again when its lease has run out
            for task in under_way:
                task.cancel()


async def _some_that_ended(tasks: Collection[asyncio.Task[Answer]]) -> Collection[asyncio.Task[Answer]]:
    """The first that ends and those that end right after it; none after `_LOOK_SECONDS`."""
    first, _ = await asyncio.wait(tasks, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if first:
        first, _ = await asyncio.wait(tasks, timeout=_GATHER_SECONDS)
    return first


def send_due(engine: Engine) -> int:
    """For the sweeper: have what is due sent, where no message says so yet. Returns whether anything is."""
    with connection(engine) as conn:
        if not conn.scalar(_IS_DUE, {"task": DELIVER}):
            return 0
        outbox.add(conn, queue=CONTROL_QUEUE, task=DELIVER, args=[])
    return 1


def forget_old(engine: Engine) -> int:
    """Forget events that have been kept for long enough; returns how many."""
    with connection(engine) as conn:
        return forget_old_events(conn)


def disable(conn: Connection, endpoint_id: str, reason: str, *, actor: str = "webhooks") -> bool:
    """Send nothing more to an endpoint, and give up what waits; False where it was disabled before."""
    if conn.execute(_DISABLE, {"id": endpoint_id, "reason": reason}).rowcount == 0:
        return False
    conn.execute(_GIVE_UP, {"id": endpoint_id})
    audit_log.record(conn, act="webhook.disable", object=endpoint_id, details={"reason": reason}, actor=actor)
    return True


def _claim(engine: Engine, under_way: Sequence[_Claimed]) -> Sequence[_Claimed]:
    """As many attempts that are due as there is room for beside those that are under way."""
    busy = Counter(row.endpoint_id for row in under_way) + Counter(row.tenant_id for row in under_way)
    limits = {"limit": _MAX_AT_ONCE - len(under_way), "per_endpoint": _MAX_PER_ENDPOINT, "per_tenant": _MAX_PER_TENANT}
    nums = {"busy_ids": list(busy.keys()), "busy_nums": list(busy.values())}
    with connection(engine) as conn:
        return conn.execute(_CLAIM, {**limits, **nums, "lease": _LEASE}).all()


def _message(row: _Claimed) -> Message:
    key, newest = signing_key(), row.secret_generation
    generations = [newest, newest - 1] if row.has_old_secret else [newest]
    body = payload_of(row.event_id, row.type, row.batch_id, int(row.created_at.timestamp()))
    secrets = [secret_of(key, row.endpoint_id, generation) for generation in generations]
    return Message(row.url, signed_headers(row.event_id, row.now, body, secrets), body)


def _note(
    engine: Engine,
    claimed: Sequence[_Claimed],
    answers: Sequence[Answer],
    chance: Callable[[], float],
) -> None:
    """Write down what came of attempts: in the order of their endpoints' ids, whose rows are locked on the way.

    Each before those of its deliveries, as its owner locks them who disables it, or deletes it.
    """
    with connection(engine) as conn:
        for row, answer in sorted(zip(claimed, answers, strict=True), key=lambda pair: str(pair[0].endpoint_id)):
            _note_one(conn, row, answer, _pause_after(row.num_tries, chance))


def _note_one(conn: Connection, row: _Claimed, answer: Answer, pause: timedelta) -> None:
    has_failed_for_long = False
    if answer.is_success:
        conn.execute(_SUCCEEDED, {"id": row.endpoint_id})
    else:
        has_failed_for_long = bool(conn.scalar(_FAILED, {"id": row.endpoint_id, "patience": PATIENCE}))
    status = conn.scalar(
        _NOTE,
        {
            "id": row.id,
            "num_attempts": row.num_attempts,
            "at": row.now,
            "attempt": Jsonb({"status": answer.status, "error": answer.error, "ms": answer.ms}),
            "is_success": answer.is_success,
            "pause": pause,
            "kept": _KEPT_ATTEMPTS,
        },
    )
    log.info(
        "webhook sent",
        tenant=row.tenant_id,
        endpoint=row.endpoint_id,
        event_id=row.event_id,
        batch=row.batch_id,
        attempt=row.num_attempts,
        status=answer.status,
        reason=answer.error,
        ms=answer.ms,
    )
    if answer.status == _GONE:
        disable(conn, row.endpoint_id, "The receiver answered with status 410: it wants to hear nothing more.")
    elif status == "failed" and has_failed_for_long:
        hours = round(PATIENCE.total_seconds() / 3600)
        disable(conn, row.endpoint_id, f"No attempt has succeeded for {hours} hours. The last: {answer.error}")


def _pause_after(num_tries: int, chance: Callable[[], float]) -> timedelta:
    pause = _PAUSES[min(num_tries, len(_PAUSES)) - 1]
    return pause * (1 + _JITTER * (2 * chance() - 1))
