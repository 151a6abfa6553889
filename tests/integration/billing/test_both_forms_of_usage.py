"""Usage and prices are the same to whoever reads them: in rows of results, or as events and lines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from answered import answer_requests, usage
from older_usage import write_as_older_groups
from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pipeline.billing.budgets import Scope, list_budgets, set_budget
from pipeline.billing.card_files import read_card_file
from pipeline.billing.forms.focus import focus_form
from pipeline.billing.invoices import month_documents
from pipeline.billing.itemizing import currencies_used, usage_items
from pipeline.billing.late_rating import rate_unrated
from pipeline.billing.missed_windows import _COST
from pipeline.billing.plans import add_draft, publish
from pipeline.billing.receipts import BlankSigner, batch_receipts, month_leaves, pack_choices
from pipeline.billing.reconciliation import reconcile
from pipeline.billing.reports import By, Month, bills, usage_report
from pipeline.billing.rerating import rate_by_card, rate_by_own_cards
from pipeline.billing.rollups import rebuild
from pipeline.billing.usage_buckets import UsageBy, Wanted, Width, usage_results
from pipeline.console.batch_costs import cost_so_far
from pipeline.jobs.audit import audit
from pipeline.jobs.quoting import _lengths
from pipeline.tables import Batch, ServiceClass
from pipeline.tables.session import transaction

CARD = """
plan: default
currency: USD
batch_discount: 0.333
models:
  flat: {input: 0.137, cached_input: 0.061, output: 0.411}
  again: {input: 1, output: 3}
  steps:
    input: 0.5
    output: {graduated: [{up_to: 10, price: 2}, {price: 1}]}
"""
AGAIN = "plan: default\ncurrency: USD\nmodels: {again: {input: 2, output: 3.5}}\n"
LATE = "plan: default\ncurrency: USD\nmodels: {late: {input: 7, output: 9}}\n"
MONTH = Month.of(datetime.now(UTC))
#: All that reads usage or prices, but for what writes or drops them.
Readers = dict[str, Callable[[Session], Any]]


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    """One with answers at flat prices, at steps, rated again, rated late, and not rated."""
    for model in ("flat", "again", "steps", "late", "unpriced"):
        sql(database, "INSERT INTO served_models (name, path, context_length) VALUES (:m, '/', 2048)", m=model)
    with transaction() as session:
        publish(session, add_draft(session, read_card_file(CARD)))
    acme = seed_tenant(database)
    answers = [usage(4, 0, 7), usage(1, 3, 1), usage(4, 0, 0), usage(2, 2, 12)]
    for who, model, service_class in (
        (acme, "flat", ServiceClass.STANDARD),
        (acme, "flat", ServiceClass.PRIORITY),
        (seed_tenant(database, "globex"), "flat", ServiceClass.FLEX),
        (acme, "again", ServiceClass.STANDARD),
        (acme, "steps", ServiceClass.STANDARD),
        (acme, "late", ServiceClass.STANDARD),
    ):
        answer_requests(database, who, answers, model=model, service_class=service_class, num_at_once=3)
    with transaction() as session:
        rate_by_card(session, MONTH, read_card_file(AGAIN), publishes=True)
        publish(session, add_draft(session, read_card_file(LATE)))
    with transaction() as session:
        assert rate_unrated(session).num_rated == 10
    sql(database, "UPDATE batches SET has_receipts = true")
    sql(database, "UPDATE results SET output_token_ids = :ids", ids=pack_choices([[5, 6, 7]]))
    return acme


def readers(tenant: SeededTenant, batch_ids: list[str]) -> Readers:
    now = datetime.now(UTC)
    minutes = Wanted(
        tenant_id=tenant.id,
        width=Width.MINUTE,
        starts_at=now.replace(second=0, microsecond=0) - timedelta(hours=1),
        ends_at=now + timedelta(hours=1),
    )
    return {
        "usage": lambda session: session.execute(text("SELECT * FROM metered_usage ORDER BY request_id, meter")).all(),
        "usage report": lambda session: usage_report(session, MONTH, by=[By.BATCH, By.KEY]),
        "usage by minute": lambda session: usage_results(session, minutes, [UsageBy.MODEL, UsageBy.SERVICE_TIER]),
        "lengths of answers": lambda session: sorted(_lengths(session.connection(), tenant.id, "flat"), key=str),
        "prices": lambda session: session.execute(
            text("SELECT * FROM usage_prices ORDER BY request_id, meter, revision")
        ).all(),
        "current prices": lambda session: session.execute(
            text("SELECT * FROM rated_usage ORDER BY request_id, meter")
        ).all(),
        "bills": lambda session: bills(session, MONTH, by=[By.BATCH]),
        "items": lambda session: sorted(
            (
                item
                for currency in currencies_used(session, tenant.id, MONTH)
                for item in usage_items(session, tenant.id, MONTH, currency)
            ),
            key=str,
        ),
        "FOCUS": lambda session: [
            b"".join(focus_form(document)) for document in month_documents(session, tenant.id, MONTH, MONTH.end)
        ],
        "own cards": lambda session: rate_by_own_cards(session, MONTH),
        "costs of batches": lambda session: [cost_so_far(session, session.get_one(Batch, one)) for one in batch_ids],
        "cost of what was late": lambda session: [_cost_if_late(session, one) for one in batch_ids],
        "receipts": lambda session: [
            batch_receipts(session.connection(), one, 0, 9, BlankSigner()) for one in batch_ids
        ],
        "leaves": lambda session: month_leaves(session, tenant.id, MONTH, "USD"),
        "a new budget": lambda session: _new_budget(session, tenant),
    }


def _new_budget(session: Session, tenant: SeededTenant) -> Any:
    with session.begin_nested() as nested:
        set_budget(session, Scope(tenant_id=tenant.id), amount=Decimal(10), currency="USD")
        [state] = list_budgets(session, tenant.id)
        nested.rollback()
    return state.spent


def _cost_if_late(session: Session, batch_id: str) -> Any:
    with session.begin_nested() as nested:
        session.execute(text("UPDATE batches SET status = 'expired' WHERE id = :id"), {"id": batch_id})
        costs = session.execute(_COST, {"batch_id": batch_id}).all()
        nested.rollback()
    return costs


def test_every_reader_says_the_same_of_both_forms_and_of_some_of_each(database: Engine, tenant: SeededTenant) -> None:
    batch_ids = [batch_id for (batch_id,) in sql(database, "SELECT id FROM batches ORDER BY created_at")]

    def said() -> dict[str, Any]:
        with Session(database) as session:
            return {name: read(session) for name, read in readers(tenant, batch_ids).items()}

    before = said()
    assert all(before.values())
    own = before["own cards"]
    assert own.sha256_before == own.sha256_after
    for which in ("mod(request_id, 3) = 1", "true"):
        write_as_older_groups(database, which)
        after = said()
        for name, what in before.items():
            assert after[name] == what, name
        assert reconcile(database).drifts == ()
        assert rebuild(database).num_corrected == 0
        assert audit(database).violations == []
