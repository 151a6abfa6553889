"""Rating of what nothing priced when it was recorded, once somebody has published a price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy.orm import Session

from pipeline.billing import holds
from pipeline.billing.cards_in_effect import find_rates
from pipeline.billing.pricing import EXACT
from pipeline.billing.rated_lines import Event, make_lines, write_lines
from pipeline.billing.rating import Rates
from pipeline.billing.rating_lock import change_prices
from pipeline.billing.reading import chunks, driver_of
from pipeline.billing.reports import Month
from pipeline.billing.rollups import correct_drift
from pipeline.tables import Meter, ServiceClass

_CHUNK: Final = 1_000

UNRATED: Final = """
    FROM rated_usage u WHERE u.revision IS NULL
"""
_EVENTS: Final = f"""
    SELECT u.request_id, u.meter, u.quantity, u.tenant_id, u.model, u.service_class, u.occurred_at, u.batch_id,
           (SELECT b.rate_card_id FROM batches b WHERE b.id = u.batch_id)
    {UNRATED}
    ORDER BY u.tenant_id, u.occurred_at, u.request_id, u.meter
"""  # noqa: S608 — all of it is ours


@dataclass(frozen=True, slots=True)
class LateRating:
    num_rated: int
    #: By model, usage events that nothing prices yet.
    left: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Unrated:
    event: Event
    service_class: ServiceClass
    occurred_at: datetime
    batch_id: str
    rate_card_id: int | None

    @property
    def month(self) -> Month:
        return Month.of(self.occurred_at)


def rate_unrated(session: Session) -> LateRating:
    """Rate every usage event that has no price, by the card of its moment, or else by the one that holds now."""
    change_prices(session)
    find = _Finder(session)
    num_rated = 0
    left: dict[str, int] = defaultdict(int)
    months: set[tuple[str, Month]] = set()
    costs: dict[holds.LateUsage, Decimal] = defaultdict(Decimal)
    for chunk in chunks(_unrated(session), _CHUNK):
        priced: dict[date, list[tuple[_Unrated, Rates]]] = defaultdict(list)
        for unrated in chunk:
            rates = find(unrated)
            if rates is None:
                left[unrated.event.model] += 1
                continue
            priced[unrated.month.start.date()].append((unrated, rates))
            months.add((unrated.event.tenant_id, unrated.month))
            num_rated += 1
        with driver_of(session).cursor() as cursor:
            holds.announce(cursor, {unrated.event.tenant_id for rated in priced.values() for unrated, _ in rated})
            for month, rated in priced.items():
                lines = make_lines(cursor, [(unrated.event, rates) for unrated, rates in rated], month)
                write_lines(cursor, lines, source="rated later", period=month)
                for (unrated, _), line in zip(rated, lines, strict=True):
                    usage = holds.LateUsage(unrated.batch_id, month, line.currency)
                    costs[usage] = EXACT.add(costs[usage], line.amount)
    # In the order in which recording locks: budgets, and then roll-ups.
    with driver_of(session).cursor() as cursor:
        holds.spend(cursor, costs)
    for tenant_id, of in sorted(months, key=str):
        correct_drift(session.connection(), tenant_id, of.start, of.end)
    return LateRating(num_rated, dict(left))


class _Finder:
    """Rates of what was recorded together are looked up once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._key: tuple[str, datetime] | None = None
        self._rates: Rates | None = None

    def __call__(self, unrated: _Unrated) -> Rates | None:
        key = unrated.batch_id, unrated.occurred_at
        if key != self._key:
            self._key = key
            self._rates = self._find(unrated, unrated.occurred_at) or self._find(unrated, None)
        return self._rates

    def _find(self, unrated: _Unrated, at: datetime | None) -> Rates | None:
        return find_rates(
            self._session,
            tenant_id=unrated.event.tenant_id,
            model=unrated.event.model,
            service_class=unrated.service_class,
            rate_card_id=unrated.rate_card_id,
            at=at,
        )


def _unrated(session: Session) -> Iterator[_Unrated]:
    with driver_of(session).cursor("unrated_events") as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(_EVENTS)
        for request_id, meter, quantity, tenant_id, model, service_class, occurred_at, batch_id, card_id in cursor:
            event = Event(request_id, Meter(meter), quantity, tenant_id, model)
            yield _Unrated(event, ServiceClass(service_class), occurred_at, batch_id, card_id)
