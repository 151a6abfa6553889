"""Erasure: what a tenant has sent and was answered is removed, and a signed statement of it is left.

Removed are uploads, prompts, parameters, answers and parts of them, errors that quote a line, and what the tenant has
named: files, custom ids, metadata, idempotency keys, webhooks. Kept is what a bill needs, and numbers alone: tokens,
prices, the ledger, invoices; ids, moments and outcomes; and what operators have named: the tenant, its projects and
keys.

Each batch is a transaction of its own. An erasure that was interrupted is begun again, and goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from pipeline import storage
from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.jobs.cancelling import BatchNotCancellableError, cancel_batch
from pipeline.signing import SigningKey, signing_key, verify
from pipeline.tables import ApiKey, Batch, BatchStatus, Erasure, File, Tenant
from pipeline.tables.session import connection, get_engine, transaction
from pipeline.tenancy import audit_log

#: Of the statement; whoever reads another one should ask what it means.
_VERSION: Final = 1
#: A call that began before the keys were revoked may leave something behind: then all is done again.
_PASSES: Final = 5
_LOOK_SECONDS: Final = 0.25
#: Of every file.
_ERASED_NAME: Final = "erased"

_OPEN: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)

#: What is left of an answer: the number that its usage is audited by.
_NO_ANSWER: Final = """format('{"usage":{"completion_tokens":%s}}', coalesce(o.num_output_tokens, u.quantity, 0))"""

# What each of these leaves alone has been erased before.
_OF_BATCH: Final = (
    text("""
        DELETE FROM partial_outputs p USING requests r WHERE r.batch_id = :batch_id AND p.request_id = r.id
    """),
    text("""
        UPDATE requests SET prompt_token_ids = '', params = '{}', custom_id = 'erased-' || line, error_message = NULL
        WHERE batch_id = :batch_id AND prompt_token_ids <> ''
    """),
    text(f"""
        UPDATE results a SET body = {_NO_ANSWER}, output_token_ids = NULL
        FROM results o LEFT JOIN usage_events u ON u.request_id = o.request_id AND u.meter = 'output'
        WHERE o.batch_id = :batch_id AND a.request_id = o.request_id AND a.batch_id = :batch_id
          AND (a.output_token_ids IS NOT NULL OR a.body <> {_NO_ANSWER})
    """),  # noqa: S608 - a constant
    text("UPDATE batch_errors SET custom_id = NULL, param = NULL, message = 'Erased.' WHERE batch_id = :batch_id"),
    text("""
        UPDATE batches SET metadata = NULL, pause_note = NULL
        WHERE id = :batch_id AND (metadata IS NOT NULL OR pause_note IS NOT NULL)
    """),
)
_OF_TENANT: Final = (
    # One that is being computed has an end with this, so that its errors are not written any more.
    text("""
        UPDATE quotes SET errors = NULL, status = CASE status WHEN 'computing' THEN 'failed' ELSE status END
        WHERE tenant_id = :tenant_id AND (errors IS NOT NULL OR status = 'computing')
    """),
    text("DELETE FROM idempotency_keys WHERE tenant_id = :tenant_id"),
    text("DELETE FROM idempotent_answers WHERE tenant_id = :tenant_id"),
    text("DELETE FROM webhook_endpoints WHERE tenant_id = :tenant_id"),
    text("DELETE FROM webhook_events WHERE tenant_id = :tenant_id"),
)
#: Batches with content; the first statement that finds one is enough.
_WITH_CONTENT: Final = text("""
    SELECT b.id FROM batches b WHERE b.tenant_id = :tenant_id AND (
        b.metadata IS NOT NULL OR b.pause_note IS NOT NULL
        OR EXISTS (SELECT FROM requests r WHERE r.batch_id = b.id AND r.prompt_token_ids <> '')
        OR EXISTS (SELECT FROM results a WHERE a.batch_id = b.id
                   AND (a.output_token_ids IS NOT NULL OR a.body NOT LIKE '{"usage":{"completion\\_tokens":%}}'))
        OR EXISTS (SELECT FROM batch_errors e WHERE e.batch_id = b.id AND e.message <> 'Erased.')
    ) ORDER BY b.id
""")
#: The same of what is of no batch.
_HAS_CONTENT: Final = text("""
    SELECT EXISTS (SELECT FROM files WHERE tenant_id = :tenant_id AND deleted_at IS NULL)
        OR EXISTS (SELECT FROM quotes WHERE tenant_id = :tenant_id AND (errors IS NOT NULL OR status = 'computing'))
        OR EXISTS (SELECT FROM idempotency_keys WHERE tenant_id = :tenant_id)
        OR EXISTS (SELECT FROM idempotent_answers WHERE tenant_id = :tenant_id)
        OR EXISTS (SELECT FROM webhook_endpoints WHERE tenant_id = :tenant_id)
        OR EXISTS (SELECT FROM webhook_events WHERE tenant_id = :tenant_id)
