from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from answered import answer_requests, usage
from seeds import SeededTenant, seed_batch, seed_tenant, sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from pipeline.billing.card_files import read_card_file
from pipeline.billing.cards_in_effect import find_rates, find_rates_of_batches
from pipeline.billing.plans import add_draft, find_card, publish, remove_draft
from pipeline.billing.rate_cards import RateCardError, add_rate_card
from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest, claim_slice, load_requests
from pipeline.jobs.recording import RequestOutcome, record_outcomes
from pipeline.tables import Meter, OutcomeKind, RateCard, ServiceClass
from pipeline.tables.session import transaction

MICRO = Decimal("0.000001")
CARD = """
plan: default
currency: USD
batch_discount: 0.5
multipliers: {priority: 2, flex: 0.5}
models:
  tiny:
    input: {volume: [{up_to: 100, price: 4}, {price: 2}]}
    cached_input: {package: {size: 10, price: 1}}
    output: {graduated: [{up_to: 10, price: 8}, {up_to: 20, price: 4}, {price: 2}], minimum: 0.0001}
"""


def publish_card(content: str = CARD) -> RateCard:
    with transaction() as session:
        return publish(session, add_draft(session, read_card_file(content)))


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/models/tiny', 2048)")
    return seed_tenant(database)


def test_every_model_of_price_rates_what_is_recorded_by_the_quantity_of_the_month(
    database: Engine, tenant: SeededTenant
) -> None:
    card = publish_card()
    answer_requests(database, tenant, [usage(90, 9, 8), usage(20, 2, 30)], num_at_once=1)

    lines = sql(
        database,
        "SELECT meter, quantity, quantity_before, unit_price, amount, rate_card_id FROM usage_prices"
        " ORDER BY request_id, meter",
    )
    half = Decimal("0.5")
    assert lines == [
        ("input_cached", 9, 0, Decimal(1), half, card.id),
        ("input_uncached", 90, 0, None, 360 * MICRO * half, card.id),
        ("output", 8, 0, None, 100 * MICRO * half, card.id),  # the minimum of the month
        ("input_cached", 2, 9, Decimal(1), half, card.id),
        ("input_uncached", 20, 90, None, (110 * 2 - 360) * MICRO * half, card.id),
        ("output", 30, 8, None, (80 + 40 + 36 - 100) * MICRO * half, card.id),
    ]
    assert sql(database, "SELECT meter, quantity FROM rating_counters ORDER BY meter") == [
        ("input_cached", 11),
        ("input_uncached", 110),
        ("output", 38),
    ]
    owed = "SELECT sum(e.amount) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id WHERE a.kind = "
    assert sql(database, f"{owed} 'receivable'") == sql(database, "SELECT sum(amount) FROM usage_prices")
    assert sql(database, f"{owed} 'revenue'") == sql(database, "SELECT -sum(amount) FROM usage_prices")


def test_each_service_class_has_its_multiplier_and_its_own_tiers(database: Engine, tenant: SeededTenant) -> None:
    publish_card()
    for service_class in ServiceClass:
        answer_requests(database, tenant, [usage(50, output=20)], service_class=service_class)

    total = (200 + 80 + 40) * MICRO / 2
    amounts = sql(
        database,
        "SELECT service_class, sum(amount) FROM usage_prices GROUP BY 1 ORDER BY 1",
    )
    assert amounts == [("flex", total / 2), ("priority", total * 2), ("standard", total)]
    assert sql(database, "SELECT DISTINCT quantity_before FROM usage_prices") == [(0,)]


def test_flat_prices_keep_no_counter(database: Engine, tenant: SeededTenant) -> None:
    with transaction() as session:
        prices = dict.fromkeys(("input_price", "cached_input_price", "output_price"), Decimal(1))
        add_rate_card(session, "tiny", currency="USD", batch_discount=Decimal(0), **prices)
    answer_requests(database, tenant, [usage(50, 5, 20)])
    assert sql(database, "SELECT count(*) FROM rating_counters") == [(0,)]
    assert sql(database, "SELECT sum(amount) FROM usage_prices") == [(75 * MICRO,)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rate_cards SET currency = 'EUR'",
        "UPDATE rate_cards SET published_at = NULL",
        "DELETE FROM rate_cards",
        "UPDATE rates SET minimum = 1",
        "DELETE FROM rates",
        "INSERT INTO rates (rate_card_id, model, meter, pricing, unit_price)"
        " SELECT id, 'other', 'output', 'flat', 1 FROM rate_cards",
    ],
)
def test_a_published_card_can_not_be_changed(database: Engine, statement: str) -> None:
    publish_card()
    with pytest.raises(DBAPIError, match="is published and"):
        sql(database, statement)


