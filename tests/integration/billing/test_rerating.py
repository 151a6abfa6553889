from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from answered import answer_requests, usage
from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.budgets import Scope, limit_batch, set_budget
from pipeline.billing.card_files import read_card_file
from pipeline.billing.late_rating import rate_unrated
from pipeline.billing.plans import add_draft, publish
from pipeline.billing.rate_cards import RateCardError
from pipeline.billing.reports import Month
from pipeline.billing.rerating import rate_by_card, rate_by_own_cards
from pipeline.billing.rollups import find_drift
from pipeline.tables import BudgetPeriod, ServiceClass
from pipeline.tables.session import transaction

CARD = """
plan: default
currency: USD
batch_discount: 0.5
multipliers: {priority: 2}
models:
  tiny:
    input: {volume: [{up_to: 100, price: 4}, {price: 2}]}
    cached_input: {package: {size: 10, price: 1}}
    output: {graduated: [{up_to: 10, price: 8}, {price: 4}], minimum: 0.0001}
  other: {input: 1, output: 2}
"""
#: A token of `tiny` costs one.
DRAFT = """
plan: default
currency: USD
models: {tiny: {input: 1000000, output: 1000000}}
"""
MONTH = Month.of(datetime.now(UTC))
LINES = "SELECT l::text FROM usage_prices l ORDER BY request_id, meter, revision"


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    for model in ("tiny", "other"):
        sql(database, "INSERT INTO served_models (name, path, context_length) VALUES (:m, '/', 2048)", m=model)
    with transaction() as session:
        publish(session, add_draft(session, read_card_file(CARD)))
    tenant = seed_tenant(database)
    answer_requests(database, tenant, [usage(90, 9, 8), usage(20, 2, 30), usage(0, 1, 1)], num_at_once=2)
    answer_requests(database, tenant, [usage(7, output=30)], service_class=ServiceClass.PRIORITY)
    answer_requests(database, tenant, [usage(5, output=5)], model="other")
    return tenant


def owed(database: Engine) -> Decimal:
    rows = sql(
        database,
        "SELECT sum(e.amount) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id"
        " WHERE a.kind = 'receivable'",
    )
    return Decimal(rows[0][0])


def test_a_month_rated_again_by_its_own_cards_is_byte_for_byte_the_same(database: Engine, tenant: SeededTenant) -> None:
    before = sql(database, LINES)
    with transaction() as session:
        again = rate_by_own_cards(session, MONTH)
    assert again.sha256_before == again.sha256_after
    assert [(one.model, one.num_lines, one.num_changed, one.change) for one in again.differences] == [
        ("other", 2, 0, 0),
        ("tiny", 11, 0, 0),
    ]
    assert sum(one.before for one in again.differences) == owed(database)
    assert sql(database, LINES) == before

    sql(database, "UPDATE rated_lines SET amount = amount + 0.000000000000001 WHERE meter = 'output' AND quantity = 8")
    with transaction() as session:
        [_, tiny] = rate_by_own_cards(session, MONTH).differences
    assert (tiny.num_changed, tiny.change) == (1, Decimal("-1e-15"))


def test_another_card_shows_its_difference_and_writes_nothing(database: Engine, tenant: SeededTenant) -> None:
    before, owed_before = sql(database, LINES), owed(database)
    with transaction() as session:
        [tiny] = rate_by_card(session, MONTH, read_card_file(DRAFT)).differences
    assert (tiny.tenant, tiny.model, tiny.after) == ("acme", "tiny", 110 + 12 + 39 + 7 + 30)
    assert tiny.num_lines == 11
    assert sql(database, LINES) == before
    assert owed(database) == owed_before
    assert sql(database, "SELECT count(*) FROM rate_cards") == [(1,)]


def test_publishing_supersedes_lines_and_adjusts_the_ledger(database: Engine, tenant: SeededTenant) -> None:
    before, owed_before = sql(database, LINES), owed(database)
    with transaction() as session:
        shown = rate_by_card(session, MONTH, read_card_file(DRAFT))
        done = rate_by_card(session, MONTH, read_card_file(DRAFT), publishes=True)
        assert done.differences == shown.differences
        assert done.card is not None
        assert (done.card.version, done.card.effective_from) == (2, None)
        assert find_drift(session.connection(), tenant.id, MONTH.start, MONTH.end) == []
    [change] = [one.change for one in done.differences]
    assert owed(database) == owed_before + change
    after = sql(database, LINES)
    assert [line for line in after if line in before] == before  # nothing is edited
    assert len(after) == len(before) + 11
    assert sql(database, "SELECT sum(amount) FROM usage_prices WHERE revision = 2") == [(198,)]
    kinds = "SELECT kind, period FROM ledger_transactions WHERE kind <> 'usage'"
    assert sql(database, kinds) == [("adjustment", MONTH.start.date())]
    with transaction() as session:
        again = rate_by_own_cards(session, MONTH)
        assert again.sha256_before == again.sha256_after
        # What is recorded from now on has the price that holds, and not that of the correction.
    answer_requests(database, tenant, [usage(10)])
    assert sql(database, "SELECT DISTINCT rate_card_id FROM usage_prices WHERE revision = 1") == [(1,)]


