"""Quotes: an input file is read as intake reads it, ordered as planning orders it, and priced; nothing of it is kept.

The bound of the cost is exact: all prompt tokens at their dearest, and max_tokens for every choice. What is between is
an estimate; see `output_estimates`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, delete, func, select, text, update
from sqlalchemy.orm import Session

from pipeline.billing.cards_in_effect import find_rates, priced_models
from pipeline.billing.rating import NotPricedError, TokenUsage, expected_cost, worst_cost
from pipeline.celery import CONTROL_QUEUE, QUOTE
from pipeline.errors import PipelineError
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.jobs.estimating import estimated_finish
from pipeline.jobs.intake import InputReport, read_input
from pipeline.jobs.intake_table import INTAKE_TABLE, InvalidLine
from pipeline.jobs.output_estimates import Length, estimate_output
from pipeline.jobs.planning import cut_order, order_requests
from pipeline.settings import Settings, get_settings
from pipeline.storage import BlobNotFoundError, StorageError, open_blob
from pipeline.tables import File, OnInvalid, Quote, QuoteStatus, ServiceClass
from pipeline.tables.session import connection, get_engine
from pipeline.telemetry.logs import summarize_error
from pipeline.tenancy.tenants import default_project_id

log = structlog.get_logger(__name__)

#: A quote that could not be computed so often fails.
MAX_COMPUTATIONS: Final = 3
#: A computation that has taken so long is no more: its process died.
_LONGEST: Final = timedelta(minutes=15)
#: Quotes are kept for so long after they expired.
_KEPT: Final = timedelta(days=7)
#: Of a quote's advisory lock, beside the hash of its id.
_LOCK_CLASS: Final = 3
#: Batches, and requests of each, that output is learned from: the latest ones.
_LEARNED_BATCHES: Final = 50
_LEARNED_REQUESTS: Final = 200
#: Longer than any prompt.
_WHOLE_PROMPTS: Final = 2**20

#: One at a time in one process: sweeps and the preparing of batches must find a free thread.
_slot = threading.Semaphore(1)


class _DeadlyQuoteError(PipelineError):
    """The processes that computed the quote ended before they were done."""


def request_quote(
    session: Session,
    *,
    tenant_id: str,
    api_key_id: str,
    project_id: str | None,
    input_file: File,
    endpoint: str,
    on_invalid: OnInvalid,
    service_class: ServiceClass,
) -> Quote:
    """Write a quote that is `computing`. Call `outbox.publish_soon` after the commit."""
    quote = Quote(
        id=new_id("quote"),
        tenant_id=tenant_id,
        project_id=project_id or default_project_id(tenant_id),
        api_key_id=api_key_id,
        input_file_id=input_file.id,
        endpoint=endpoint,
        on_invalid=on_invalid,
        service_class=service_class,
        status=QuoteStatus.COMPUTING,
        expires_at=func.now() + timedelta(hours=get_settings().quote_hours),
    )
    session.add(quote)
    session.flush()
    outbox.add(session, queue=CONTROL_QUEUE, task=QUOTE, args=[quote.id])
    session.refresh(quote)
    return quote


def compute_waiting(engine: Engine | None = None) -> int:
    """Compute every quote that waits for it, oldest first; returns how many were.

    If this process is at it already, this returns at once: whoever is at work looks again when done.
    """
    engine = engine or get_engine()
    num_computed = 0
    while (waiting := _waiting(engine)) and _slot.acquire(blocking=False):
        try:
            num_now = sum(compute(quote_id, engine) for quote_id in waiting)
        finally:
            _slot.release()
        if num_now == 0:
            break  # the others are in the hands of other processes
        num_computed += num_now
    return num_computed


def compute(quote_id: str, engine: Engine | None = None) -> bool:
    """Compute one quote; it is then `ready` or `failed`. False: there was nothing to do, or it is tried again."""
    engine = engine or get_engine()
    num_computations = 0
    try:
        with engine.connect() as conn, conn.begin():
            if not try_lock(conn, quote_id):
                return False
            with Session(conn, expire_on_commit=False) as session:
                quote = session.get_one(Quote, quote_id)
            if quote.status is not QuoteStatus.COMPUTING:
                return False
            num_computations = _count(engine, quote_id)
            if num_computations > MAX_COMPUTATIONS:
                raise _DeadlyQuoteError
            conn.execute(text(f"SET LOCAL statement_timeout = '{int(_LONGEST.total_seconds())}s'"))
            conn.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{int(_LONGEST.total_seconds())}s'"))
            _settle(conn, quote_id, **_compute(conn, quote, get_settings()))
    except Exception as error:  # noqa: BLE001 - a client waits for it, whatever goes wrong
        log.error("quote not computed", quote=quote_id, attempt=num_computations, reason=summarize_error(error))
        if num_computations < MAX_COMPUTATIONS:
            return False
        what = "The input file could not be read" if isinstance(error, StorageError) else "It could not be computed"
        message = f"{what}, in {MAX_COMPUTATIONS} tries. This is no fault of the file: tell the operator."
        with connection(engine) as conn:
            _settle(conn, quote_id, **_failed([InvalidLine(0, None, "internal_error", None, message)]))
    return True


def try_lock(conn: Connection, quote_id: str) -> bool:
    """Keep others from computing this quote until the end of the transaction; False if another is at it."""
    return bool(conn.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_CLASS, func.hashtext(quote_id)))))


def remove_old_quotes(engine: Engine) -> int:
    """Quotes that expired long ago. A batch that was made of one keeps its card, and the id."""
    is_old = Quote.expires_at < func.now() - _KEPT
    with connection(engine) as conn:
        return conn.execute(delete(Quote).where(is_old)).rowcount


def _compute(conn: Connection, quote: Quote, settings: Settings) -> dict[str, Any]:
    file = conn.execute(select(File.storage_key, File.deleted_at).where(File.id == quote.input_file_id)).one()
    if file.deleted_at is not None or file.storage_key is None:
        return _failed([InvalidLine(0, None, "file_not_found", "input_file_id", "The input file was deleted.")])
    try:
        with open_blob(file.storage_key) as blob:
            priced = priced_models(conn, quote.tenant_id)
            report = read_input(conn, quote.endpoint, blob, settings, priced=priced)
    except BlobNotFoundError:
        return _failed([InvalidLine(0, None, "file_not_found", "input_file_id", "The input file was deleted.")])
    if not report.is_accepted(quote.on_invalid) or report.model is None:
        return _failed(report.errors)
    return _priced(conn, quote, report, report.model, settings)


def _priced(conn: Connection, quote: Quote, report: InputReport, model: str, settings: Settings) -> dict[str, Any]:
    rates = find_rates(conn, tenant_id=quote.tenant_id, model=model, service_class=quote.service_class)
    if rates is None:
        raise NotPricedError(f"Model {model!r} lost its price while its quote was computed.")
    num_prompt_tokens = int(conn.scalar(_PROMPT_TOKENS) or 0)
    planned = _planned(conn, model, settings)
    output = estimate_output(_bounds(conn), _lengths(conn, quote.tenant_id, model))
    worst = worst_cost(rates, num_prompt_tokens, output.worst)

    def cost(num_cached_tokens: int, num_output_tokens: int) -> Any:
        # Monthly minima and packages may make a small batch dearer than its tokens alone; never than the bound.
        return min(worst, expected_cost(rates, TokenUsage(num_prompt_tokens, num_cached_tokens, num_output_tokens)))

    return {
        **_errors(report.errors),
        "status": QuoteStatus.READY,
        "model": model,
        "rate_card_id": rates.rate_card_id,
        "num_requests": report.num_requests,
        "num_prompt_tokens": num_prompt_tokens,
        "num_shared_tokens": planned.num_shared_tokens,
        "num_output_tokens_p50": output.p50,
        "num_output_tokens_p95": output.p95,
        "num_output_tokens_worst": output.worst,
        "num_learned_requests": output.num_learned_requests,
        "currency": rates.currency,
        "cost_p50": cost(planned.num_shared_tokens, output.p50),
        "cost_p95": cost(planned.num_shared_tokens - planned.num_over_cuts, output.p95),
        "cost_worst": worst,
        "finish_at": estimated_finish(
            conn,
            model,
            tenant_id=quote.tenant_id,
            service_class=quote.service_class,
            num_prompt_tokens=num_prompt_tokens,
            num_shared_tokens=planned.num_shared_tokens,
            num_answer_tokens=planned.num_answer_tokens,  # how fast groups are is measured in the same
        ),
    }


@dataclass(frozen=True, slots=True)
class _Planned:
    """What planning would make of it; prompt tokens that the prefix cache serves."""

    #: In one group.
    num_shared_tokens: int
    #: Of these, those that two groups would both compute, if each slice ran in another group than the one before.
    num_over_cuts: int
    #: Completion tokens that planning counts.
    num_answer_tokens: int


def _planned(conn: Connection, model: str, settings: Settings) -> _Planned:
    order = order_requests(conn, _WHOLE_PROMPTS)
    cuts = cut_order(conn, order, model, settings)
    return _Planned(
        num_shared_tokens=sum(order.shared),
        num_over_cuts=sum(order.shared[cut.first] for cut in cuts),
        num_answer_tokens=sum(order.sizes) - sum(order.num_prompt_tokens),
    )


_PROMPT_TOKENS: Final = text(f"SELECT sum(num_prompt_tokens) FROM {INTAKE_TABLE}")  # noqa: S608 - a constant
_BOUNDS: Final = text(f"""
    SELECT CAST(params ->> 'max_tokens' AS bigint), coalesce(CAST(params ->> 'n' AS bigint), 1), count(*)
    FROM {INTAKE_TABLE} GROUP BY 1, 2
