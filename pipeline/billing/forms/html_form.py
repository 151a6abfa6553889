"""An invoice as one HTML file: nothing is loaded from elsewhere, and charts are SVG in the page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipeline.billing.documents import Document
from pipeline.billing.forms.charts import Chart, chart_by_day, chart_by_key, chart_by_model, scale_of, scaled
from pipeline.billing.forms.wording import cells_of, facts_of, grouped, notes_of, title_of
from pipeline.tables.invoices import InvoiceStatus

#: In the units of the SVG: the plot of days, and the bars of the others.
_PLOT_LEFT: Final = 96
_PLOT_WIDTH: Final = 704
_PLOT_TOP: Final = 10
_PLOT_HEIGHT: Final = 175
_BAR_WIDTH: Final = 400
_BAR_STEP: Final = 34
#: Characters of a label that fit beside its amount.
_LABEL_CHARS: Final = 40


def html_form(document: Document) -> Iterator[bytes]:
    """UTF-8. Whatever comes from outside is escaped."""
    days = chart_by_day(document)
    yield (
        _template()
        .render(
            document=document,
            title=title_of(document),
            stamp="" if document.status is InvoiceStatus.FINAL else document.status.value,
            facts=facts_of(document),
            lines=[cells_of(line, document.currency) for line in document.lines],
            total=f"{grouped(document.total, document.currency)} {document.currency}",
            has_usage=days.largest > 0,
            plot_left=_PLOT_LEFT,
            day_marks=_day_marks(days, document.currency),
            day_bars=_day_bars(days, document.currency),
            charts=[_bars(chart_by_model(document)), _bars(chart_by_key(document))],
            notes=notes_of(document),
        )
        .encode(errors="replace")
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipeline.billing.forms", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("invoice.html.jinja")


def _day_marks(chart: Chart, currency: str) -> list[dict[str, Any]]:
    marks = scale_of(chart, currency)
    return [
        {"y": _PLOT_TOP + _PLOT_HEIGHT - scaled(mark.amount, marks[-1].amount, _PLOT_HEIGHT), "shown": mark.shown}
        for mark in marks
    ]


def _day_bars(chart: Chart, currency: str) -> list[dict[str, Any]]:
    marks = scale_of(chart, currency)
    if not marks:
        return []
    slot = _PLOT_WIDTH // len(chart.bars)
    bars = []
    for index, bar in enumerate(chart.bars):
        height = scaled(bar.amount, marks[-1].amount, _PLOT_HEIGHT)
        left = _PLOT_LEFT + index * slot
        bars.append(
            {
                "day": index + 1,
                "x": left + 4,
                "y": _PLOT_TOP + _PLOT_HEIGHT - height,
                "width": slot - 8,
                "height": height,
                "middle": left + slot // 2,
                "shown": bar.shown,
                "is_labelled": index == 0 or (index + 1) % 5 == 0,
            }
        )
    return bars


def _bars(chart: Chart) -> dict[str, Any]:
    return {
        "title": chart.title,
        "height": max(_BAR_STEP, len(chart.bars) * _BAR_STEP),
        "bars": [
            {
                "label": clipped(bar.label, _LABEL_CHARS),
                "full": bar.label,
                "shown": bar.shown,
                "width": chart.length(bar, _BAR_WIDTH),
                "y": index * _BAR_STEP + 18,
            }
            for index, bar in enumerate(chart.bars)
        ],
    }


def clipped(text: str, num_chars: int) -> str:
    """At most so many characters, the last an ellipsis where there were more."""
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"
