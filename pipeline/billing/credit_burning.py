"""In what order credit is spent: by priority, then by earlier expiry, then by earlier grant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from pipeline.billing.pricing import EXACT, ZERO


@dataclass(frozen=True, slots=True)
class Grant:
    """Credit that pays for usage from its grant to its expiry."""

    id: str
    amount: Decimal
    #: Lower is spent first.
    priority: int
    granted_at: datetime
    #: None: never.
    expires_at: datetime | None

    @property
    def burn_order(self) -> tuple[int, bool, datetime, datetime, str]:
        expiry = self.expires_at or self.granted_at
        return self.priority, self.expires_at is None, expiry, self.granted_at, self.id

    def holds(self, moment: datetime) -> bool:
        return self.granted_at <= moment and (self.expires_at is None or moment < self.expires_at)


#: By grant and first day of the month of the usage, what it pays.
Spent = dict[tuple[str, date], Decimal]


def boundaries(grants: Sequence[Grant], until: datetime) -> list[datetime]:
    """Moments from the first grant to `until` between which the same grants hold, in one month; the last is `until`."""
    if not grants:
        return []
    moments = {until}
    for grant in grants:
        moments |= {moment for moment in (grant.granted_at, grant.expires_at) if moment is not None and moment < until}
    month = min(moments).astimezone(UTC)
    while (month := _next_month(month)) < until:
        moments.add(month)
    return sorted(moments)


def burn(grants: Sequence[Grant], used: Mapping[datetime, Decimal]) -> Spent:
    """What each grant pays of usage, which is given by the beginnings of the intervals between `boundaries`.

    Usage that is given back is taken off what is used after it. What no grant pays is not in the answer: it is owed.
    """
    left = {grant.id: grant.amount for grant in grants}
    spent: Spent = defaultdict(lambda: ZERO)
    owed = ZERO
    for begin, amount in sorted(used.items()):
        owed = EXACT.add(min(owed, ZERO), amount)
        for grant in sorted((grant for grant in grants if grant.holds(begin)), key=lambda grant: grant.burn_order):
            paid = min(owed, left[grant.id])
            if paid <= 0:
                continue
            left[grant.id] = EXACT.subtract(left[grant.id], paid)
            owed = EXACT.subtract(owed, paid)
            key = grant.id, begin.astimezone(UTC).date().replace(day=1)
            spent[key] = EXACT.add(spent[key], paid)
    return dict(spent)


def _next_month(moment: datetime) -> datetime:
    return datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
