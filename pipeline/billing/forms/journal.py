"""The ledger behind an invoice: what was posted for its month, and the invoice's own closing.

Debits and credits of each transaction are equal; what is debited to `invoiced`, less what is credited to it, is the
invoice's total. Of an invoice that is not issued the closing is shown as it would be now, as `pending`.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.billing.closing import closing_entries
from pipeline.billing.currencies import exact_text
from pipeline.billing.documents import Document
from pipeline.billing.forms.tables import csv_pieces
from pipeline.tables import InvoiceStatus

COLUMNS: Final = ("date", "transaction", "kind", "reference", "account", "owner", "debit", "credit", "currency")

_POSTED: Final = text("""
    SELECT t.created_at, t.id, t.kind, t.idempotency_key, a.kind AS account, a.tenant_id, e.amount
    FROM ledger_transactions t JOIN ledger_entries e ON e.transaction_id = t.id
    JOIN ledger_accounts a ON a.id = e.account_id
    WHERE t.tenant_id = :tenant_id AND a.currency = :currency
      AND (t.period = :month OR t.period IS NULL AND t.created_at >= :begin AND t.created_at < :end)
    ORDER BY t.id, e.amount DESC, a.id
""")
#: Rows that are in memory at once.
_PAGE: Final = 1_000


def journal_form(session: Session, document: Document) -> Iterator[bytes]:
    """CSV, in pieces, in the order of posting. Reads on while it is consumed, in the caller's transaction."""
    return csv_pieces(COLUMNS, _rows(session, document))


def _rows(session: Session, document: Document) -> Iterator[list[str]]:
    month = document.month
    posted = session.execute(
        _POSTED,
        {
            "tenant_id": document.tenant_id,
            "currency": document.currency,
            "month": month.start.date(),
            "begin": month.start,
            "end": month.end,
        },
        execution_options={"yield_per": _PAGE},
    )
    for row in posted:
        moment = row.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        yield _row(document, moment, str(row.id), row.kind, row.idempotency_key, row.account, row.tenant_id, row.amount)
    if document.status in (InvoiceStatus.DRAFT, InvoiceStatus.COLLECTING):
        for entry in closing_entries(document):
            owner = document.tenant_id if entry.is_tenants else None
            yield _row(document, "", "pending", "invoice", document.id, entry.account, owner, entry.amount)


def _row(
    document: Document,
    moment: str,
    transaction: str,
    kind: str,
    reference: str,
    account: str,
    owner: str | None,
    amount: Decimal,
) -> list[str]:
    shown = exact_text(amount.copy_abs(), document.currency)
    debit, credit = (shown, "") if amount >= 0 else ("", shown)
    return [moment, transaction, kind, reference, account, owner or "operator", debit, credit, document.currency]
