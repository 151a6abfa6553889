"""The one data set of an invoice: every form of it is written from a `Document`, and adds up to its total.

Amounts are exact until a line is made of them. A line is rounded once, half away from zero, to the currency's minor
unit; the total is the exact sum, rounded once as well; and what lies between them is a line of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from decimal import Decimal, Inexact
from typing import Any, Final

from pipeline.billing.currencies import round_to_minor
from pipeline.billing.pricing import EXACT, exact_sum
from pipeline.billing.reports import Month
from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter
from pipeline.tables.invoices import InvoiceStatus, LineKind

_MILLION: Final = Decimal(1_000_000)


@dataclass(frozen=True, kw_only=True)
class Party:
    """Who gives or gets an invoice, as it was when the invoice was made."""

    name: str
    #: Lines, one below the other.
    address: str = ""
    tax_id: str = ""
    #: The customer's own, such as an order's number; or the supplier's note, such as how to pay.
    reference: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Item:
    """Events of one meter on one day (UTC), of one key and at one price. `exact` is what they cost."""

    day: date
    project_id: str | None
    api_key_id: str
    model: str
    meter: Meter
    service_class: ServiceClass
    rate_card_id: int
    #: Of 1,000,000 tokens; None where one price does not hold for all of them.
    unit_price: Decimal | None
    num_events: int
    quantity: int
    exact: Decimal
    #: Of the line that it is part of, from 1.
    position: int = 0

    @property
    def month(self) -> Month:
        return Month(self.day.year, self.day.month)


@dataclass(frozen=True, kw_only=True)
class Line:
    kind: LineKind
    description: str
    #: In which what is billed was used.
    month: Month
    exact: Decimal
    #: `exact` in the currency's minor unit; of the line of rounding, what the rounding of the others adds up to.
    amount: Decimal
    #: From 1.
    position: int = 0
    model: str | None = None
    meter: Meter | None = None
    service_class: ServiceClass | None = None
    rate_card_id: int | None = None
    unit_price: Decimal | None = None
    quantity: int | None = None
    credit_note_id: str | None = None

    @property
    def net_price(self) -> Decimal | None:
        """What 1,000,000 tokens of it cost after discount and service class, where one price holds for all of them."""
        if self.unit_price is None or not self.quantity:
            return None
        try:
            return EXACT.divide(EXACT.multiply(self.exact, _MILLION), Decimal(self.quantity))
        except Inexact:
            return None


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What is billed or given back beside usage."""

    kind: LineKind
    description: str
    month: Month
    exact: Decimal
    credit_note_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """An invoice, issued or as it would be now."""

    id: str
    number: str | None
    status: InvoiceStatus
    tenant_id: str
    currency: str
    month: Month
    customer: Party
    supplier: Party
    created_at: datetime
    issued_at: datetime | None
    voided_at: datetime | None
    void_reason: str | None
    #: With the line of rounding, which is the last.
    lines: Sequence[Line]
    #: By line, then day, key and project.
    items: Sequence[Item]
    #: Hex of the root of the Merkle tree of the month's receipts, and how many they are; None until it is issued.
    receipts_root: str | None
    num_receipts: int | None
    #: What keys and projects are called.
    names: dict[str, str]

    @property
    def exact(self) -> Decimal:
        """Before any rounding."""
        return exact_sum(line.exact for line in self.lines)

    @property
    def total(self) -> Decimal:
        """To be paid: the exact sum, rounded once, which is also the sum of the lines."""
        return exact_sum(line.amount for line in self.lines)

    @property
    def rounding(self) -> Decimal:
        return exact_sum(line.amount for line in self.lines if line.kind is LineKind.ROUNDING)

    def name_of(self, subject: str | None) -> str:
        """What a key or a project is called; its id where it has no name."""
        return "" if subject is None else self.names.get(subject, subject)


_METER_NAMES = {
    Meter.INPUT_UNCACHED: "input tokens",
    Meter.INPUT_CACHED: "cached input tokens",
    Meter.OUTPUT: "output tokens",
}


def make_lines(
    items: Iterable[Item], charges: Iterable[Charge], month: Month, currency: str
) -> tuple[list[Line], list[Item]]:
    """The lines of an invoice of `month`, that of rounding last, and the items with the positions of their lines.

    Items of earlier months are corrections. Every amount is of one currency.
    """
    by_line: dict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        by_line[_line_key(item, month)].append(item)
    lines: list[Line] = []
    placed: list[Item] = []
    for _, of_line in sorted(by_line.items()):
        position = len(lines) + 1
        lines.append(_usage_line(of_line, month, currency, position))
        placed += [replace(item, position=position) for item in sorted(of_line, key=_item_key)]
    for charge in charges:
        lines.append(
            Line(
                kind=charge.kind,
                description=charge.description,
                month=charge.month,
                exact=charge.exact,
                amount=round_to_minor(charge.exact, currency),
                position=len(lines) + 1,
                credit_note_id=charge.credit_note_id,
            )
        )
    return [*lines, _rounding_line(lines, month, currency)], placed


def _line_key(item: Item, month: Month) -> tuple[Any, ...]:
    is_correction = item.month != month
    return (
        is_correction,
        str(item.month),
        item.model,
        list(Meter).index(item.meter),
        list(ServiceClass).index(item.service_class),
        item.rate_card_id,
        item.unit_price is None,
        item.unit_price or Decimal(0),
    )


def _item_key(item: Item) -> tuple[Any, ...]:
    return item.day, item.api_key_id, item.project_id or ""


def _usage_line(items: Sequence[Item], month: Month, currency: str, position: int) -> Line:
    first = items[0]
    exact = exact_sum(item.exact for item in items)
    kind = LineKind.USAGE if first.month == month else LineKind.CORRECTION
    description = f"{first.model}: {_METER_NAMES[first.meter]}"
    if first.service_class is not ServiceClass.STANDARD:
        description += f", {first.service_class}"
    if kind is LineKind.CORRECTION:
        description = f"Correction of {first.month}: {description}"
    return Line(
        kind=kind,
        description=description,
        month=first.month,
        exact=exact,
        amount=round_to_minor(exact, currency),
        position=position,
        model=first.model,
        meter=first.meter,
        service_class=first.service_class,
        rate_card_id=first.rate_card_id,
        unit_price=first.unit_price,
        quantity=sum(item.quantity for item in items),
    )


def _rounding_line(lines: Sequence[Line], month: Month, currency: str) -> Line:
    total = round_to_minor(exact_sum(line.exact for line in lines), currency)
    return Line(
        kind=LineKind.ROUNDING,
        description="Rounding",
        month=month,
        exact=Decimal(0),
        amount=exact_sum([total, *(line.amount.copy_negate() for line in lines)]),
        position=len(lines) + 1,
    )
