from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import openpyxl
import pypdf
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from invoice_samples import CURRENCIES, make_document

from pipeline.billing.closing import closing_entries
from pipeline.billing.currencies import exact_text
from pipeline.billing.documents import Document
from pipeline.billing.forms.charts import chart_by_day, chart_by_key, chart_by_model, scale_of
from pipeline.billing.forms.escaping import cell_text
from pipeline.billing.forms.focus import COLUMNS, focus_form
from pipeline.billing.forms.html_form import html_form
from pipeline.billing.forms.json_form import json_form
from pipeline.billing.forms.pdf_form import pdf_form
from pipeline.billing.forms.tables import csv_form
from pipeline.billing.forms.wording import cells_of, grouped
from pipeline.billing.forms.xlsx_form import xlsx_form
from pipeline.billing.ledger import Account
from pipeline.billing.pricing import exact_sum
from pipeline.settings import get_settings

#: Of a name that a tenant may have given himself.
HOSTILE = "=HYPERLINK(\"http://x\") <script>alert('1')</script> & Ünïcode Δοκιμή Пример"


def table(pieces: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(pieces.decode(), newline="")))


def workbook(document: Document) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(b"".join(xlsx_form(document))), data_only=True)


def sheet_rows(book: openpyxl.Workbook, name: str) -> list[dict[str, object]]:
    header, *rows = book[name].iter_rows(values_only=True)
    return [dict(zip(header, row, strict=True)) for row in rows]


def pdf_text(document: Document) -> str:
    reader = pypdf.PdfReader(io.BytesIO(b"".join(pdf_form(document))))
    return "\n".join(page.extract_text() for page in reader.pages)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.cells.append(data.strip())


def page(document: Document) -> _Text:
    parsed = _Text()
    parsed.feed(b"".join(html_form(document)).decode())
    return parsed


@pytest.mark.parametrize("currency", CURRENCIES)
def test_every_form_adds_up_to_the_same_total(currency: str) -> None:
    document = make_document(Random(currency), currency=currency, num_items=200, num_charges=3)
    total = document.total
    shown = grouped(total, currency)

    as_json = json.loads(b"".join(json_form(document)))
    assert Decimal(as_json["total"]) == total
    assert exact_sum(Decimal(line["amount"]) for line in as_json["lines"]) == total
    assert exact_sum(Decimal(item["exact_amount"]) for item in as_json["items"]) == exact_sum(
        Decimal(line["exact_amount"]) for line in as_json["lines"] if line["quantity"] is not None
    )
    assert exact_sum(Decimal(row["amount"]) for row in table(b"".join(csv_form(document)))) == total
    focus = table(b"".join(focus_form(document)))
    assert exact_sum(Decimal(row["BilledCost"]) for row in focus) == total
    assert {row["InvoiceId"] for row in focus} == {document.number}
    assert exact_sum(entry.amount for entry in closing_entries(document)) == 0
    assert [entry.amount for entry in closing_entries(document) if entry.account is Account.INVOICED] == [total]

    book = workbook(document)
    rows = [row for row in sheet_rows(book, "Invoice") if row["kind"]]
    assert exact_sum(Decimal(str(row["amount"])) for row in rows) == total
    assert Decimal(str(book["Invoice"].cell(len(rows) + 2, 14).value)) == total
    assert [exact_text(Decimal(str(row["amount"])), currency) for row in rows] == [
        exact_text(line.amount, currency) for line in document.lines
    ]
    exact = exact_sum(Decimal(str(row["exact_amount"])) for row in sheet_rows(book, "Items"))
    assert exact == exact_sum(item.exact for item in document.items)

    text = pdf_text(document)
    assert f"{shown} {currency}" in text
    cells = page(document).cells
    assert f"{shown} {currency}" in cells
    for line in document.lines:
        assert grouped(line.amount, currency) in text
        assert grouped(line.amount, currency) in cells


def test_amounts_that_no_cell_holds_are_text_to_the_last_digit() -> None:
    document = make_document(Random(5), num_items=3, num_charges=0)
    [*_, largest] = sorted(document.lines, key=lambda line: line.amount)
    assert all(isinstance(row["exact_amount"], str) for row in sheet_rows(workbook(document), "Items"))
    huge = type(largest)(**{**vars(largest), "amount": Decimal("12345678901234567890.12")})
    document = type(document)(**{**vars(document), "lines": [huge]})

    rows = sheet_rows(workbook(document), "Invoice")

    assert [row["amount"] for row in rows] == ["12345678901234567890.12", "12345678901234567890.12"]


