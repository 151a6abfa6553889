"""The life of an invoice: draft, collecting, final, void. One per tenant, currency and month counts.

Until it is issued an invoice holds nothing but who it is for; its lines are read anew at every look. Issuing writes
them down, gives the number and posts the invoice to the ledger, in one transaction; triggers refuse any change from
then on. What changes later of a month that was billed comes as corrections on the next invoice. All of a tenant's
invoices are handled one at a time, under a lock of the tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from pipeline.billing.charges import charge_currencies
from pipeline.billing.closing import closing_entries, post_closing
from pipeline.billing.credits import settle_credit
from pipeline.billing.currencies import decimal_text
from pipeline.billing.documents import Document, Party
from pipeline.billing.invoice_reading import document_of, line_row
from pipeline.billing.itemizing import billed_months, currencies_used, is_still_whole, items_to_bill
from pipeline.billing.merkle import root_of
from pipeline.billing.rating_lock import keep_prices
from pipeline.billing.receipts import month_leaves
from pipeline.billing.reconciliation import Drift, drift_of
from pipeline.billing.reports import Month, check_all_rated
from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.settings import get_settings
from pipeline.tables import BillingDetails, Invoice, InvoiceItem, InvoiceStatus, Tenant
from pipeline.tenancy.audit_log import record


class InvoiceError(UserError):
    """This can't be done with an invoice."""


class NoSuchInvoiceError(InvoiceError):
    """There is no such invoice."""


#: A month can have millions of events, and all of them are read; others wait for that as long.
_TAKE_TIME: Final = text("SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '30min', true)")

_TAKE_NUMBER: Final = text("""
    INSERT INTO invoice_numbers (year, last) VALUES (:year, 1)
    ON CONFLICT (year) DO UPDATE SET last = invoice_numbers.last + 1 RETURNING last
""")


def create_invoices(session: Session, tenant_id: str, month: Month, now: datetime) -> list[Invoice]:
    """The invoices of a tenant's month, by currency; those that are missing are made.

    None where there is nothing to bill. Raises InvoiceError for a month that has not begun.
    """
    if now < month.start:
        raise InvoiceError(f"{month} has not begun; there is nothing to bill yet.")
    lock_invoices(session, tenant_id)
    found = {invoice.currency: invoice for invoice in _of_month(session, tenant_id, month)}
    missing = [currency for currency in _currencies(session, tenant_id, month) if currency not in found]
    for currency in missing:
        found[currency] = _new(session, tenant_id, month, currency, now)
        session.add(found[currency])
    for invoice in found.values():
        _advance(invoice, now)
    session.flush()
    for currency in missing:
        details = {"tenant": tenant_id, "month": str(month), "currency": currency}
        record(session, act="invoice.create", object=found[currency].id, details=details)
    return [found[currency] for currency in sorted(found)]


def month_documents(session: Session, tenant_id: str, month: Month, now: datetime) -> list[Document]:
    """The invoices of a tenant's month as they are; those that are not made yet, as they would be. Writes nothing."""
    session.execute(_TAKE_TIME)
    found = {invoice.currency: invoice for invoice in _of_month(session, tenant_id, month)}
    for currency in _currencies(session, tenant_id, month):
        if currency not in found:
            found[currency] = _new(session, tenant_id, month, currency, now)
    return [document_of(session, found[currency]) for currency in sorted(found)]