""")
_COUNTS: Final = text("""
    SELECT (SELECT count(*) FROM batches WHERE tenant_id = :tenant_id) AS batches,
           (SELECT count(*) FROM requests r JOIN batches b ON b.id = r.batch_id
            WHERE b.tenant_id = :tenant_id) AS requests,
           (SELECT count(*) FROM results a JOIN batches b ON b.id = a.batch_id
            WHERE b.tenant_id = :tenant_id) AS answers,
           (SELECT count(*) FROM batch_errors e JOIN batches b ON b.id = e.batch_id
            WHERE b.tenant_id = :tenant_id) AS errors,
           (SELECT count(*) FROM files WHERE tenant_id = :tenant_id) AS files,
           (SELECT coalesce(sum(num_bytes), 0)::bigint FROM files WHERE tenant_id = :tenant_id) AS file_bytes,
           (SELECT count(*) FROM api_keys WHERE tenant_id = :tenant_id) AS revoked_keys
""")
#: Their old rows hold content until they are vacuumed.
_VACUUMED: Final = (
    *("requests", "results", "partial_outputs", "batch_errors", "batches", "files", "quotes"),
    *("idempotency_keys", "idempotent_answers", "webhook_endpoints", "webhook_events", "webhook_deliveries"),
)


@dataclass(frozen=True)
class Record:
    """An erasure, as it is shown."""

    id: str
    #: What was signed, as JSON.
    statement: str
    signature: bytes
    #: In PEM.
    public_key: str

    @property
    def is_valid(self) -> bool:
        """Whether the statement is what was signed."""
        return verify(self.public_key, self.statement.encode(), self.signature)

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.statement)
        return content


def erase_tenant(
    tenant_id: str,
    *,
    is_cancelling: bool = False,
    wait_seconds: float = 300.0,
    engine: Engine | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Record:
    """Erase what is kept of a tenant's content, revoke its keys, and leave a signed statement.

    With `is_cancelling`, its batches are cancelled first and waited for. Raises UserError while batches are open, and
    what `signing_key` and storage raise; what was done by then stays done.
    """
    engine = engine or get_engine()
    key = signing_key()  # before anything is gone
    _close(engine, tenant_id, is_cancelling=is_cancelling)
    if is_cancelling:
        _cancel(engine, tenant_id, clock() + wait_seconds, clock)
    for _ in range(_PASSES):
        _erase_files(engine, tenant_id)
        _erase_batches(engine, tenant_id)
        with transaction(engine) as session:
            # Whoever writes a file or a batch of the tenant waits for this, and then finds its key revoked.
            tenant = session.get_one(Tenant, tenant_id, with_for_update=True)
            if _is_erased(session, tenant_id):
                record = _state(session, tenant, key)
                break
    else:
        raise UserError("The tenant's data keeps growing. Is a gateway of an older version running? Try again.")
    vacuum(engine)
    return record


def list_erasures(session: Session, tenant_id: str | None = None) -> Sequence[Record]:
    """Of one tenant or of all, oldest first."""
    query = select(Erasure).order_by(Erasure.created_at, Erasure.id)
    if tenant_id is not None:
        query = query.where(Erasure.tenant_id == tenant_id)
    return [_record(row) for row in session.execute(query).scalars()]


def vacuum(engine: Engine) -> None:
    """Let PostgreSQL forget the old versions of rows; what still reads them keeps them until it has ended."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("SET statement_timeout = 0"))
        conn.execute(text(f"VACUUM {', '.join(_VACUUMED)}"))
        conn.execute(text("RESET statement_timeout"))


def _close(engine: Engine, tenant_id: str, *, is_cancelling: bool) -> None:
    """Revoke the tenant's keys, so that nothing more comes. Raises UserError."""
    with transaction(engine) as session:
        open_ids = _open_batches(session, tenant_id)
        if open_ids and not is_cancelling:
            raise UserError(
                f"{len(open_ids)} batches of this tenant have not ended, such as {open_ids[0]}. Wait for them, or "
                "cancel them first with --cancel."
            )
        is_valid = (ApiKey.tenant_id == tenant_id) & ApiKey.revoked_at.is_(None)
        revoke = update(ApiKey).where(is_valid).values(revoked_at=func.now()).returning(ApiKey.id)
        revoked: list[str] = []
        # Again: one that was waited for may have been rotated, or have made another.
        while newly := session.execute(revoke).scalars().all():
            revoked += newly
        details = {"revoked_keys": sorted(revoked), "cancelled_batches": len(open_ids)}
        audit_log.record(session, act="tenant.erase_begun", object=tenant_id, details=details)