def test_tiers_are_counted_from_the_first_event_of_the_month(database: Engine, tenant: SeededTenant) -> None:
    answer_requests(database, tenant, [usage(3)], rate_card_id=1)  # agreed: is left as it is
    with transaction() as session:
        done = rate_by_card(session, MONTH, read_card_file(CARD.replace("price: 8", "price: 16")), publishes=True)
        [other, tiny] = done.differences
    assert (other.change, tiny.num_lines) == (0, 11)
    assert done.card is not None
    befores = "SELECT quantity_before FROM usage_prices WHERE revision = 2 AND meter = 'output' ORDER BY request_id"
    assert [row[0] for row in sql(database, befores)] == [0, 8, 38, 0, 0]
    [(counted,)] = sql(
        database,
        "SELECT sum(quantity) FROM rating_counters WHERE rate_card_id = :id AND meter = 'output'",
        id=done.card.id,
    )
    assert counted == 39 + 30


def test_a_month_is_not_rated_again_in_another_currency(database: Engine, tenant: SeededTenant) -> None:
    with transaction() as session, pytest.raises(RateCardError, match="The card is in EUR, and request"):
        rate_by_card(session, MONTH, read_card_file(DRAFT.replace("USD", "EUR")))


@pytest.mark.parametrize("num_at_once", [1_000, 1])  # or one after the other, two of the same answer too
def test_what_was_unrated_is_rated_once_there_is_a_price(
    database: Engine, tenant: SeededTenant, monkeypatch: pytest.MonkeyPatch, num_at_once: int
) -> None:
    monkeypatch.setattr("pipeline.billing.late_rating._CHUNK", num_at_once)
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('new', '/', 2048)")
    answer_requests(database, tenant, [usage(10, output=5)], model="new")
    owed_before = owed(database)
    with transaction() as session:
        waiting = rate_unrated(session)
        assert (waiting.num_rated, waiting.left) == (0, {"new": 2})
        publish(session, add_draft(session, read_card_file(DRAFT.replace("tiny", "new"))))
        assert rate_unrated(session).num_rated == 2
        assert rate_unrated(session).num_rated == 0
        assert find_drift(session.connection(), tenant.id, MONTH.start, MONTH.end) == []
    assert owed(database) == owed_before + 15


def test_what_is_rated_late_counts_in_the_budgets_that_it_would_have_been_paid_from(
    database: Engine, tenant: SeededTenant
) -> None:
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('new', '/', 2048)")
    monthly, everything, other = (
        budget_of(tenant, "USD", BudgetPeriod.MONTH),
        budget_of(tenant, "USD", BudgetPeriod.TOTAL),
        budget_of(tenant, "EUR", BudgetPeriod.MONTH),
    )
    batch_id = answer_requests(database, tenant, [usage(10, output=5)], model="new")
    before = spent(database)
    with transaction() as session:
        limit_batch(session, tenant.id, batch_id, "USD", Decimal(40))
        publish(session, add_draft(session, read_card_file(DRAFT.replace("tiny", "new"))))
        assert rate_unrated(session).num_rated == 2
        assert rate_unrated(session).num_rated == 0
    after = spent(database)
    assert after[monthly] == before[monthly] + 15
    assert after[everything] == before.get(everything, 0) + 15
    assert after.get(other, 0) == 0
    assert sql(
        database, "SELECT spent FROM budget_uses u JOIN budgets g ON g.id = u.budget_id WHERE g.batch_id IS NOT NULL"
    ) == [(15,)]


def budget_of(tenant: SeededTenant, currency: str, period: BudgetPeriod) -> str:
    with transaction() as session:
        scope = Scope(tenant_id=tenant.id)
        return set_budget(session, scope, currency=currency, amount=Decimal(1000), period=period).id


def spent(database: Engine) -> dict[str, Decimal]:
    return {row[0]: row[1] for row in sql(database, "SELECT budget_id, spent FROM budget_uses")}
