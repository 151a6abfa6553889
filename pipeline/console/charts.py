"""Options of ApexCharts for what pages show over time. Money stays text until the browser draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

#: Told apart by people who see no red or no green, on light and on dark.
_COLORS: Final = ("#4477aa", "#ee7733", "#009988", "#aa3377", "#ccaa22", "#66aacc")


def stacked_columns(starts: Sequence[datetime], series: Mapping[str, Sequence[int | str]], unit: str) -> dict[str, Any]:
    """A column per bucket. `series` has, by name, a value for each of `starts`, or a list of its own."""
    shape = "%m-%d %H:%M" if len(starts) > 1 and starts[1] - starts[0] < timedelta(days=1) else "%Y-%m-%d"
    return {
        "chart": {
            "type": "bar",
            "stacked": True,
            "height": 260,
            "accessibility": {"description": f"{unit} by time. The table that follows says the same."},
        },
        "colors": list(_COLORS),
        "series": [{"name": name, "data": list(values)} for name, values in series.items()],
        # As categories: what `datetime` draws is in the zone of the browser, and buckets are in UTC.
        "xaxis": {
            "categories": [at.strftime(shape) for at in starts],
            "tickAmount": 10,
            "labels": {"rotate": 0, "hideOverlappingLabels": True},
        },
        "yaxis": {"title": {"text": unit}},
        "dataLabels": {"enabled": False},
        "legend": {"position": "top"},
        "stroke": {"width": 0},
        "grid": {"borderColor": "#80808050"},
    }
