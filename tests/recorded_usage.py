"""Usage as a group records it, without a group."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from itertools import count

from sqlalchemy import func
from sqlalchemy.orm import Session

from pipeline.ids import new_file_id, new_id
from pipeline.tables import (
    ApiKey,
    Batch,
    BatchStatus,
    File,
    LedgerTransaction,
    Meter,
    OnInvalid,
    RateCard,
    RatedLine,
    Request,
    Result,
    UsageEvent,
)
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import ensure_tenant

_numbers = count(1)


def make_key(session: Session, tenant: str, name: str = "key") -> ApiKey:
    return create_key(session, ensure_tenant(session, tenant).id, name)[0]


def make_batch(session: Session, key: ApiKey) -> Batch:
    file = File(
        id=new_file_id(), tenant_id=key.tenant_id, filename="a", purpose="batch", num_bytes=0, storage_key="uploads/a"
    )
    session.add(file)
    session.flush()
    batch = Batch(
        id=new_id("batch"),
        tenant_id=key.tenant_id,
        api_key_id=key.id,
        input_file_id=file.id,
        endpoint="/v1/completions",
        completion_window="24h",
        on_invalid=OnInvalid.FAIL,
        status=BatchStatus.COMPLETED,
        expires_at=func.now(),
    )
    session.add(batch)
    session.flush()
    return batch


def use(
    session: Session,
    batch: Batch,
    model: str,
    tokens: tuple[int, int, int],
    *,
    at: datetime,
    card: RateCard | None,
    engine_ms: int = 0,
) -> int:
    """Record one answer of (uncached, cached, output) tokens, rated by `card`; returns its request."""
    number = next(_numbers)
    request = Request(
        batch_id=batch.id, line=number, custom_id=str(number), prompt_token_ids=b"", num_prompt_tokens=0, params={}
    )
    session.add(request)
    session.flush()
    session.add(
        Result(
            request_id=request.id,
            batch_id=batch.id,
            body="{}",
            num_line_bytes=0,
            slice_id=1,
            lease_epoch=1,
            group_id="g",
        )
    )
    session.flush()
    transaction = LedgerTransaction(idempotency_key=f"test {number}", tenant_id=batch.tenant_id)
    session.add(transaction)
    session.flush()
    for meter, quantity in zip(Meter, tokens, strict=True):
        if meter is Meter.INPUT_CACHED and quantity == 0:
            continue
        session.add(
            UsageEvent(
                request_id=request.id,
                meter=meter,
                quantity=quantity,
                tenant_id=batch.tenant_id,
                api_key_id=batch.api_key_id,
                batch_id=batch.id,
                model=model,
                group_id="g",
                engine_ms=engine_ms if meter is Meter.OUTPUT else 0,
                occurred_at=at,
            )
        )
        session.flush()
        if card is not None:
            rate(session, request.id, meter, quantity, card, transaction.id)
    return request.id


def rate(
    session: Session, request_id: int, meter: Meter, quantity: int, card: RateCard, ledger: int, revision: int = 1
) -> None:
    price = {
        Meter.INPUT_UNCACHED: card.input_price,
        Meter.INPUT_CACHED: card.cached_input_price,
        Meter.OUTPUT: card.output_price,
    }[meter]
    session.add(
        RatedLine(
            request_id=request_id,
            meter=meter,
            revision=revision,
            rate_card_id=card.id,
            ledger_transaction_id=ledger,
            quantity=quantity,
            unit_price=price,
            amount=quantity * price * (1 - card.batch_discount) * Decimal("0.000001"),
            currency=card.currency,
        )
    )
    session.flush()
