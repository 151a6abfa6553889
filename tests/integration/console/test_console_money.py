"""Costs, invoices and budgets in the console."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

from console_pages import Person
from rolled_up_usage import add_usage
from running_gateways import Tenant
from seeds import SeededTenant, seed_batch, seed_model, sql
from sqlalchemy import Engine

from pipeline.billing.budgets import Scope, list_budgets, set_budget
from pipeline.billing.invoices import create_invoices
from pipeline.billing.reports import Month
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries


def seeded(database: Engine, tenant: Tenant) -> SeededTenant:
    [[key_id]] = sql(
        database, "SELECT id FROM api_keys WHERE tenant_id = :id ORDER BY created_at LIMIT 1", id=tenant.id
    )
    return SeededTenant(tenant.id, key_id)


def budget_of(tenant: Tenant, amount: str = "10") -> str:
    with transaction() as session:
        return set_budget(session, Scope(tenant_id=tenant.id), currency="USD", amount=Decimal(amount)).id


def test_costs_are_exact_by_line_item_and_currency(
    database: Engine, acme: Tenant, enter: Callable[..., Person]
) -> None:
    add_usage(database, acme, model="large", tokens=(3000, 200, 40), amount="1234.000000123")
    add_usage(database, acme, model="tiny", tokens=(1, 0, 7), amount="0.1")
    add_usage(database, acme, model="tiny", tokens=(1, 0, 5), amount="12", currency="JPY")
    add_usage(database, acme, model="new", tokens=(1, 2, 3), currency="")
    page = enter(acme).page("/console/costs")
    assert "Month to date 1,234.100000123 USD" in page
    assert "Month to date 12 JPY" in page
    assert "large, output_tokens 40 1,234.000000123 USD" in page
    assert "6 tokens have no price yet" in page


def test_a_month_without_costs_says_so_and_one_to_come_is_refused(enter: Callable[..., Person]) -> None:
    person = enter("acme")
    assert "Nothing was billed in 2025-01" in person.page("/console/costs?month=2025-01")
    for month in ("9999-12", "2026-13", "x", "0001-01"):
        assert "give a" in person.page(f"/console/costs?month={month}", status=400)


def test_invoices_are_listed_and_downloaded_by_keys_of_the_whole_tenant_that_may(
    database: Engine, acme: Tenant, enter: Callable[..., Person]
) -> None:
    seed_model(database)
    sql(
        database,
        "INSERT INTO usage_events (request_id, meter, quantity, tenant_id, api_key_id, batch_id, model, group_id,"
        " engine_ms) VALUES (1, 'output', 5, :tenant, :key, 'b', 'tiny', 'g', 1)",
        tenant=acme.id,
        key=seeded(database, acme).api_key_id,
    )
    sql(
        database,
        "INSERT INTO rated_lines (request_id, meter, rate_card_id, ledger_transaction_id, quantity, unit_price, amount,"
        " currency) VALUES (1, 'output', 1, 1, 5, 1, 5, 'USD')",
    )
    now = datetime.now(UTC)
    with transaction() as session:
        [invoice] = create_invoices(session, acme.id, Month.of(now), now)
    person = enter(acme)
    assert f"{Month.of(now)} – draft – not issued" in person.page("/console/costs")
    answer = person.get(f"/console/invoices/{invoice.id}/csv")
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]

    assert person.get(f"/console/invoices/{invoice.id}/exe").status_code in (400, 404)
    assert enter("globex").get(f"/console/invoices/{invoice.id}/csv").status_code == 404
    of_project = enter("acme", project="search")
    assert of_project.get(f"/console/invoices/{invoice.id}/csv").status_code == 403
    assert "Invoices" not in of_project.page("/console/costs")
    assert enter("acme", scopes=["usage:read"]).get(f"/console/invoices/{invoice.id}/csv").status_code == 403


def test_a_budget_shows_what_is_left_and_what_it_has_paused(
    database: Engine, acme: Tenant, enter: Callable[..., Person]
) -> None:
    seed_model(database)
    budget_id = budget_of(acme)
    sql(database, "UPDATE budget_uses SET spent = 7.5, held = 1.5 WHERE budget_id = :id", id=budget_id)
    batch_id = seed_batch(database, seeded(database, acme), [1])
    sql(database, "UPDATE batches SET pause_reason = :b, paused_at = now() WHERE id = :id", b=budget_id, id=batch_id)
    page = enter(acme).page("/console/budgets")
    assert "the whole tenant, a month 10.00 USD batches pause 7.50 USD 1.50 USD 1.00 USD" in page
    assert "90% 1 batch" in page
    assert "No budgets" in enter("globex").page("/console/budgets")
    assert "No budgets" in enter("acme", project="search").page("/console/budgets")


def test_tenants_set_no_budgets(acme: Tenant, enter: Callable[..., Person]) -> None:
    budget_id = budget_of(acme)
    person = enter(acme)
    assert "Set the budget" not in person.page("/console/budgets")
    assert person.post("/console/budgets", tenant="acme", amount="1", currency="USD").status_code == 403
    assert person.post(f"/console/budgets/{budget_id}/remove").status_code == 403
    with transaction() as session:
        assert [state.budget.amount for state in list_budgets(session)] == [Decimal(10)]


def test_operators_set_and_remove_budgets_of_any_tenant_and_the_log_says_who(
    acme: Tenant, operate: Callable[[], Person]
) -> None:
    operator = operate()
    given = {"tenant": "acme", "amount": "1,000.50", "currency": "eur", "kind": "soft", "period": "total"}
    assert operator.post("/console/budgets", **given).status_code == 303
    page = operator.page("/console/budgets")
    assert "acme the whole tenant, in total 1,000.50 EUR alerts" in page
    with transaction() as session:
        [state] = list_budgets(session)
        [entry] = list_entries(session, act="budget")
        assert entry.actor.startswith("key_")
    assert operator.post(f"/console/budgets/{state.budget.id}/remove").status_code == 303
    assert "No budgets" in operator.page("/console/budgets")


def test_what_can_be_no_budget_is_said_with_what_was_given(acme: Tenant, operate: Callable[[], Person]) -> None:
    operator = operate()
    for given, said in (
        ({"tenant": "nobody"}, "nobody"),
        ({"amount": "much"}, "&#39;much&#39; is no amount"),
        ({"amount": "-1"}, "is no amount"),
        ({"currency": "DOLLARS"}, "DOLLARS"),
        ({"key": "key_of_others"}, "key_of_others"),
        ({"project": "p", "key": "k"}, "not of both"),
    ):
        answer = operator.post("/console/budgets", **{"tenant": "acme", "amount": "1", "currency": "USD", **given})
        assert answer.status_code == 400
        assert said in answer.text
    assert operator.post("/console/budgets/budget_none/remove").status_code == 400
