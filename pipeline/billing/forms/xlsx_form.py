"""An invoice as a workbook: lines, what they are made of, and usage by day.

Amounts of lines and numbers of tokens are numbers, so that a spreadsheet can add them up. A cell holds 15 digits for
certain; an amount that has more is text. Exact amounts have up to 15 decimals and are always text, so that every digit
of the invoice can be proved from the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import xlsxwriter

from pipeline.billing.currencies import minor_decimals
from pipeline.billing.documents import Document
from pipeline.billing.forms.charts import chart_by_day
from pipeline.billing.forms.tables import ITEM_COLUMNS, LINE_COLUMNS, item_row, line_row

#: Significant digits that a cell keeps whatever they are.
_SAFE_DIGITS: Final = 15
#: Rows of a sheet, its header among them.
_MOST_ROWS: Final = 1_048_576
_PIECE_BYTES: Final = 256 * 1024
_NUMBERS: Final = frozenset({"position", "quantity", "events", "amount"})
_WIDTHS: Final = {"description": 44, "model": 24, "invoice": 38, "project_id": 38, "api_key_id": 38, "exact_amount": 24}


def xlsx_form(document: Document) -> Iterator[bytes]:
    """Written row by row to a file of its own, so that memory does not grow with the invoice."""
    with tempfile.TemporaryDirectory(prefix="ryzanstein-invoice-") as folder:
        path = Path(folder) / "invoice.xlsx"
        _write(path, document)
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece


def is_safe_number(number: Decimal) -> bool:
    """Whether a cell gives back every digit of it."""
    return len(number.normalize().as_tuple().digits) <= _SAFE_DIGITS


def _write(path: Path, document: Document) -> None:
    # Text is never taken for a formula, a link or a number.
    options = {
        "constant_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
    }
    with xlsxwriter.Workbook(str(path), options) as workbook:
        workbook.set_properties({"title": document.number or document.id, "created": document.created_at})
        formats = {
            "head": workbook.add_format({"bold": True, "bottom": 1}),
            "amount": workbook.add_format({"num_format": _number_format(document.currency)}),
            "whole": workbook.add_format({"num_format": "#,##0"}),
            "total": workbook.add_format({"num_format": _number_format(document.currency), "bold": True, "top": 1}),
            "bold": workbook.add_format({"bold": True, "top": 1}),
        }
        _write_lines(workbook, formats, document)
        _write_items(workbook, formats, document)
        _write_days(workbook, formats, document)


def _write_lines(workbook: Any, formats: dict[str, Any], document: Document) -> None:
    sheet = workbook.add_worksheet("Invoice")
    _write_header(sheet, formats, LINE_COLUMNS)
    amount_column = LINE_COLUMNS.index("amount")
    for row, line in enumerate(document.lines, 1):
        _write_row(sheet, formats, row, LINE_COLUMNS, line_row(document, line))
    last = len(document.lines) + 1
    sheet.write_string(last, LINE_COLUMNS.index("description"), "Total", formats["bold"])
    letter = chr(ord("A") + amount_column)
    if is_safe_number(document.total) and all(is_safe_number(line.amount) for line in document.lines):
        sheet.write_formula(
            last, amount_column, f"=SUM({letter}2:{letter}{last})", formats["total"], document.total.normalize()
        )
    else:
        sheet.write_string(last, amount_column, f"{document.total:f}", formats["total"])
    sheet.write_string(last, amount_column + 1, document.currency)


def _write_items(workbook: Any, formats: dict[str, Any], document: Document) -> None:
    """On as many sheets as the rows need."""
    per_sheet = _MOST_ROWS - 1
    for number in range(max(1, -(-len(document.items) // per_sheet))):
        sheet = workbook.add_worksheet("Items" if number == 0 else f"Items {number + 1}")
        _write_header(sheet, formats, ITEM_COLUMNS)
        for row, item in enumerate(document.items[number * per_sheet : (number + 1) * per_sheet], 1):
            _write_row(sheet, formats, row, ITEM_COLUMNS, item_row(document, item))


def _write_days(workbook: Any, formats: dict[str, Any], document: Document) -> None:
    days = chart_by_day(document)
    sheet = workbook.add_worksheet("Days")
    _write_header(sheet, formats, ("day", "exact_amount"))
    for row, bar in enumerate(days.bars, 1):
        sheet.write_string(row, 0, f"{document.month}-{int(bar.label):02}")
        sheet.write_number(row, 1, bar.amount)
    chart = workbook.add_chart({"type": "column"})
    chart.add_series(
        {
            "name": f"Usage, {document.currency}",
            "categories": ["Days", 1, 0, len(days.bars), 0],
            "values": ["Days", 1, 1, len(days.bars), 1],
            "fill": {"color": "#17617A"},
        }
    )
    chart.set_legend({"none": True})
    chart.set_title({"name": f"Usage by day, {document.currency}"})
    sheet.insert_chart("D2", chart, {"x_scale": 2})


def _write_header(sheet: Any, formats: dict[str, Any], columns: Sequence[str]) -> None:
    sheet.freeze_panes(1, 0)
    for index, column in enumerate(columns):
        sheet.set_column(index, index, _WIDTHS.get(column, 16))
        sheet.write_string(0, index, column, formats["head"])


def _write_row(sheet: Any, formats: dict[str, Any], row: int, columns: Sequence[str], values: Sequence[str]) -> None:
    for index, (column, value) in enumerate(zip(columns, values, strict=True)):
        if column in _NUMBERS and value and is_safe_number(Decimal(value)):
            sheet.write_number(row, index, Decimal(value), formats["amount" if column == "amount" else "whole"])
        elif value:
            sheet.write_string(row, index, value)


def _number_format(currency: str) -> str:
    decimals = minor_decimals(currency)
    return "#,##0" + (f".{'0' * decimals}" if decimals else "")
