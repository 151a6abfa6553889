"""`/v1/organization/invoices`: the caller's own invoices, and the key that receipts are checked with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import IO, Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from pipeline import signing
from pipeline.billing.forms import FORMS, write_form
from pipeline.billing.forms.json_form import document_record
from pipeline.billing.invoice_reading import document_of
from pipeline.billing.invoices import NoSuchInvoiceError, find_invoice
from pipeline.errors import UserError
from pipeline.gateway.auth import Caller, InvoicesReader
from pipeline.gateway.errors import ApiError
from pipeline.paging import read_page
from pipeline.schemas.invoices import InvoiceObject, InvoiceSummary, ReceiptKey
from pipeline.schemas.lists import ListPage
from pipeline.tables import Invoice
from pipeline.tables.session import transaction

router = APIRouter(prefix="/v1", tags=["invoices"])

#: A form up to this size is kept in memory, in bytes.
_IN_MEMORY: Final = 4 * 1024**2
_PIECE_BYTES: Final = 256 * 1024

FormName = Literal["json", "csv", "xlsx", "pdf", "html", "focus", "journal"]


@router.get("/organization/invoices")
def list_invoices(
    caller: InvoicesReader, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ListPage[InvoiceSummary]:
    """The organisation's invoices, the newest first."""
    with transaction() as session:
        page = read_page(session, Invoice, caller.tenant_id, after=after, limit=limit)
        return ListPage(
            data=[InvoiceSummary.of(invoice) for invoice in page.rows],
            first_id=page.first_id,
            last_id=page.last_id,
            has_more=page.has_more,
        )


@router.get("/organization/invoices/{invoice_id}")
def retrieve_invoice(caller: InvoicesReader, invoice_id: str) -> InvoiceObject:
    with transaction() as session:
        document = document_of(session, _find(session, caller.tenant_id, invoice_id))
    return InvoiceObject.model_validate(document_record(document))


@router.get(
    "/organization/invoices/{invoice_id}/{form}",
    response_class=StreamingResponse,
    responses={200: {"content": {form.media_type: {} for form in FORMS.values()}}},
)
def retrieve_invoice_form(caller: InvoicesReader, invoice_id: str, form: FormName) -> StreamingResponse:
    """An invoice as a file."""
    content: IO[bytes]
    with transaction() as session, contextlib.ExitStack() as on_error:
        document = document_of(session, _find(session, caller.tenant_id, invoice_id))
        # Written before any of it is sent, so that a slow client holds no transaction.
        content = on_error.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))
        for piece in write_form(session, document, form):
            content.write(piece)
        on_error.pop_all()
    length = content.tell()
    content.seek(0)
    name = f"{document.number or document.id}.{FORMS[form].extension}"
    headers = {
        "content-disposition": f'attachment; filename="{name}"',
        "content-length": str(length),
        "x-content-type-options": "nosniff",
        # A page of ours has no script; nothing that it shows may bring one.
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    }
    return StreamingResponse(_pieces(content), media_type=FORMS[form].media_type, headers=headers)


@router.get("/receipts/key")
def retrieve_receipt_key(caller: Caller) -> ReceiptKey:
    """The public key of this installation, in PEM; 404 where it signs nothing."""
    try:
        key = signing.signing_key()
    except UserError:  # none, or one that can not be read
        raise ApiError(
            404, "This installation signs no receipts. Ask the operator to give it a key.", code="receipts_off"
        ) from None
    return ReceiptKey(key_id=key.key_id, public_key=key.public_key_text)


def _find(session: Session, tenant_id: str, invoice_id: str) -> Invoice:
    try:
        return find_invoice(session, invoice_id, tenant_id)
    except NoSuchInvoiceError:
        raise ApiError(
            404, f"No such invoice: {invoice_id[:128]}", param="invoice_id", code="invoice_not_found"
        ) from None


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while piece := content.read(_PIECE_BYTES):
            yield piece
