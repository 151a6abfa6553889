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

from sqlalchemy.orm import Session

from pipeline.billing.documents import Document
from pipeline.billing.ledger import Account, Posting, post_entries
from pipeline.billing.pricing import exact_sum
from pipeline.tables import Invoice, LineKind


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A debit (positive) or a credit (negative) of an account."""

    account: Account
    #: Whether the account is the tenant's, or else the operator's.
    is_tenants: bool
    amount: Decimal

    def reversed(self) -> Entry:
        return replace(self, amount=self.amount.copy_negate())


#: Against which account a line is closed. What the ledger has on `receivable` already is closed against `billed`.
_AGAINST: Final = {
    LineKind.USAGE: (Account.BILLED, True),
    LineKind.CORRECTION: (Account.BILLED, True),
    LineKind.CREDIT_NOTE: (Account.BILLED, True),
    LineKind.CREDIT: (Account.BILLED, True),
    LineKind.COMMITMENT: (Account.REVENUE, False),
}


def closing_entries(document: Document) -> list[Entry]:
    """What issuing an invoice posts; sums to zero."""
    against: dict[tuple[Account, bool], list[Decimal]] = defaultdict(list)
    for line in document.lines:
        if line.kind is not LineKind.ROUNDING:
            against[_AGAINST[line.kind]].append(line.exact.copy_negate())
    total = document.total
    against[Account.ROUNDING, False].append(exact_sum([document.exact, total.copy_negate()]))
    entries = [Entry(account=Account.INVOICED, is_tenants=True, amount=total)]
    entries += [
        Entry(account=account, is_tenants=is_tenants, amount=exact_sum(amounts))
        for (account, is_tenants), amounts in against.items()
    ]
    return [entry for entry in entries if entry.amount]


def post_closing(session: Session, invoice: Invoice, entries: Sequence[Entry], key: str) -> None:
    """Post what `closing_entries` gives, or its reverse. A key that was used before is an IntegrityError."""
    post_entries(
        session,
        tenant_id=invoice.tenant_id,
        currency=invoice.currency,
        kind=Posting.INVOICE,
        idempotency_key=key,
        period=invoice.month_start,
        entries=[
            (entry.account, invoice.tenant_id if entry.is_tenants else None, None, entry.amount) for entry in entries
        ],
    )