def finalize_invoice(
    session: Session,
    invoice_id: str,
    now: datetime,
    *,
    find_drift: Callable[[Session, Month, str], Sequence[Drift]] = drift_of,
) -> Invoice:
    """Issue an invoice: number it, write its lines down and post it.

    Raises NoSuchInvoiceError; InvoiceError where it is too early, or was issued or made void already, or where the
    books of its month do not agree; UnratedUsageError where a usage event has no price.
    """
    settings = get_settings()
    hold_rating(session)
    invoice = _locked(session, invoice_id)
    month = Month.of_day(invoice.month_start)
    if invoice.status is InvoiceStatus.VOID or invoice.number is not None:
        raise InvoiceError(f"Invoice {invoice.number or invoice.id} is {invoice.status} already.")
    due = month.end + timedelta(seconds=settings.invoice_collection_seconds)
    if now < due:
        raise InvoiceError(
            f"Invoice {invoice.id} can't be issued before {due:%Y-%m-%d %H:%M} UTC: its month, {month}, is still being "
            "collected."
        )
    check_all_rated(session, month, invoice.tenant_id)
    _check_drift(invoice, find_drift(session, month, invoice.tenant_id))
    settle_credit(session, invoice.tenant_id, invoice.currency)
    document = document_of(session, invoice)
    session.add_all(line_row(invoice.id, line) for line in document.lines)
    session.flush()
    session.add_all(
        InvoiceItem(
            invoice_id=invoice.id,
            number=number,
            position=item.position,
            day=item.day,
            project_id=item.project_id,
            api_key_id=item.api_key_id,
            model=item.model,
            meter=item.meter,
            service_class=item.service_class,
            rate_card_id=item.rate_card_id,
            unit_price=item.unit_price,
            num_events=item.num_events,
            quantity=item.quantity,
            exact=item.exact,
        )
        for number, item in enumerate(document.items, 1)
    )
    session.flush()
    leaves = month_leaves(session, invoice.tenant_id, month, invoice.currency)
    post_closing(session, invoice, closing_entries(document), f"invoice:{invoice.id}")
    in_utc = now.astimezone(UTC)
    sequence = session.execute(_TAKE_NUMBER, {"year": in_utc.year}).scalar_one()
    invoice.number = f"{settings.invoice_prefix}-{in_utc.year}-{sequence:06}"
    invoice.issued_at = now
    invoice.exact, invoice.total = document.exact, document.total
    invoice.num_receipts = len(leaves)
    invoice.receipts_root = root_of(leaves).hex() if leaves else None
    invoice.status = InvoiceStatus.FINAL
    session.flush()
    record(
        session,
        act="invoice.finalize",
        object=invoice.number,
        details={"tenant_id": invoice.tenant_id, "total": f"{document.total:f}", "currency": invoice.currency},
    )
    return invoice


def void_invoice(session: Session, invoice_id: str, reason: str, now: datetime) -> Invoice:
    """Take an invoice back. It keeps its number and its lines; what it billed may be billed again by another.

    Raises NoSuchInvoiceError; InvoiceError where it is void already, without a reason, or where its usage is dropped.
    """
    if not reason.strip():
        raise InvoiceError("Say why: an invoice is not made void without a reason.")
    hold_rating(session)  # nor is what it billed dropped while it is made void
    invoice = _locked(session, invoice_id)
    if invoice.status is InvoiceStatus.VOID:
        raise InvoiceError(f"Invoice {invoice.number or invoice.id} is void already.")
    if invoice.number is not None:
        if not is_still_whole(session, invoice.tenant_id, Month.of_day(invoice.month_start), invoice.currency):
            raise InvoiceError(
                f"Invoice {invoice.number} can't be made void: some of what it billed was dropped with its month, and "
                "no other invoice could bill it. Give the customer credit instead."
            )
        entries = closing_entries(document_of(session, invoice))
        reversed_entries = [entry.reversed() for entry in entries]
        post_closing(session, invoice, reversed_entries, f"invoice void:{invoice.id}")
    invoice.status, invoice.voided_at, invoice.void_reason = InvoiceStatus.VOID, now, reason
    session.flush()
    record(session, act="invoice.void", object=invoice.number or invoice.id, details={"reason": reason})
    return invoice


def find_invoice(session: Session, name: str, tenant_id: str | None = None) -> Invoice:
    """By id or number, of any tenant or of one alone. Raises NoSuchInvoiceError."""
    query = select(Invoice).where((Invoice.id == name) | (Invoice.number == name))
    if tenant_id is not None:
        query = query.where(Invoice.tenant_id == tenant_id)
    invoice = session.scalars(query).one_or_none()
    if invoice is None:
        raise NoSuchInvoiceError(f"There is no invoice {name!r}. `ryzanstein bill invoice list` shows them.")
    return invoice