def test_a_draft_rates_nothing_and_can_be_removed(database: Engine, tenant: SeededTenant) -> None:
    with transaction() as session:
        draft = add_draft(session, read_card_file(CARD))
        assert (draft.version, draft.published_at, draft.effective_from, draft.sha256) == (1, None, None, None)
        assert find_rates(session, tenant_id=tenant.id, model="tiny") is None
        remove_draft(session, draft)
    assert sql(database, "SELECT count(*) FROM rates") == [(0,)]


def test_a_card_is_published_once_with_the_hash_of_its_content(database: Engine) -> None:
    card = publish_card()
    [(content,)] = sql(database, "SELECT rate_card_content(:id)", id=card.id)
    assert card.sha256 == hashlib.sha256(content.encode()).digest()
    assert '"up_to": 20' in content
    with transaction() as session, pytest.raises(RateCardError, match="published already"):
        publish(session, find_card(session, "default", 1))
    assert publish_card().version == 2
    assert sql(database, "SELECT act FROM audit_log ORDER BY seq") == [("rates.publish",), ("rates.publish",)]


def test_a_card_can_hold_from_a_moment_to_come_and_never_from_one_that_is_past(
    database: Engine, tenant: SeededTenant
) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    first = publish_card()
    second = publish_card(CARD + f"effective_from: {tomorrow.isoformat()}\n")
    with transaction() as session:
        now = find_rates(session, tenant_id=tenant.id, model="tiny")
        then = find_rates(session, tenant_id=tenant.id, model="tiny", at=tomorrow)
        assert now is not None
        assert then is not None
        assert (now.rate_card_id, then.rate_card_id) == (first.id, second.id)
        agreed = find_rates(session, tenant_id=tenant.id, model="tiny", rate_card_id=second.id)
        assert agreed is not None
        assert agreed.by_meter[Meter.OUTPUT].minimum == Decimal("0.0001")
    with pytest.raises(RateCardError, match="which is past"):
        publish_card(CARD + "effective_from: 2026-01-01T00:00:00Z\n")


def test_batches_have_the_rates_of_their_class_and_of_what_was_agreed(database: Engine, tenant: SeededTenant) -> None:
    first, second = publish_card(), publish_card()
    flex = answer_requests(database, tenant, [usage(1)], service_class=ServiceClass.FLEX)
    agreed = answer_requests(database, tenant, [usage(1)], rate_card_id=first.id)
    with transaction() as session:
        found = find_rates_of_batches(session, [flex, agreed, "batch_that_is_not_there"])
    assert {batch: (rates.rate_card_id, rates.class_multiplier) for batch, rates in found.items()} == {
        flex: (second.id, Decimal("0.5")),
        agreed: (first.id, Decimal(1)),
    }


def test_groups_that_record_at_once_climb_the_same_tiers_one_after_the_other(
    database: Engine, tenant: SeededTenant
) -> None:
    publish_card()
    batch_id = seed_batch(database, tenant, [6] * 4)
    claims = []
    for number in range(4):
        with database.begin() as conn:
            claimed = claim_slice(conn, model="tiny", group_id=f"group-{number}@test", lease_seconds=60)
            assert claimed is not None
            claims.append((claimed, load_requests(conn, claimed)))
    barrier = threading.Barrier(4)

    def record(claimed: ClaimedSlice, requests: list[PlannedRequest]) -> None:
        barrier.wait(60)
        for request in requests:
            outcome = RequestOutcome(
                request.id, request.custom_id, claimed, OutcomeKind.SUCCEEDED, body="{}", usage=usage(9, 4, 7)
            )
            with database.begin() as conn:
                record_outcomes(conn, [outcome])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(record, *claim) for claim in claims]:
            future.result(60)
    befores = "SELECT quantity_before FROM usage_prices WHERE meter = 'output' ORDER BY 1"
    assert [row[0] for row in sql(database, befores)] == [7 * number for number in range(24)]
    rates = read_card_file(CARD).rates()["tiny"]
    totals = [rates[meter].total(24 * used) for meter, used in zip(Meter, (9, 4, 7), strict=True)]
    assert sql(database, "SELECT sum(amount) FROM usage_prices") == [(sum(totals) / 2,)]
    assert sql(database, "SELECT num_succeeded FROM batches WHERE id = :id", id=batch_id) == [(24,)]
