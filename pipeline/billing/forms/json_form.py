"""An invoice as JSON: amounts and prices are strings, so that no program reads them as floats."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson

from pipeline.billing.currencies import exact_text
from pipeline.billing.documents import Document, Item, Line


def summary_record(document: Document) -> dict[str, Any]:
    """All but the lines and what they are made of."""
    currency = document.currency
    return {
        "id": document.id,
        "object": "invoice",
        "number": document.number,
        "status": document.status.value,
        "tenant_id": document.tenant_id,
        "month": str(document.month),
        "currency": currency,
        "customer": document.customer.record(),
        "supplier": document.supplier.record(),
        "created_at": _seconds(document.created_at),
        "issued_at": _seconds(document.issued_at),
        "voided_at": _seconds(document.voided_at),
        "void_reason": document.void_reason,
        "exact": exact_text(document.exact, currency),
        "rounding": exact_text(document.rounding, currency),
        "total": exact_text(document.total, currency),
        "receipts": None
        if document.num_receipts is None
        else {"count": document.num_receipts, "merkle_root": document.receipts_root},
    }


def document_record(document: Document) -> dict[str, Any]:
    """The whole invoice. The amounts of its lines sum to its total."""
    return {
        **summary_record(document),
        "lines": [_line(document, line) for line in document.lines],
        "items": [_item(document, item) for item in document.items],
    }


def json_form(document: Document) -> Iterator[bytes]:
    yield orjson.dumps(document_record(document), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _line(document: Document, line: Line) -> dict[str, Any]:
    currency = document.currency
    return {
        "position": line.position,
        "kind": line.kind.value,
        "description": line.description,
        "service_month": str(line.month),
        "model": line.model,
        "meter": line.meter,
        "service_class": line.service_class,
        "rate_card_id": line.rate_card_id,
        "unit_price": None if line.unit_price is None else exact_text(line.unit_price, currency),
        "quantity": line.quantity,
        "exact_amount": exact_text(line.exact, currency),
        "amount": exact_text(line.amount, currency),
        "credit_note_id": line.credit_note_id,
    }


def _item(document: Document, item: Item) -> dict[str, Any]:
    currency = document.currency
    return {
        "position": item.position,
        "day": item.day.isoformat(),
        "project_id": item.project_id,
        "project": document.name_of(item.project_id) or None,
        "api_key_id": item.api_key_id,
        "api_key": document.name_of(item.api_key_id),
        "model": item.model,
        "meter": item.meter.value,
        "service_class": item.service_class.value,
        "rate_card_id": item.rate_card_id,
        "unit_price": None if item.unit_price is None else exact_text(item.unit_price, currency),
        "events": item.num_events,
        "quantity": item.quantity,
        "exact_amount": exact_text(item.exact, currency),
    }


def _seconds(moment: datetime | None) -> int | None:
    """Unix seconds, as all objects of the API have them."""
    return None if moment is None else int(moment.timestamp())
