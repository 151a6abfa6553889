"""Rating again what was recorded: by another card to see or to publish the difference, by its own card to prove it.

Nothing that was written is changed: a line gets a later revision, which supersedes it, and the ledger an adjustment.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.billing.card_files import CardFile
from pipeline.billing.cards_in_effect import find_rates
from pipeline.billing.counters import Ladder, advance
from pipeline.billing.ledger import Posting
from pipeline.billing.plans import add_draft, publish
from pipeline.billing.pricing import EXACT, ZERO
from pipeline.billing.rate_cards import RateCardError
from pipeline.billing.rated_lines import Event, Line, line_of, line_text, write_lines
from pipeline.billing.rating import Rates
from pipeline.billing.rating_lock import change_prices
from pipeline.billing.reading import chunks, driver_of
from pipeline.billing.reports import Month
from pipeline.billing.rollups import correct_drift
from pipeline.tables import Meter, RateCard, ServiceClass
from pipeline.tables.usage_views import HAS_USED
from pipeline.tenancy import audit_log

#: Lines read at once, and written with one adjustment.
_CHUNK: Final = 5_000

_TENANTS: Final = text(f"""
    SELECT t.id, t.name FROM tenants t
    WHERE (CAST(:tenant_id AS text) IS NULL OR t.id = :tenant_id) AND {HAS_USED}
    ORDER BY t.name, t.id
""")  # noqa: S608 — all of it is ours

# Of a batch whose price was agreed, nothing is rated by another card.
_LINES: Final = """
    SELECT u.request_id, u.meter, u.quantity, u.tenant_id, u.model, u.service_class,
           u.rate_card_id, u.quantity_before, u.unit_price, u.amount, u.currency, u.revision, k.plan,
           b.rate_card_id IS NOT NULL
    FROM rated_usage u
    JOIN rate_cards k ON k.id = u.rate_card_id
    JOIN batches b ON b.id = u.batch_id
    WHERE u.tenant_id = %(tenant_id)s AND u.occurred_at >= %(month_start)s AND u.occurred_at < %(month_end)s
      AND (NOT %(stepped)s OR NOT EXISTS (
          SELECT FROM rates r WHERE r.rate_card_id = u.rate_card_id AND r.model = u.model AND r.meter = u.meter
            AND r.pricing = 'flat' AND r.minimum = 0
      ))
    ORDER BY u.occurred_at, u.request_id, u.meter
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """What rating again comes to for a tenant and a model."""

    tenant_id: str
    tenant: str
    model: str
    currency: str
    num_lines: int
    #: Lines that are not what they were, amounts aside or not.
    num_changed: int
    before: Decimal
    after: Decimal

    @property
    def change(self) -> Decimal:
        return EXACT.subtract(self.after, self.before)


