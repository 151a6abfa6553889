"""Roll-ups say what the usage events say, whoever writes meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from recorded_usage import make_batch, make_key, rate, use
from running_gateways import wait_for
from seeds import sql
from sqlalchemy import Engine, text
from submitting import Bench, at_once

from pipeline.billing.rate_cards import add_rate_card
from pipeline.billing.rollups import Drift, correct_drift, find_drift, rebuild
from pipeline.jobs import outbox
from pipeline.jobs.audit import audit
from pipeline.tables import Meter, OutcomeKind
from pipeline.tables.session import transaction

DURING = datetime(2026, 11, 15, 12, 30, tzinfo=UTC)
NOVEMBER = (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
#: Who waits for a lock in this database.
WAITING = """
    SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE NOT l.granted AND a.datname = current_database()
"""
ALWAYS = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
def bench(database: Engine, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(outbox, "publish_soon", lambda *_: None)
    return Bench.make(database, tmp_path / "model")


def drift_of(bench: Bench) -> list[Drift]:
    with bench.engine.begin() as conn:
        return find_drift(conn, bench.tenant.id, *ALWAYS)


def rollups(database: Engine, period: str = "day") -> dict[str, tuple[int, int, int, Decimal]]:
    """(events, quantity, engine milliseconds, amount) by meter."""
    rows = sql(
        database,
        "SELECT meter, sum(num_events), sum(quantity), sum(engine_ms), sum(amount) FROM usage_rollups"
        " WHERE period = :period GROUP BY meter",
        period=period,
    )
    return {meter: (int(events), int(quantity), int(ms), amount) for meter, events, quantity, ms, amount in rows}


def test_what_a_group_records_is_in_the_roll_ups_at_once(bench: Bench) -> None:
    bench.run(num_requests=3)
    bench.answer(bench.claim())

    [[num_prompt_tokens]] = sql(bench.engine, "SELECT num_prompt_tokens FROM batches")
    amounts = dict(sql(bench.engine, "SELECT meter, sum(amount) FROM usage_prices GROUP BY meter"))
    for period in ("hour", "day"):
        assert rollups(bench.engine, period) == {
            "input_uncached": (3, num_prompt_tokens - 3, 0, amounts["input_uncached"]),
            "input_cached": (3, 3, 0, amounts["input_cached"]),
            "output": (3, 6, 9, amounts["output"]),
        }
    [key] = sql(
        bench.engine,
        "SELECT DISTINCT tenant_id, api_key_id, model, service_class, currency FROM usage_rollups",
    )
    assert key == (bench.tenant.id, bench.tenant.api_key_id, "tiny", "standard", "USD")
    assert drift_of(bench) == []


def test_what_was_not_answered_is_in_no_roll_up(bench: Bench) -> None:
    bench.run()
    bench.answer(bench.claim(), kind=OutcomeKind.FAILED)
    assert rollups(bench.engine) == {}


def test_outcomes_that_are_recorded_again_are_added_once(bench: Bench) -> None:
    bench.run()
    claimed = bench.claim()
    bench.answer(claimed)
    before = rollups(bench.engine)
    bench.answer(claimed)
    assert rollups(bench.engine) == before
    assert drift_of(bench) == []


def test_groups_that_record_at_once_lose_no_addition(bench: Bench) -> None:
    for _ in range(4):
        bench.run(num_requests=4)
    held = [bench.claim(f"group-{number}@test") for number in range(4)]

    def record() -> None:
        claimed = held.pop()
        for _ in range(4):
            bench.answer(claimed, 1)

    at_once(record, 4)
    assert rollups(bench.engine)["output"][0] == 16
    assert drift_of(bench) == []


def test_a_roll_up_that_was_changed_by_hand_is_found_and_set_right(bench: Bench) -> None:
    bench.run()
    bench.answer(bench.claim())
    before = rollups(bench.engine)
    bench.execute("UPDATE usage_rollups SET quantity = quantity + 5 WHERE meter = 'output' AND period = 'day'")

    [found] = drift_of(bench)
    assert (found.period, found.meter, found.quantity, found.amount) == ("day", "output", -5, Decimal(0))
    assert _broken() == {"roll-ups are the sum of the usage"}
    assert rebuild(bench.engine).num_corrected == 1
    assert rollups(bench.engine) == before
    assert drift_of(bench) == []
    assert _broken() == set()


def _broken() -> set[str]:
    return {statement for statement, _ in audit().violations if "roll-up" in statement}


def test_roll_ups_that_are_lost_are_rebuilt_from_the_events(bench: Bench) -> None:
    bench.run()
    bench.answer(bench.claim())
    before = rollups(bench.engine)
    bench.execute("DELETE FROM usage_rollups")

    rebuild(bench.engine)
    assert rollups(bench.engine) == before
    assert rebuild(bench.engine).num_corrected == 0


def test_a_roll_up_without_events_comes_to_nothing(bench: Bench) -> None:
    bench.run()
    bench.answer(bench.claim())
    bench.execute("UPDATE usage_rollups SET model = 'other'")
    rebuild(bench.engine)
    found = sql(
        bench.engine,
        "SELECT model, sum(quantity) > 0, sum(amount) > 0 FROM usage_rollups GROUP BY model ORDER BY model",
    )
    assert found == [("other", False, False), ("tiny", True, True)]
    assert drift_of(bench) == []


def test_roll_ups_are_rebuilt_while_groups_record(bench: Bench) -> None:
    bench.run(num_requests=24)
    claimed = bench.claim()
    bench.answer(claimed, 4)
    bench.execute("DELETE FROM usage_rollups")

    recording = threading.Thread(target=lambda: [bench.answer(claimed, 1) for _ in range(20)])
    recording.start()
    while recording.is_alive():
        rebuild(bench.engine)
    recording.join()
    assert rollups(bench.engine)["output"][0] == 24
    assert drift_of(bench) == []


def test_two_who_rebuild_at_once_correct_each_roll_up_once(bench: Bench) -> None:
    bench.run()
    bench.answer(bench.claim())
    before = rollups(bench.engine)
    bench.execute("DELETE FROM usage_rollups")
    second = threading.Thread(target=rebuild, args=(bench.engine,))
    with bench.engine.begin() as first:
        assert correct_drift(first, bench.tenant.id, *ALWAYS) == 6
        second.start()
        wait_for(lambda: bool(sql(bench.engine, WAITING)))
    second.join()
    assert rollups(bench.engine) == before


def test_usage_is_in_the_hour_and_the_day_of_its_event(database: Engine) -> None:
    with transaction() as session:
        batch = make_batch(session, make_key(session, "acme"))
        for at in (DURING, DURING + timedelta(hours=1), NOVEMBER[1] - timedelta(microseconds=1), NOVEMBER[1]):
            use(session, batch, "tiny", (1, 0, 2), at=at, card=None)
    rebuild(database)
    found = sql(
        database,
        "SELECT period, to_char(starts_at, 'MM-DD HH24:MI'), quantity FROM usage_rollups WHERE meter = 'output'"
        " ORDER BY period, starts_at",
    )
    assert found == [
        ("day", "11-15 00:00", 4),
        ("day", "11-30 00:00", 2),
        ("day", "12-01 00:00", 2),
        ("hour", "11-15 12:00", 2),
        ("hour", "11-15 13:00", 2),
        ("hour", "11-30 23:00", 2),
        ("hour", "12-01 00:00", 2),
    ]


def test_usage_without_a_price_has_no_currency_until_it_is_rated(database: Engine) -> None:
    with transaction() as session:
        card = add_rate_card(
            session,
            "tiny",
            currency="EUR",
            input_price=Decimal("0.10"),
            cached_input_price=Decimal("0.05"),
            output_price=Decimal("0.40"),
            batch_discount=Decimal("0.5"),
        )
        batch = make_batch(session, make_key(session, "acme"))
        tenant_id = batch.tenant_id
        request_id = use(session, batch, "tiny", (10, 0, 5), at=DURING, card=None)
    rebuild(database)
    assert sql(database, "SELECT DISTINCT currency, amount FROM usage_rollups") == [("", 0)]

    with transaction() as session:
        [[ledger]] = session.execute(text("SELECT id FROM ledger_transactions"))
        rate(session, request_id, Meter.INPUT_UNCACHED, 10, card, ledger)
        rate(session, request_id, Meter.OUTPUT, 5, card, ledger)
        rate(session, request_id, Meter.OUTPUT, 5, card, ledger, revision=2)
        correct_drift(session.connection(), tenant_id, *NOVEMBER)
    assert rollups(database)["output"] == (1, 5, 0, Decimal("0.000001"))
    counted = "SELECT currency FROM usage_rollups GROUP BY currency HAVING sum(num_events) <> 0"
    assert sql(database, counted) == [("EUR",)]
