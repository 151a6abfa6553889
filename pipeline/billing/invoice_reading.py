"""An invoice as a `Document`: from what was written down when it was issued, else from usage as it is now."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.billing.charges import charges_of
from pipeline.billing.documents import Document, Item, Line, Party, make_lines
from pipeline.billing.itemizing import item_names, items_to_bill
from pipeline.billing.reports import Month
from pipeline.settings import get_settings
from pipeline.tables import Invoice, InvoiceItem, InvoiceLine, InvoiceStatus


def document_of(session: Session, invoice: Invoice) -> Document:
    """What the invoice says; of a draft that was made void, nothing."""
    month = Month.of_day(invoice.month_start)
    if invoice.number is not None:
        lines, items = _stored_lines(session, invoice.id), _stored_items(session, invoice.id)
    elif invoice.status is InvoiceStatus.VOID:
        lines, items = [], []
    else:
        lines, items = _lines_now(session, invoice, month)
    return Document(
        id=invoice.id,
        number=invoice.number,
        status=invoice.status,
        tenant_id=invoice.tenant_id,
        currency=invoice.currency,
        month=month,
        customer=Party(**invoice.customer),
        supplier=Party(**invoice.supplier),
        created_at=invoice.created_at,
        issued_at=invoice.issued_at,
        voided_at=invoice.voided_at,
        void_reason=invoice.void_reason,
        lines=lines,
        items=items,
        receipts_root=invoice.receipts_root,
        num_receipts=invoice.num_receipts,
        names=item_names(session, items),
    )


def line_row(invoice_id: str, line: Line) -> InvoiceLine:
    return InvoiceLine(
        invoice_id=invoice_id,
        position=line.position,
        kind=line.kind,
        description=line.description,
        service_month=line.month.start.date(),
        model=line.model,
        meter=line.meter,
        service_class=line.service_class,
        rate_card_id=line.rate_card_id,
        unit_price=line.unit_price,
        quantity=line.quantity,
        exact=line.exact,
        amount=line.amount,
        credit_note_id=line.credit_note_id,
    )


def _lines_now(session: Session, invoice: Invoice, month: Month) -> tuple[list[Line], list[Item]]:
    items = items_to_bill(session, invoice.tenant_id, month, invoice.currency)
    until = month.end + timedelta(seconds=get_settings().invoice_collection_seconds)
    charges = charges_of(session, invoice.tenant_id, month, invoice.currency, items, until)
    return make_lines(items, charges, month, invoice.currency)


def _stored_lines(session: Session, invoice_id: str) -> list[Line]:
    rows = session.scalars(
        select(InvoiceLine).where(InvoiceLine.invoice_id == invoice_id).order_by(InvoiceLine.position)
    )
    return [
        Line(
            kind=row.kind,
            description=row.description,
            month=Month.of_day(row.service_month),
            exact=row.exact,
            amount=row.amount,
            position=row.position,
            model=row.model,
            meter=row.meter,
            service_class=row.service_class,
            rate_card_id=row.rate_card_id,
            unit_price=row.unit_price,
            quantity=row.quantity,
            credit_note_id=row.credit_note_id,
        )
        for row in rows
    ]


def _stored_items(session: Session, invoice_id: str) -> list[Item]:
    rows = session.scalars(select(InvoiceItem).where(InvoiceItem.invoice_id == invoice_id).order_by(InvoiceItem.number))
    return [
        Item(
            day=row.day,
            project_id=row.project_id,
            api_key_id=row.api_key_id,
            model=row.model,
            meter=row.meter,
            service_class=row.service_class,
            rate_card_id=row.rate_card_id,
            unit_price=row.unit_price,
            num_events=row.num_events,
            quantity=row.quantity,
            exact=row.exact,
            position=row.position,
        )
        for row in rows
    ]
