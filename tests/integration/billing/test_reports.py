from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from recorded_usage import make_batch, make_key, rate, use
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from pipeline.billing.rate_cards import add_rate_card
from pipeline.billing.reports import By, Month, UnratedUsageError, bills, usage_report
from pipeline.tables import Meter, RateCard, RatedLine
from pipeline.tables.session import transaction

NOVEMBER = Month(2026, 11)
DURING = datetime(2026, 11, 15, 12, tzinfo=UTC)


def make_card(session: Session, model: str = "tiny", currency: str = "USD", price: str = "0.10") -> RateCard:
    return add_rate_card(
        session,
        model,
        currency=currency,
        input_price=Decimal(price),
        cached_input_price=Decimal("0.05"),
        output_price=Decimal("0.40"),
        batch_discount=Decimal("0.5"),
    )


def test_a_bill_is_the_sum_of_its_exact_lines_rounded_once(database: Engine) -> None:
    with transaction() as session:
        tiny, large = make_card(session), make_card(session, "large")
        batch = make_batch(session, make_key(session, "acme"))
        for _ in range(3):
            use(session, batch, "tiny", (1_000, 100, 33), at=DURING, card=tiny)
        use(session, batch, "large", (99_999, 0, 7), at=DURING, card=large)

        [bill] = bills(session, NOVEMBER)

    large_line, tiny_line = bill.lines
    assert (tiny_line.group.model, tiny_line.num_requests) == ("tiny", 3)
    assert (tiny_line.num_input_uncached_tokens, tiny_line.num_input_cached_tokens) == (3_000, 300)
    assert tiny_line.num_output_tokens == 99
    assert tiny_line.input_uncached_amount == Decimal("0.00015")
    assert tiny_line.input_cached_amount == Decimal("0.0000075")
    assert tiny_line.output_amount == Decimal("0.0000198")
    assert tiny_line.amount == Decimal("0.0001773")
    assert large_line.amount == Decimal("0.00499995") + Decimal("0.0000014")
    assert (bill.tenant, bill.currency) == ("acme", "USD")
    assert bill.exact == Decimal("0.00517865")
    assert (bill.total, bill.rounding) == (Decimal("0.01"), Decimal("0.00482135"))


def test_only_the_month_counts(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        batch = make_batch(session, make_key(session, "acme"))
        instant = timedelta(microseconds=1)
        for at in (NOVEMBER.start - instant, NOVEMBER.start, NOVEMBER.end - instant, NOVEMBER.end):
            use(session, batch, "tiny", (1, 0, 1), at=at, card=card)

        assert [line.num_requests for line in usage_report(session, NOVEMBER)] == [2]
        assert [bill.lines[0].num_requests for bill in bills(session, NOVEMBER)] == [2]
        assert usage_report(session, Month(2025, 1)) == []
        assert bills(session, Month(2025, 1)) == []


def test_each_tenant_and_currency_has_a_bill_of_its_own(database: Engine) -> None:
    with transaction() as session:
        dollars, yen = make_card(session), make_card(session, "large", "JPY", "30000")
        acme, globex = make_key(session, "acme"), make_key(session, "globex")
        use(session, make_batch(session, acme), "tiny", (10, 0, 1), at=DURING, card=dollars)
        use(session, make_batch(session, globex), "tiny", (20, 0, 1), at=DURING, card=dollars)
        use(session, make_batch(session, globex), "large", (100, 0, 1), at=DURING, card=yen)

        found = {(bill.tenant, bill.currency): bill for bill in bills(session, NOVEMBER)}
        assert list(found) == [("acme", "USD"), ("globex", "JPY"), ("globex", "USD")]
        assert str(found["globex", "JPY"].total) == "2"
        assert [bill.tenant for bill in bills(session, NOVEMBER, tenant_id=acme.tenant_id)] == ["acme"]
        assert len(usage_report(session, NOVEMBER, tenant_id=globex.tenant_id)) == 2


def test_a_change_of_price_within_the_month_makes_two_lines(database: Engine) -> None:
    with transaction() as session:
        before, after = make_card(session), make_card(session, price="0.20")
        batch = make_batch(session, make_key(session, "acme"))
        use(session, batch, "tiny", (10, 0, 1), at=DURING, card=before)
        use(session, batch, "tiny", (10, 0, 1), at=DURING, card=after)

        [bill] = bills(session, NOVEMBER)
        assert [line.input_price for line in bill.lines] == [Decimal("0.10"), Decimal("0.20")]
        assert len(usage_report(session, NOVEMBER)) == 1


def test_a_correction_replaces_what_it_supersedes(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        request_id = use(
            session, make_batch(session, make_key(session, "acme")), "tiny", (10, 5, 1), at=DURING, card=card
        )
        ledger = session.execute(select(RatedLine.ledger_transaction_id).limit(1)).scalar_one()
        for revision in (2, 3):
            rate(session, request_id, Meter.OUTPUT, 100 * revision, card, ledger, revision)

        [bill] = bills(session, NOVEMBER)
        [line] = bill.lines
        assert (line.num_requests, line.num_output_tokens, line.num_input_cached_tokens) == (1, 300, 5)


def test_lines_are_split_by_batch_and_key_where_asked(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        key, other = make_key(session, "acme", "nightly"), make_key(session, "acme", "adhoc")
        first, second, third = make_batch(session, key), make_batch(session, key), make_batch(session, other)
        for batch in (first, second, third):
            use(session, batch, "tiny", (10, 0, 1), at=DURING, card=card, engine_ms=7)

        [line] = usage_report(session, NOVEMBER)
        assert (line.num_requests, line.engine_ms, line.group.batch_id, line.group.api_key) == (3, 21, None, None)
        by_key = usage_report(session, NOVEMBER, by=[By.KEY])
        assert {line.group.api_key: line.num_requests for line in by_key} == {"nightly": 2, "adhoc": 1}
        [bill] = bills(session, NOVEMBER, by=[By.BATCH, By.KEY])
        assert {line.group.batch_id for line in bill.lines} == {first.id, second.id, third.id}


def test_usage_without_a_price_is_never_taken_for_free(database: Engine) -> None:
    with transaction() as session:
        batch = make_batch(session, make_key(session, "acme"))
        use(session, batch, "tiny", (10, 0, 1), at=DURING, card=None)

        assert usage_report(session, NOVEMBER)[0].num_requests == 1
        with pytest.raises(UnratedUsageError, match="2 usage events of 2026-11 have no price"):
            bills(session, NOVEMBER)