def test_names_of_others_are_neither_formulas_nor_markup() -> None:
    document = make_document(Random(7), customer=HOSTILE, names={f"key_{n}": HOSTILE for n in range(13)})

    focus = table(b"".join(focus_form(document)))
    assert {row["BillingAccountName"] for row in focus} == {"'" + HOSTILE}
    assert not any(
        cell.startswith(("=", "+", "@")) for row in focus for cell in row.values()
    )  # a minus begins numbers alone
    assert all(re.fullmatch(r"-?[0-9.]+", cell) for row in focus for cell in row.values() if cell.startswith("-"))
    items = sheet_rows(workbook(document), "Items")
    assert {row["api_key"] for row in items} == {"'" + HOSTILE}
    parsed = page(document)
    assert "script" not in parsed.tags
    assert HOSTILE in parsed.cells
    assert "Δοκιμή Пример" in pdf_text(document).replace("\n", " ")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "|cmd", "%0A"])
def test_what_begins_like_a_formula_is_marked_as_text(text: str) -> None:
    assert cell_text(text).startswith("'")
    assert cell_text("plain = text") == "plain = text"


def test_a_name_that_no_font_has_and_one_without_end_are_no_obstacle_to_a_pdf() -> None:
    text = pdf_text(make_document(Random(3), customer="\U0001f9be\U000e0001" + "W" * 5_000))
    assert "□" in text or "\U0001f9be" in text
    assert "INV-2026-000007" in text


def test_another_font_steps_in_for_what_ours_does_not_have(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = make_document(Random(3), customer="\u6771\u4eac Ltd")
    assert "□□ Ltd" in pdf_text(document)
    settings_env.setenv("RYZANSTEIN_INVOICE_FONTS", f"{tmp_path}/none.ttf:{make_font(tmp_path, chars=chr(0x6771))}")
    get_settings.cache_clear()

    text = pdf_text(document)

    assert "\u6771□ Ltd" in text
    assert "A box stands for a character" in text


def make_font(folder: Path, chars: str) -> Path:
    """A font that has these characters and nothing else, all of them squares."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    glyphs = [".notdef", *(f"g{number}" for number in range(len(chars)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(char): f"g{number}" for number, char in enumerate(chars)})
    font.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    font.setupPost()
    path = folder / "squares.ttf"
    font.save(str(path))
    return path


def test_the_same_invoice_is_the_same_pdf() -> None:
    document = make_document(Random(4))
    assert b"".join(pdf_form(document)) == b"".join(pdf_form(document))


def test_focus_has_its_mandatory_columns_and_marks_corrections_alone() -> None:
    document = make_document(Random(11), num_items=100)
    rows = table(b"".join(focus_form(document)))

    assert list(rows[0]) == list(COLUMNS)
    for column in ("BillingAccountId", "BillingCurrency", "ChargeCategory", "ChargeDescription", "ServiceName"):
        assert all(row[column] for row in rows), column
    assert {row["ChargeClass"] for row in rows if row["ChargePeriodStart"].startswith("2026-10")} == {"Correction"}
    assert {row["ChargeClass"] for row in rows if row["ChargePeriodStart"].startswith("2026-11")} == {""}
    assert {row["ChargeCategory"] for row in rows} <= {"Usage", "Purchase", "Credit", "Adjustment"}


def test_people_read_the_price_that_they_pay() -> None:
    document = make_document(Random(1), num_items=1, num_charges=0)
    line = type(document.lines[0])(
        **{
            **vars(document.lines[0]),
            "unit_price": Decimal("0.9"),
            "quantity": 3_000_000,
            "exact": Decimal("1.35"),
            "amount": Decimal("1.35"),
        }
    )
    assert cells_of(line, "USD")[1:] == ("3,000,000", "0.45", "1.35")
    assert cells_of(type(line)(**{**vars(line), "quantity": 7}), "USD")[2] == ""  # no one price makes that


def test_keys_of_one_name_have_a_bar_each() -> None:
    document = make_document(Random(2), num_items=50, names={f"key_{number}": "key" for number in range(13)})
    labels = [bar.label for bar in chart_by_key(document).bars]
    assert len(labels) == len(set(labels)) == 8
    assert labels[0].startswith("key (…")


def test_charts_show_all_usage_of_the_month() -> None:
    document = make_document(Random(2), num_items=300)
    of_month = [item for item in document.items if item.month == document.month]
    for chart in (chart_by_day(document), chart_by_model(document), chart_by_key(document)):
        assert exact_sum(bar.amount for bar in chart.bars) == exact_sum(item.exact for item in of_month)
    assert len(chart_by_day(document).bars) == 30
    assert chart_by_key(document).bars[-1].label == "all others (5)"
    marks = scale_of(chart_by_day(document), "USD")
    assert 3 <= len(marks) <= 6
    assert marks[-1].amount >= chart_by_day(document).largest > marks[-2].amount
