"""What an invoice has beside usage: the contract's minimum, credit notes, prepaid credits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from pipeline.billing.credits import credit_spent
from pipeline.billing.documents import Charge, Item
from pipeline.billing.itemizing import billed_months, invoiced_items
from pipeline.billing.pricing import exact_sum
from pipeline.billing.reports import Month
from pipeline.tables import Contract, CreditNote, Invoice, InvoiceLine, InvoiceStatus, LineKind


def charges_of(
    session: Session, tenant_id: str, month: Month, currency: str, items: Sequence[Item], until: datetime
) -> list[Charge]:
    """In the order of an invoice's lines. `items` are all that it bills; credit notes count that are older than
    `until`, the end of its collection."""
    charges = _commitments(session, tenant_id, month, currency, items)
    charges += _credit_notes(session, tenant_id, currency, until)
    return charges + _credits(session, tenant_id, month, currency)


def charge_currencies(session: Session, tenant_id: str, month: Month) -> set[str]:
    """Currencies in which there may be something to bill although nothing was used."""
    currencies = {note.currency for note in _open_notes(session, tenant_id, month.end)}
    contract = contract_of(session, tenant_id, month)
    if contract is not None and contract.commitment is not None and contract.currency is not None:
        currencies.add(contract.currency)
    return currencies


def contract_of(session: Session, tenant_id: str, month: Month) -> Contract | None:
    """The contract whose minimum holds for a month: the one in effect at its first moment, so that a month in which a
    contract begins owes no minimum."""
    return session.scalars(
        select(Contract)
        .where(Contract.tenant_id == tenant_id, Contract.effective_from <= month.start)
        .order_by(Contract.effective_from.desc(), Contract.created_at.desc(), Contract.id.desc())
        .limit(1)
    ).one_or_none()


def shortfall(commitment: Decimal, items: Iterable[Item], month: Month) -> Decimal:
    """What the usage of a month is short of its minimum; corrections of other months do not count."""
    used = exact_sum(item.exact for item in items if item.month == month)
    return max(Decimal(0), exact_sum([commitment, used.copy_negate()]))


def _commitments(session: Session, tenant_id: str, month: Month, currency: str, items: Sequence[Item]) -> list[Charge]:
    """What months are short of their minimum, less what issued invoices have of it: corrections of usage change it."""
    charges = []
    for used_in in [*billed_months(session, tenant_id, currency, before=month), month]:
        contract = contract_of(session, tenant_id, used_in)
        if contract is None or contract.commitment is None or contract.currency != currency:
            continue
        used = [*invoiced_items(session, tenant_id, used_in, currency), *items]
        invoiced = _invoiced(session, tenant_id, LineKind.COMMITMENT, used_in, currency)
        exact = exact_sum([shortfall(contract.commitment, used, used_in), invoiced.copy_negate()])
        if exact:
            description = f"Minimum of {contract.commitment:f} {currency} a month, less usage"
            if used_in != month:
                description = f"Correction of {used_in}: {description}"
            charges.append(Charge(kind=LineKind.COMMITMENT, description=description, month=used_in, exact=exact))
    return charges


def _credits(session: Session, tenant_id: str, month: Month, currency: str) -> list[Charge]:
    """What prepaid credit has paid, as far as it is settled, less what issued invoices have of it."""
    charges = []
    for used_in in [*billed_months(session, tenant_id, currency, before=month), month]:
        paid = credit_spent(session, tenant_id, currency, used_in.start.date())
        invoiced = _invoiced(session, tenant_id, LineKind.CREDIT, used_in, currency)
        exact = exact_sum([paid, invoiced]).copy_negate()
        if exact:
            description = f"Paid from credit for usage of {used_in}"
            charges.append(Charge(kind=LineKind.CREDIT, description=description, month=used_in, exact=exact))
    return charges


def _invoiced(session: Session, tenant_id: str, kind: LineKind, month: Month, currency: str) -> Decimal:
    """What issued invoices have of this kind for a month."""
    return exact_sum(
        session.scalars(
            select(InvoiceLine.exact)
            .join(Invoice, Invoice.id == InvoiceLine.invoice_id)
            .where(
                Invoice.tenant_id == tenant_id,
                Invoice.currency == currency,
                Invoice.status == InvoiceStatus.FINAL,
                InvoiceLine.kind == kind,
                InvoiceLine.service_month == month.start.date(),
            )
        )
    )


def _credit_notes(session: Session, tenant_id: str, currency: str, until: datetime) -> list[Charge]:
    return [
        Charge(
            kind=LineKind.CREDIT_NOTE,
            description=f"Credit note {note.id}: {note.reason.replace('_', ' ')}, {note.batch_id}",
            month=Month.of(note.created_at),
            exact=note.amount.copy_negate(),
            credit_note_id=note.id,
        )
        for note in _open_notes(session, tenant_id, until)
        if note.currency == currency
    ]


def _open_notes(session: Session, tenant_id: str, until: datetime) -> Sequence[CreditNote]:
    """Credit notes that no issued invoice has passed on."""
    is_passed_on = exists().where(
        InvoiceLine.credit_note_id == CreditNote.id,
        InvoiceLine.invoice_id == Invoice.id,
        Invoice.status == InvoiceStatus.FINAL,
    )
    return session.scalars(
        select(CreditNote)
        .where(CreditNote.tenant_id == tenant_id, CreditNote.created_at < until, ~is_passed_on)
        .order_by(CreditNote.created_at, CreditNote.id)
    ).all()
