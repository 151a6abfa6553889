"""An issued invoice in the ledger: what was owed line by line becomes one claim, of a rounded amount.

`receivable` goes on holding all that a tenant was charged. Against it, `billed` holds what of that is on invoices, so
that the two together are what is yet to be billed; `invoiced` holds what invoices say is to be paid; and `rounding`,
the operator's, what lies between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.billing.documents import Document
from pipeline.billing.rating import exact_sum
from pipeline.tables import Invoice, LineKind

INVOICED: Final = "invoiced"
BILLED: Final = "billed"
ROUNDING: Final = "rounding"
REVENUE: Final = "revenue"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A debit (positive) or a credit (negative) of an account."""

    account: str
    #: Whether the account is the tenant's, or else the operator's.
    is_tenants: bool
    amount: Decimal

    def reversed(self) -> Entry:
        return replace(self, amount=self.amount.copy_negate())


#: Against which account a line is closed. What the ledger has on `receivable` already is closed against `billed`.
_AGAINST: Final = {
    LineKind.USAGE: (BILLED, True),
    LineKind.CORRECTION: (BILLED, True),
    LineKind.CREDIT_NOTE: (BILLED, True),
    LineKind.CREDIT: (BILLED, True),
    LineKind.COMMITMENT: (REVENUE, False),
}


def closing_entries(document: Document) -> list[Entry]:
    """What issuing an invoice posts; sums to zero."""
    against: dict[tuple[str, bool], list[Decimal]] = defaultdict(list)
    for line in document.lines:
        if line.kind is not LineKind.ROUNDING:
            against[_AGAINST[line.kind]].append(line.exact.copy_negate())
    total = document.total
    against[ROUNDING, False].append(exact_sum([document.exact, total.copy_negate()]))
    entries = [Entry(account=INVOICED, is_tenants=True, amount=total)]
    entries += [
        Entry(account=account, is_tenants=is_tenants, amount=exact_sum(amounts))
        for (account, is_tenants), amounts in against.items()
    ]
    return [entry for entry in entries if entry.amount]


_OPEN_ACCOUNT: Final = text("""
    INSERT INTO ledger_accounts (kind, tenant_id, currency) VALUES (:kind, :tenant_id, :currency)
    ON CONFLICT DO NOTHING
""")
_POST: Final = text("""
    INSERT INTO ledger_transactions (idempotency_key, tenant_id, kind, period)
    VALUES (:key, :tenant_id, 'invoice', :period) RETURNING id
""")
_POST_ENTRY: Final = text("""
    INSERT INTO ledger_entries (transaction_id, account_id, amount)
    SELECT :transaction_id, id, :amount FROM ledger_accounts
    WHERE kind = :kind AND tenant_id IS NOT DISTINCT FROM :tenant_id AND currency = :currency
""")


def post_closing(session: Session, invoice: Invoice, entries: Sequence[Entry], key: str) -> None:
    """Post what `closing_entries` gives, or its reverse. A key that was used before is an IntegrityError."""
    owner = {"tenant_id": invoice.tenant_id, "key": key, "period": invoice.month_start}
    transaction_id = session.execute(_POST, owner).scalar_one()
    for entry in entries:
        account = {
            "kind": entry.account,
            "tenant_id": invoice.tenant_id if entry.is_tenants else None,
            "currency": invoice.currency,
        }
        session.execute(_OPEN_ACCOUNT, account)
        session.execute(_POST_ENTRY, {**account, "transaction_id": transaction_id, "amount": entry.amount})