def list_invoices(session: Session, *, tenant_id: str | None = None, month: Month | None = None) -> Sequence[Invoice]:
    """The newest month first, and of each month by tenant, currency and age."""
    query = select(Invoice).order_by(
        Invoice.month_start.desc(), Invoice.tenant_id, Invoice.currency, Invoice.created_at, Invoice.id
    )
    if tenant_id is not None:
        query = query.where(Invoice.tenant_id == tenant_id)
    if month is not None:
        query = query.where(Invoice.month_start == month.start.date())
    return session.scalars(query).all()


def lock_invoices(session: Session, tenant_id: str) -> None:
    """Whoever handles invoices of this tenant comes after the caller's transaction, which may take its time."""
    session.execute(_TAKE_TIME)
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"invoices of {tenant_id}", 0))))


def hold_rating(session: Session) -> None:
    """Nobody rates anything again until the caller's transaction ends, so that an invoice has all of it or nothing.

    For the audit of books the moment of the issue should come after this: what was rated before is then on the invoice.
    """
    session.execute(_TAKE_TIME)
    keep_prices(session)


def database_now(session: Session) -> datetime:
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now


def _check_drift(invoice: Invoice, drifts: Sequence[Drift]) -> None:
    if drifts:
        found = "; ".join(
            f"{one.check.statement} (off by {decimal_text(one.amount)} {one.currency or one.check.unit})"
            for one in drifts
        )
        raise InvoiceError(
            f"Invoice {invoice.id} can't be issued: of {drifts[0].month} this does not hold: {found}. "
            "`ryzanstein bill audit` says more."
        )


def _locked(session: Session, invoice_id: str) -> Invoice:
    """The invoice as it is under the lock of its tenant."""
    invoice = find_invoice(session, invoice_id)
    lock_invoices(session, invoice.tenant_id)
    session.refresh(invoice, with_for_update=True)
    return invoice


def _of_month(session: Session, tenant_id: str, month: Month) -> Sequence[Invoice]:
    """Those that count."""
    query = select(Invoice).where(
        Invoice.tenant_id == tenant_id,
        Invoice.month_start == month.start.date(),
        Invoice.status != InvoiceStatus.VOID,
    )
    return session.scalars(query).all()


def _currencies(session: Session, tenant_id: str, month: Month) -> list[str]:
    """Currencies in which there is anything to bill."""
    found = {*currencies_used(session, tenant_id, month), *charge_currencies(session, tenant_id, month)}
    billed = session.scalars(select(Invoice.currency).where(Invoice.tenant_id == tenant_id).distinct()).all()
    for currency in set(billed) - found:
        has_earlier = bool(billed_months(session, tenant_id, currency, before=month))
        if has_earlier and items_to_bill(session, tenant_id, month, currency):
            found.add(currency)
    return sorted(found)


def _new(session: Session, tenant_id: str, month: Month, currency: str, now: datetime) -> Invoice:
    """With customer and supplier as they are now; not part of the session."""
    settings = get_settings()
    details = session.get(BillingDetails, tenant_id)
    customer = Party(name=session.get_one(Tenant, tenant_id).name)
    if details is not None:
        customer = Party(name=details.name, address=details.address, tax_id=details.tax_id, reference=details.reference)
    supplier = Party(
        name=settings.supplier_name,
        address=settings.supplier_address.replace("\\n", "\n"),
        tax_id=settings.supplier_tax_id,
        reference=settings.supplier_note.replace("\\n", "\n"),
    )
    return Invoice(
        id=new_id("inv"),
        tenant_id=tenant_id,
        currency=currency,
        month_start=month.start.date(),
        status=InvoiceStatus.DRAFT,
        customer=customer.record(),
        supplier=supplier.record(),
        created_at=now,
    )


def _advance(invoice: Invoice, now: datetime) -> None:
    if invoice.status is InvoiceStatus.DRAFT and now >= Month.of_day(invoice.month_start).end:
        invoice.status = InvoiceStatus.COLLECTING
