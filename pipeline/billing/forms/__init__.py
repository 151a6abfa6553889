"""Forms of an invoice. All of them are written from one `Document`, and add up to its total."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from pipeline.billing.documents import Document


@dataclass(frozen=True, slots=True)
class Form:
    #: Of the file that it makes, without a dot; `focus.csv` and `journal.csv` are CSV too.
    extension: str
    media_type: str


FORMS: Final = {
    "json": Form("json", "application/json"),
    "csv": Form("csv", "text/csv; charset=utf-8"),
    "xlsx": Form("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    "pdf": Form("pdf", "application/pdf"),
    "html": Form("html", "text/html; charset=utf-8"),
    "focus": Form("focus.csv", "text/csv; charset=utf-8"),
    "journal": Form("journal.csv", "text/csv; charset=utf-8"),
}


def write_form(session: Session, document: Document, form: str) -> Iterator[bytes]:
    """The invoice in one of FORMS, in pieces. The journal reads on while it is consumed. Raises KeyError."""
    if form == "journal":
        from pipeline.billing.forms.journal import journal_form

        return journal_form(session, document)
    return _writer(form)(document)


def _writer(form: str) -> Callable[[Document], Iterator[bytes]]:
    """What a form needs is imported with it: some of it is large."""
    if form == "json":
        from pipeline.billing.forms.json_form import json_form as writer
    elif form == "csv":
        from pipeline.billing.forms.tables import csv_form as writer
    elif form == "xlsx":
        from pipeline.billing.forms.xlsx_form import xlsx_form as writer
    elif form == "pdf":
        from pipeline.billing.forms.pdf_form import pdf_form as writer
    elif form == "html":
        from pipeline.billing.forms.html_form import html_form as writer
    elif form == "focus":
        from pipeline.billing.forms.focus import focus_form as writer
    else:
        raise KeyError(form)
    return writer
