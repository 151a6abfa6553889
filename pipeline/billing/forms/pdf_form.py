"""An invoice as PDF, drawn by fpdf2. All lengths are points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpdf import FPDF
from fpdf.enums import TableBordersLayout, XPos, YPos
from fpdf.fonts import FontFace

from pipeline.billing.documents import Document, Party
from pipeline.billing.forms.charts import Chart, chart_by_day, chart_by_key, chart_by_model, scale_of, scaled
from pipeline.billing.forms.fonts import FAMILY, set_fonts, shown_text
from pipeline.billing.forms.wording import cells_of, facts_of, grouped, notes_of, title_of
from pipeline.tables.invoices import InvoiceStatus

_MARGIN: Final = 48
_WIDTH: Final = 595 - 2 * _MARGIN
_GAP: Final = 16
_INK: Final = (28, 39, 51)
_SOFT: Final = (93, 107, 122)
_RULE: Final = (221, 227, 233)
_ACCENT: Final = (23, 97, 122)
_ALERT: Final = (170, 51, 51)
#: Characters of a text of others, at most; a name need not fill pages.
_MOST_CHARS: Final = 400
_PLOT_HEIGHT: Final = 120
_BAR_STEP: Final = 27
_UNSEEN: Final = "A box stands for a character that this document has no font for; other forms of this invoice show it."


class _Paper(FPDF):
    """Pages with a footer; remembers which characters it can't show."""

    def __init__(self, document: Document, texts: list[str]) -> None:
        super().__init__(unit="pt", format="A4")
        self.set_margin(_MARGIN)
        self.c_margin = 0
        self.set_auto_page_break(True, margin=_MARGIN + 12)
        self.missing = set_fonts(self, texts)
        self.set_text_shaping(True)
        self.footing = self.fitting(f"{title_of(document)} {document.number or document.id}")
        self.set_title(self.footing)
        self.set_creator("Ryzanstein")
        self.set_creation_date(document.issued_at or document.created_at)  # the same invoice is the same file

    def footer(self) -> None:
        self.set_y(-_MARGIN)
        self.style(7, _SOFT)
        self.cell(_WIDTH // 2, 10, self.footing)
        self.cell(_WIDTH // 2, 10, f"{self.page_no()} / {{nb}}", align="R")

    def style(self, size: int, color: tuple[int, int, int] = _INK, *, bold: bool = False) -> None:
        self.set_font(FAMILY, "B" if bold else "", size)
        self.set_text_color(*color)

    def fitting(self, text: str) -> str:
        shown = shown_text(text, self.missing)
        return shown if len(shown) <= _MOST_CHARS else shown[: _MOST_CHARS - 1] + "…"

    def block(self, left: int, width: int, text: str, line_height: int, align: str = "L") -> None:
        """Text of any length, in lines of this width; goes on below it."""
        if text:
            self.set_x(left)
            self.multi_cell(width, line_height, self.fitting(text), align=align, new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def line_of(self, text: str, width: int) -> str:
        """As much of `text` as fits, in the present font."""
        shown = self.fitting(text)
        while shown and self.get_string_width(shown) > width:
            shown = shown[:-2] + "…" if len(shown) > 1 else ""
        return shown


def pdf_form(document: Document) -> Iterator[bytes]:
    """A4; the pages of charts follow those of lines."""
    paper = _Paper(document, _texts(document))
    paper.add_page()
    _head(paper, document)
    _lines(paper, document)
    _charts(paper, document)
    _notes(paper, document)
    yield bytes(paper.output())


def _texts(document: Document) -> list[str]:
    """All text that comes from outside."""
    texts = [*document.names.values(), document.void_reason or "", *(line.description for line in document.lines)]
    for party in (document.customer, document.supplier):
        texts += party.record().values()
    return [text[:_MOST_CHARS] for text in texts]


def _head(paper: _Paper, document: Document) -> None:
    top = paper.get_y()
    paper.style(20, _ACCENT, bold=True)
    paper.block(_MARGIN + 240, _WIDTH - 240, title_of(document), 24, "R")
    if document.status is not InvoiceStatus.FINAL:
        paper.style(9, _ALERT, bold=True)
        paper.block(_MARGIN + 240, _WIDTH - 240, document.status.value.upper(), 14, "R")
    right_end = paper.get_y()
    paper.set_y(top)
    _party(paper, document.supplier, _MARGIN, 230)
    if document.supplier.tax_id:
        paper.style(8, _SOFT)
        paper.block(_MARGIN, 230, f"Tax number {document.supplier.tax_id}", 11)
    paper.set_y(max(paper.get_y(), right_end) + 8)
    paper.set_draw_color(*_ACCENT)
    paper.set_line_width(2)
    paper.line(_MARGIN, paper.get_y(), _MARGIN + _WIDTH, paper.get_y())
    top = paper.get_y() + _GAP
    paper.set_y(top)
    paper.style(8, _SOFT)
    paper.block(_MARGIN, 230, "For", 12)
    _party(paper, document.customer, _MARGIN, 230)
    left_end = paper.get_y()
    paper.set_y(top)
    for name, value in facts_of(document):
        at = paper.get_y()
        paper.style(8, _SOFT)
        paper.block(_MARGIN + 260, 85, name, 13)
        name_end = paper.get_y()
        paper.set_y(at)
        paper.style(8)
        paper.block(_MARGIN + 345, _WIDTH - 345, value, 13)
        paper.set_y(max(name_end, paper.get_y()))
    paper.set_y(max(left_end, paper.get_y()) + _GAP)


def _party(paper: _Paper, party: Party, left: int, width: int) -> None:
    paper.style(11, bold=True)
    paper.block(left, width, party.name, 15)
    paper.style(9, _SOFT)
    paper.block(left, width, party.address, 12)


def _lines(paper: _Paper, document: Document) -> None:
    paper.style(8)
    paper.set_draw_color(*_RULE)
    paper.set_line_width(1)
    headings = FontFace(emphasis="BOLD", color=_SOFT)
    with paper.table(
        width=_WIDTH,
        col_widths=(227, 90, 75, 107),
        text_align=("LEFT", "RIGHT", "RIGHT", "RIGHT"),
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        headings_style=headings,
        line_height=12,
        padding=(3, 4),
    ) as table:
        table.row(("Description", "Quantity", "Price of 1M", document.currency))
        for line in document.lines:
            table.row([paper.fitting(cell) for cell in cells_of(line, document.currency)])
    paper.set_draw_color(*_INK)
    paper.line(_MARGIN, paper.get_y() + 2, _MARGIN + _WIDTH, paper.get_y() + 2)
    paper.set_y(paper.get_y() + 8)
    paper.style(12, bold=True)
    total = f"{grouped(document.total, document.currency)} {document.currency}"
    paper.cell(_WIDTH // 3, 18, "Total", new_x=XPos.LEFT)
    paper.set_x(_MARGIN)
    paper.cell(_WIDTH, 18, total, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    paper.set_y(paper.get_y() + _GAP)


def _charts(paper: _Paper, document: Document) -> None:
    days = chart_by_day(document)
    if days.largest <= 0:
        return
    _days(paper, days, document.currency)
    for chart in (chart_by_model(document), chart_by_key(document)):
        _bars(paper, chart, document.currency)


def _heading(paper: _Paper, text: str, height: int) -> None:
    """On the page on which what follows has room."""
    if paper.will_page_break(height + 24):
        paper.add_page()
    paper.style(10, _ACCENT, bold=True)
    paper.cell(_WIDTH, 20, text, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _days(paper: _Paper, chart: Chart, currency: str) -> None:
    _heading(paper, f"Usage by day, in {currency}", _PLOT_HEIGHT + 2 * _GAP)
    marks = scale_of(chart, currency)
    bottom = int(paper.get_y()) + _PLOT_HEIGHT + 8
    left = _MARGIN + 56
    width = _WIDTH - 56
    paper.set_draw_color(*_RULE)
    paper.set_line_width(1)
    paper.style(7, _SOFT)
    for mark in marks:
        at = bottom - scaled(mark.amount, marks[-1].amount, _PLOT_HEIGHT)
        paper.line(left, at, left + width, at)
        paper.set_xy(_MARGIN, at - 5)
        paper.cell(50, 10, mark.shown, align="R")
    slot = width // len(chart.bars)
    paper.set_fill_color(*_ACCENT)
    for index, bar in enumerate(chart.bars):
        height = scaled(bar.amount, marks[-1].amount, _PLOT_HEIGHT)
        at = left + index * slot
        if height:
            paper.rect(at + 2, bottom - height, slot - 4, height, style="F")
        if index == 0 or (index + 1) % 5 == 0:
            paper.set_xy(at - 4, bottom + 3)
            paper.cell(slot + 8, 10, bar.label, align="C")
    paper.set_xy(_MARGIN, bottom + 2 * _GAP)


def _bars(paper: _Paper, chart: Chart, currency: str) -> None:
    _heading(paper, f"{chart.title}, in {currency}", len(chart.bars) * _BAR_STEP)
    for bar in chart.bars:
        at = paper.get_y()
        paper.style(8)
        paper.cell(_WIDTH - 120, 12, paper.line_of(bar.label, _WIDTH - 130))
        paper.set_x(_MARGIN)
        paper.cell(_WIDTH, 12, bar.shown, align="R")
        paper.set_fill_color(*_ACCENT)
        if length := chart.length(bar, _WIDTH):
            paper.rect(_MARGIN, at + 13, length, 7, style="F")
        paper.set_xy(_MARGIN, at + _BAR_STEP)
    paper.set_y(paper.get_y() + _GAP // 2)


def _notes(paper: _Paper, document: Document) -> None:
    notes = [*notes_of(document), *([_UNSEEN] if paper.missing else [])]
    paper.style(7, _SOFT)
    if paper.will_page_break(11 * 3 * len(notes)):
        paper.add_page()
        paper.style(7, _SOFT)
    for note in notes:
        paper.block(_MARGIN, _WIDTH, note, 10)
        paper.set_y(paper.get_y() + 4)
