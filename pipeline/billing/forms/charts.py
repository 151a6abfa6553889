"""What the charts of an invoice show: what its usage costs by model, by key and by day."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Final

from pipeline.billing.currencies import exact_text, round_to_minor
from pipeline.billing.documents import Document, Item
from pipeline.billing.pricing import ZERO, exact_sum

#: Bars of a chart; what is smaller goes into one bar together.
_MOST_BARS: Final = 8
_OTHERS: Final = "all others"
#: Digits of an amount that is less than the minor unit.
_SHORT: Final = Context(prec=2, rounding=ROUND_HALF_UP)
#: Steps of a scale, by what they are times a power of ten.
_STEPS: Final = (Decimal(1), Decimal(2), Decimal(5), Decimal(10))


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    amount: Decimal
    #: The amount as it is shown.
    shown: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    bars: Sequence[Bar]

    @property
    def largest(self) -> Decimal:
        """Of its amounts; those below zero have no length."""
        return max((bar.amount for bar in self.bars), default=ZERO)

    def length(self, bar: Bar, longest: int) -> int:
        """Of a bar, where the largest is `longest`; at least 1 for whatever costs anything."""
        return scaled(bar.amount, self.largest, longest)


def scaled(amount: Decimal, largest: Decimal, longest: int) -> int:
    """`amount` as a part of `longest`, where `largest` is all of it."""
    if amount <= 0 or largest <= 0:
        return 0
    return max(1, int(amount / largest * longest))


def chart_by_model(document: Document) -> Chart:
    return _largest_first("By model", document, lambda item: item.model)


def chart_by_key(document: Document) -> Chart:
    """Keys of one name are told apart by the end of their ids."""
    keys = {item.api_key_id for item in document.items}
    names = Counter(document.name_of(key) for key in keys)
    labels = {
        key: name if names[name] == 1 else f"{name} (…{key[-6:]})" for key in keys for name in [document.name_of(key)]
    }
    return _largest_first("By key", document, lambda item: labels[item.api_key_id])


def chart_by_day(document: Document) -> Chart:
    """Every day of the month, whether anything was used or not."""
    amounts: dict[int, list[Decimal]] = defaultdict(list)
    for item in _usage(document):
        amounts[item.day.day].append(item.exact)
    num_days = (document.month.end - timedelta(days=1)).day
    bars = [
        Bar(str(day), amount, short_text(amount, document.currency))
        for day in range(1, num_days + 1)
        for amount in [exact_sum(amounts.get(day, []))]
    ]
    return Chart("By day", bars)


def scale_of(chart: Chart, currency: str) -> list[Bar]:
    """Three to six marks from 0 on, of which the last is not below the chart's largest bar."""
    if chart.largest <= 0:
        return []
    magnitude = Decimal(1).scaleb((chart.largest / 4).adjusted())
    step = next(step * magnitude for step in _STEPS if step * magnitude * 4 >= chart.largest)
    num_steps = int(chart.largest // step) + (1 if chart.largest % step else 0)
    return [Bar("", step * number, exact_text(step * number, currency)) for number in range(num_steps + 1)]


def short_text(amount: Decimal, currency: str) -> str:
    """In the currency's minor unit; less than that by its first two digits."""
    rounded = round_to_minor(amount, currency)
    return exact_text(rounded if rounded or not amount else _SHORT.plus(amount), currency)


def _largest_first(title: str, document: Document, label_of: Callable[[Item], str]) -> Chart:
    amounts: dict[str, list[Decimal]] = defaultdict(list)
    for item in _usage(document):
        amounts[label_of(item)].append(item.exact)
    ranked = sorted(
        ((exact_sum(each), label) for label, each in amounts.items()), key=lambda pair: (pair[0].copy_negate(), pair[1])
    )
    shown = ranked if len(ranked) <= _MOST_BARS else ranked[: _MOST_BARS - 1]
    bars = [Bar(label, amount, short_text(amount, document.currency)) for amount, label in shown]
    if len(shown) < len(ranked):
        rest = exact_sum(amount for amount, _ in ranked[len(shown) :])
        bars.append(Bar(f"{_OTHERS} ({len(ranked) - len(shown)})", rest, short_text(rest, document.currency)))
    return Chart(title, bars)


def _usage(document: Document) -> Iterable[Item]:
    """Of the invoice's own month."""
    return (item for item in document.items if item.month == document.month)