""")  # noqa: S608 - a constant
# Of the latest batches, whatever requests come first: their order is that of their prompts.
_LENGTHS: Final = text("""
    SELECT latest.id AS batch_id, finished.num_tokens, finished.max_tokens
    FROM (
        SELECT id FROM batches
        WHERE tenant_id = :tenant_id AND model = :model AND num_succeeded > 0
        ORDER BY created_at DESC LIMIT :num_batches
    ) AS latest, LATERAL (
        SELECT ceil(coalesce(a.num_output_tokens, e.quantity) / coalesce(CAST(r.params ->> 'n' AS numeric), 1))
                   AS num_tokens,
               CAST(r.params ->> 'max_tokens' AS bigint) AS max_tokens
        FROM requests r JOIN results a ON a.request_id = r.id
        LEFT JOIN usage_events e ON a.tenant_id IS NULL AND e.request_id = r.id AND e.meter = 'output'
        WHERE r.batch_id = latest.id AND r.outcome = 'succeeded' LIMIT :num_requests
    ) AS finished
""")


def _bounds(conn: Connection) -> dict[tuple[int, int], int]:
    return {(max_tokens, n): count for max_tokens, n, count in conn.execute(_BOUNDS)}


def _lengths(conn: Connection, tenant_id: str, model: str) -> list[Length]:
    rows = conn.execute(
        _LENGTHS,
        {
            "tenant_id": tenant_id,
            "model": model,
            "num_batches": _LEARNED_BATCHES,
            "num_requests": _LEARNED_REQUESTS,
        },
    )
    return [Length(row.batch_id, int(row.num_tokens), row.max_tokens) for row in rows]


def _errors(lines: Sequence[InvalidLine]) -> dict[str, Any]:
    shown = [
        {"line": line.line or None, "code": line.code, "param": line.param, "message": line.message} for line in lines
    ]
    return {"num_errors": len(lines), "errors": shown or None}


def _failed(errors: Sequence[InvalidLine]) -> dict[str, Any]:
    return {"status": QuoteStatus.FAILED, **_errors(errors)}


def _settle(conn: Connection, quote_id: str, **values: Any) -> None:
    is_open = (Quote.id == quote_id) & (Quote.status == QuoteStatus.COMPUTING)
    conn.execute(update(Quote).where(is_open).values(values))


def _count(engine: Engine, quote_id: str) -> int:
    """In a transaction of its own, so that it stays counted if this process does not live to see the end of it."""
    counted = update(Quote).where(Quote.id == quote_id).values(num_computations=Quote.num_computations + 1)
    with connection(engine) as conn:
        return conn.execute(counted.returning(Quote.num_computations)).scalar_one()


def _waiting(engine: Engine) -> list[str]:
    query = select(Quote.id).where(Quote.status == QuoteStatus.COMPUTING).order_by(Quote.created_at).limit(100)
    with connection(engine) as conn:
        return list(conn.scalars(query))