@dataclass(frozen=True, slots=True)
class Rerating:
    """What rating a month again comes to."""

    month: Month
    differences: Sequence[Difference]
    #: SHA-256 of all lines as they were, and as they are when rated again.
    sha256_before: str
    sha256_after: str
    #: The card that was published for it.
    card: RateCard | None = None


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The latest line of an event."""

    line: Line
    service_class: ServiceClass
    plan: str
    is_agreed: bool


@dataclass(slots=True)
class _Sum:
    num_lines: int = 0
    num_changed: int = 0
    before: Decimal = ZERO
    after: Decimal = ZERO


@dataclass(slots=True)
class _Totals:
    names: Mapping[str, str]
    sums: dict[tuple[str, str, str], _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    digest_before: Any = field(default_factory=hashlib.sha256)
    digest_after: Any = field(default_factory=hashlib.sha256)

    def add(self, before: Line, after: Line) -> bool:
        """Count a line; whether it is another than it was."""
        one, other = line_text(before), line_text(after)
        self.digest_before.update(one.encode())
        self.digest_after.update(other.encode())
        total = self.sums[before.event.tenant_id, before.event.model, before.currency]
        total.num_lines += 1
        total.num_changed += one != other
        total.before = EXACT.add(total.before, before.amount)
        total.after = EXACT.add(total.after, after.amount)
        return one != other

    def result(self, month: Month, card: RateCard | None) -> Rerating:
        differences = [
            Difference(tenant_id, self.names[tenant_id], model, currency, s.num_lines, s.num_changed, s.before, s.after)
            for (tenant_id, model, currency), s in self.sums.items()
        ]
        differences.sort(key=lambda one: (one.tenant, one.model, one.currency))
        return Rerating(month, differences, self.digest_before.hexdigest(), self.digest_after.hexdigest(), card)


def rate_by_own_cards(
    session: Session, month: Month, *, tenant_id: str | None = None, only_stepped: bool = False
) -> Rerating:
    """Rate every line of a month by the card that it names: each must come out as it is, byte for byte.

    With `only_stepped`, lines whose price depends on what was used before; the others a query can multiply.
    """
    totals = _Totals(_tenants(session, month, tenant_id))
    rates_of = _Cards(session)
    for owner in totals.names:
        for recorded in _recorded(session, month, owner, only_stepped=only_stepped):
            line = recorded.line
            rates = rates_of(line.event, line.rate_card_id, recorded.service_class)
            totals.add(line, line if rates is None else line_of(line.event, rates, line.quantity_before))
    return totals.result(month, None)


def rate_by_card(
    session: Session, month: Month, card_file: CardFile, *, tenant_id: str | None = None, publishes: bool = False
) -> Rerating:
    """Rate lines of the card's plan and models by this card; with `publishes`, write them as later revisions.

    Tiers count from the first event of the month. Batches whose price was agreed keep it. The card that is published
    rates nothing by itself unless it has an `effective_from`. Raises RateCardError for another currency than what it
    would take the place of.
    """
    card: RateCard | None = None
    if publishes:
        change_prices(session)
        card = add_draft(session, card_file)
    totals = _Totals(_tenants(session, month, tenant_id))
    rates_of = _rates_of_file(card_file, card.id if card else 0, card.version if card else 0)
    used: dict[Ladder, int] = defaultdict(int)
    for owner in totals.names:
        for chunk in chunks(_recorded(session, month, owner), _CHUNK):
            lines = [
                line
                for recorded in chunk
                if recorded.plan == card_file.plan and not recorded.is_agreed
                if (rates := rates_of(recorded.line.event.model, recorded.service_class)) is not None
                if (line := _again(recorded.line, rates, used)) is not None and totals.add(recorded.line, line)
            ]
            if publishes:
                _write(session, lines, month)
    if card is not None:
        # What others wait for comes last: a month takes its time.
        with driver_of(session).cursor() as cursor:
            advance(cursor, used, month.start.date())
        for owner in totals.names:
            correct_drift(session.connection(), owner, month.start, month.end)
        card = publish(session, card, is_never_in_effect=True)
        details = {"rate_card": card.id, "plan": card.plan, "version": card.version}
        audit_log.record(session, act="month.rerate", object=str(month), details=details)
    return totals.result(month, card)


def _again(line: Line, rates: Rates, used: dict[Ladder, int]) -> Line | None:
    event = line.event
    if rates.currency != line.currency:
        raise RateCardError(
            f"The card is in {rates.currency}, and request {event.request_id} was rated in {line.currency}: a month is "
            "rated again in the currency that it was rated in."
        )
    before = 0
    if rates.needs_quantity_before(event.meter):
        ladder = Ladder(event.tenant_id, rates.rate_card_id, event.model, event.meter, rates.service_class)
        before = used[ladder]
        used[ladder] += event.quantity
    return line_of(event, rates, before)._replace(revision=line.revision + 1, amount_before=line.amount)


def _write(session: Session, lines: Sequence[Line], month: Month) -> None:
    with driver_of(session).cursor() as cursor:
        write_lines(cursor, lines, source="rated again", kind=Posting.ADJUSTMENT, period=month.start.date())


def _rates_of_file(card_file: CardFile, card_id: int, version: int) -> Callable[[str, ServiceClass], Rates | None]:
    rates = card_file.rates()
    multipliers = {
        ServiceClass.STANDARD: Decimal(1),
        ServiceClass.PRIORITY: card_file.multipliers.priority,
        ServiceClass.FLEX: card_file.multipliers.flex,
    }
    found = {
        (model, service_class): Rates(
            card_id,
            card_file.plan,
            version,
            card_file.currency,
            service_class,
            by_meter,
            card_file.batch_discount,
            multiplier,
        )
        for model, by_meter in rates.items()
        for service_class, multiplier in multipliers.items()
    }
    return lambda model, service_class: found.get((model, service_class))


class _Cards:
    """Published cards, each read once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: dict[tuple[int, str, ServiceClass], Rates | None] = {}

    def __call__(self, event: Event, card_id: int, service_class: ServiceClass) -> Rates | None:
        key = card_id, event.model, service_class
        if key not in self._found:
            self._found[key] = find_rates(
                self._session,
                tenant_id=event.tenant_id,
                model=event.model,
                service_class=service_class,
                rate_card_id=card_id,
            )
        return self._found[key]


def _tenants(session: Session, month: Month, tenant_id: str | None) -> dict[str, str]:
    values = {"tenant_id": tenant_id, "begin": month.start, "end": month.end}
    return {row.id: row.name for row in session.execute(_TENANTS, values)}


def _recorded(session: Session, month: Month, tenant_id: str, *, only_stepped: bool = False) -> Iterator[_Recorded]:
    """In the order in which they were used; read in parts, so that a month of any size is."""
    values = {
        "tenant_id": tenant_id,
        "month_start": month.start,
        "month_end": month.end,
        "stepped": only_stepped,
    }
    with driver_of(session).cursor("lines_of_month") as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(_LINES, values)
        for row in cursor:
            request_id, meter, quantity, owner, model, service_class, *rest = row
            card_id, quantity_before, unit_price, amount, currency, revision, plan, is_agreed = rest
            event = Event(request_id, Meter(meter), quantity, owner, model)
            line = Line(event, card_id, quantity_before, unit_price, amount, currency, revision)
            yield _Recorded(line, ServiceClass(service_class), plan, is_agreed)