def _cancel(engine: Engine, tenant_id: str, deadline: float, clock: Callable[[], float]) -> None:
    """Cancel what is open, and wait until it has ended. Raises UserError after the deadline."""
    while True:
        with transaction(engine) as session:
            open_ids = _open_batches(session, tenant_id)
            for batch_id in open_ids:
                try:
                    cancel_batch(session, batch_id, tenant_id)
                except BatchNotCancellableError:
                    continue  # it is being closed
        if not open_ids:
            return
        outbox.publish_soon(engine)
        if clock() > deadline:
            raise UserError(
                f"{len(open_ids)} batches are still ending, such as {open_ids[0]}; is control running? The tenant's "
                "keys are revoked, and nothing is erased yet. Try again."
            )
        time.sleep(_LOOK_SECONDS)


def _open_batches(session: Session, tenant_id: str) -> list[str]:
    query = select(Batch.id).where(Batch.tenant_id == tenant_id, Batch.status.in_(_OPEN)).order_by(Batch.created_at)
    return list(session.execute(query).scalars())


def _erase_files(engine: Engine, tenant_id: str) -> None:
    """The blob goes first: if the commit then fails, the next pass finishes the work."""
    with connection(engine) as conn:
        is_there = File.deleted_at.is_(None) | (File.filename != _ERASED_NAME)
        ids = list(conn.scalars(select(File.id).where(File.tenant_id == tenant_id, is_there)))
    for file_id in ids:
        with connection(engine) as conn:
            key = conn.scalar(select(File.storage_key).where(File.id == file_id).with_for_update())
            if key is not None:
                storage.delete_blob(key)
            deleted_at = func.coalesce(File.deleted_at, func.now())
            conn.execute(update(File).where(File.id == file_id).values(deleted_at=deleted_at, filename=_ERASED_NAME))


def _erase_batches(engine: Engine, tenant_id: str) -> None:
    with connection(engine) as conn:
        conn.execute(text("SET LOCAL statement_timeout = 0"))
        batch_ids = list(conn.scalars(_WITH_CONTENT, {"tenant_id": tenant_id}))
    for batch_id in batch_ids:
        with connection(engine) as conn:
            conn.execute(text("SET LOCAL statement_timeout = 0"))
            for statement in _OF_BATCH:
                conn.execute(statement, {"batch_id": batch_id})
    with connection(engine) as conn:
        for statement in _OF_TENANT:
            conn.execute(statement, {"tenant_id": tenant_id})


def _is_erased(session: Session, tenant_id: str) -> bool:
    session.execute(text("SET LOCAL statement_timeout = 0"))
    if _open_batches(session, tenant_id):
        raise UserError("A batch came while the tenant was erased. Try again, with --cancel.")
    of_tenant = {"tenant_id": tenant_id}
    if session.execute(_HAS_CONTENT, of_tenant).scalar_one():
        return False
    return session.execute(_WITH_CONTENT, of_tenant).first() is None


def _state(session: Session, tenant: Tenant, key: SigningKey) -> Record:
    """Write what was erased, and sign it."""
    tenant_id = tenant.id
    now = session.execute(select(func.now())).scalar_one()
    of_tenant = {"tenant_id": tenant_id}
    counts = session.execute(_COUNTS, of_tenant).one()._asdict()
    statement = {
        "kind": "ryzanstein.erasure",
        "version": _VERSION,
        "id": new_id("erasure"),
        "tenant_id": tenant_id,
        "tenant": tenant.name,
        "actor": audit_log.user_of_this_process(),
        "erased_at": now.astimezone(UTC).isoformat(timespec="microseconds"),
        "erased": counts,
        # SHA-256 of the ids, in order, a line each: SQL still has them.
        "batch_ids_sha256": _digest(session, select(Batch.id).where(Batch.tenant_id == tenant_id)),
        "file_ids_sha256": _digest(session, select(File.id).where(File.tenant_id == tenant_id)),
        "key_id": key.key_id,
    }
    signed = json.dumps(statement, sort_keys=True, separators=(",", ":"))
    row = Erasure(
        id=statement["id"],
        tenant_id=tenant_id,
        statement=signed,
        signature=key.sign(signed.encode()),
        public_key=key.public_key_text,
    )
    session.add(row)
    tenant.erased_at = now
    session.flush()
    digest = hashlib.sha256(signed.encode()).hexdigest()
    audit_log.record(
        session, act="tenant.erase", object=tenant_id, details={"erasure": row.id, "sha256": digest, **counts}
    )
    return _record(row)


def _digest(session: Session, ids: Any) -> str:
    found: Iterable[str] = sorted(session.execute(ids).scalars())
    return hashlib.sha256("".join(f"{one}\n" for one in found).encode()).hexdigest()


def _record(row: Erasure) -> Record:
    return Record(row.id, row.statement, row.signature, row.public_key)
