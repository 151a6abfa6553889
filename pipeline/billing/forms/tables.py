"""The rows of an invoice for tables of all kinds, and CSV of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pipeline.billing.currencies import exact_text
from pipeline.billing.documents import Document, Item, Line
from pipeline.billing.forms.escaping import cell_text

#: Rows that one piece of a stream holds.
_PIECE_ROWS: Final = 500

LINE_COLUMNS: Final = (
    "invoice",
    "number",
    "position",
    "kind",
    "description",
    "service_month",
    "model",
    "meter",
    "service_class",
    "rate_card_id",
    "unit_price",
    "quantity",
    "exact_amount",
    "amount",
    "currency",
)

ITEM_COLUMNS: Final = (
    "position",
    "day",
    "project_id",
    "project",
    "api_key_id",
    "api_key",
    "model",
    "meter",
    "service_class",
    "rate_card_id",
    "unit_price",
    "events",
    "quantity",
    "exact_amount",
    "currency",
)


def line_row(document: Document, line: Line) -> list[str]:
    """By LINE_COLUMNS. The sum of `amount` over all lines is the total."""
    currency = document.currency
    return [
        document.id,
        document.number or "",
        str(line.position),
        line.kind.value,
        cell_text(line.description),
        str(line.month),
        cell_text(line.model),
        line.meter.value if line.meter else "",
        line.service_class.value if line.service_class else "",
        "" if line.rate_card_id is None else str(line.rate_card_id),
        "" if line.unit_price is None else exact_text(line.unit_price, currency),
        "" if line.quantity is None else str(line.quantity),
        exact_text(line.exact, currency),
        exact_text(line.amount, currency),
        currency,
    ]


def item_row(document: Document, item: Item) -> list[str]:
    """By ITEM_COLUMNS. The sum of `exact_amount` over the items of a line is that of the line."""
    return [
        str(item.position),
        item.day.isoformat(),
        item.project_id or "",
        cell_text(document.name_of(item.project_id)),
        item.api_key_id,
        cell_text(document.name_of(item.api_key_id)),
        cell_text(item.model),
        item.meter.value,
        item.service_class.value,
        str(item.rate_card_id),
        "" if item.unit_price is None else exact_text(item.unit_price, document.currency),
        str(item.num_events),
        str(item.quantity),
        exact_text(item.exact, document.currency),
        document.currency,
    ]


def csv_form(document: Document) -> Iterator[bytes]:
    """The lines, in pieces."""
    return csv_pieces(LINE_COLUMNS, (line_row(document, line) for line in document.lines))


def csv_pieces(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    """UTF-8, with a header and lines that end in CR LF, as RFC 4180 has it."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    for number, row in enumerate(rows, 1):
        writer.writerow(row)
        if number % _PIECE_ROWS == 0:
            yield _take(buffer)
    yield _take(buffer)


def _take(buffer: io.StringIO) -> bytes:
    piece = buffer.getvalue().encode()
    buffer.seek(0)
    buffer.truncate()
    return piece
