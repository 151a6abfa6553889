"""Credits for missed windows: a batch that had not ended when its completion window did costs less.

The credit is a part of what was billed of the batch when it ended, `missed_window_credit`. It is given in the
transaction that ends the batch, under the lock of its row and with a key in the ledger that is unique for ever: once,
whoever closes it and however often. What is rated again later leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from pipeline.billing.ledger import Account, Posting, post_entries
from pipeline.billing.pricing import EXACT
from pipeline.ids import new_id
from pipeline.settings import get_settings
from pipeline.tables import CreditNote, CreditReason, LedgerTransaction

#: As the columns of money have it. A credit is rounded to it, half away from zero.
_SCALE: Final = Decimal("0.000000000000001")

# A batch that was cancelled was not awaited any more.
_COST: Final = text("""
    SELECT u.tenant_id, u.currency, sum(u.amount) AS amount
    FROM rated_usage u
    WHERE u.batch_id = :batch_id AND u.revision IS NOT NULL AND EXISTS (
        SELECT FROM batches b WHERE b.id = :batch_id
          AND (b.status = 'expired' OR b.status = 'completed' AND b.completed_at > b.expires_at)
    )
    GROUP BY u.tenant_id, u.currency ORDER BY u.currency
""")


def credit_missed_window(session: Session, batch_id: str) -> Sequence[CreditNote]:
    """Credit part of the cost of a batch that has just ended, if its window had before; one note per currency.

    The caller has the batch's row locked, and has written its final status.
    """
    part = get_settings().missed_window_credit
    notes = []
    for cost in session.execute(_COST, {"batch_id": batch_id}).all():
        amount = EXACT.multiply(cost.amount, part).quantize(_SCALE, ROUND_HALF_UP)
        if amount > 0:
            notes.append(_give(session, batch_id, cost.tenant_id, cost.currency, amount))
    return notes


def _give(session: Session, batch_id: str, tenant_id: str, currency: str, amount: Decimal) -> CreditNote:
    key = f"missed_window:{batch_id}:{currency}"
    post_entries(
        session,
        tenant_id=tenant_id,
        currency=currency,
        kind=Posting.CREDIT_NOTE,
        idempotency_key=key,
        entries=[
            (Account.RECEIVABLE, tenant_id, None, amount.copy_negate()),
            (Account.REVENUE, None, None, amount),
        ],
    )
    posted = select(LedgerTransaction.id).where(LedgerTransaction.idempotency_key == key)
    note = CreditNote(
        id=new_id("credit"),
        tenant_id=tenant_id,
        batch_id=batch_id,
        reason=CreditReason.MISSED_WINDOW,
        currency=currency,
        amount=amount,
        ledger_transaction_id=session.execute(posted).scalar_one(),
    )
    session.add(note)
    session.flush()
    return note
