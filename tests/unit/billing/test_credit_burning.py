from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.credit_burning import Grant, boundaries, burn

START = datetime(2026, 11, 10, tzinfo=UTC)
DAY = timedelta(days=1)
NOVEMBER, DECEMBER = date(2026, 11, 1), date(2026, 12, 1)


def grant(name: str, amount: int, *, priority: int = 1, day: int = 0, days: int | None = None) -> Grant:
    granted_at = START + day * DAY
    return Grant(name, Decimal(amount), priority, granted_at, None if days is None else granted_at + days * DAY)


def test_credit_is_spent_by_priority_then_expiry_then_age() -> None:
    grants = [
        grant("later", 10, day=1),
        grant("never expires", 10),
        grant("expires", 10, days=30),
        grant("expires first", 10, days=20),
        grant("urgent", 10, priority=0),
    ]
    order = [one.id for one in sorted(grants, key=lambda one: one.burn_order)]
    assert order == ["urgent", "expires first", "expires", "never expires", "later"]
    spent = burn(grants, {START + 2 * DAY: Decimal(25)})
    assert spent == {("urgent", NOVEMBER): 10, ("expires first", NOVEMBER): 10, ("expires", NOVEMBER): 5}


def test_credit_pays_from_its_grant_to_its_expiry() -> None:
    one = grant("one", 10, day=1, days=2)
    assert burn([one], {START: Decimal(4)}) == {}
    assert burn([one], {START + DAY: Decimal(4)}) == {("one", NOVEMBER): 4}
    assert burn([one], {START + 3 * DAY: Decimal(4)}) == {}


def test_what_is_given_back_is_taken_off_what_is_used_after() -> None:
    used = {START: Decimal(4), START + DAY: Decimal(-3), START + 2 * DAY: Decimal(5)}
    assert burn([grant("one", 10)], used) == {("one", NOVEMBER): 6}


def test_boundaries_are_grants_expiries_and_months() -> None:
    until = datetime(2027, 1, 2, tzinfo=UTC)
    assert boundaries([grant("one", 10, days=3), grant("two", 10, day=1)], until) == [
        START,
        START + DAY,
        START + 3 * DAY,
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
        until,
    ]


GRANTS = st.lists(
    st.builds(
        grant,
        st.uuids().map(str),
        st.integers(1, 50),
        priority=st.integers(0, 2),
        day=st.integers(0, 60),
        days=st.none() | st.integers(1, 60),
    ),
    min_size=1,
    max_size=5,
)


@given(GRANTS, st.dictionaries(st.integers(0, 90), st.integers(0, 60)))
def test_no_grant_pays_more_than_it_has_nor_more_than_was_used(grants: list[Grant], days: dict[int, int]) -> None:
    used = {START + day * DAY: Decimal(amount) for day, amount in days.items()}
    spent = burn(grants, used)
    for one in grants:
        assert sum(amount for (name, _), amount in spent.items() if name == one.id) <= one.amount
    for month in {month for _, month in spent}:
        paid = sum(amount for (_, of), amount in spent.items() if of == month)
        assert paid <= sum(amount for at, amount in used.items() if at.date().replace(day=1) == month)
    if any(one.expires_at is None and one.granted_at == START for one in grants):
        # A grant that holds all the time leaves nothing owed that it could have paid.
        assert sum(spent.values()) >= min(
            sum(used.values()), sum(one.amount for one in grants if one.expires_at is None and one.granted_at == START)
        )
