from __future__ import annotations

from decimal import Decimal

import structlog
from answered import answer_requests, usage
from seeds import seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.credits import grant_credit
from pipeline.billing.nightly import look_at_books
from pipeline.billing.rate_cards import add_rate_card
from pipeline.tables.session import transaction


def test_every_night_credit_is_settled_and_what_differs_is_an_error(database: Engine) -> None:
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 2048)")
    tenant = seed_tenant(database)
    prices = dict.fromkeys(("input_price", "cached_input_price", "output_price"), Decimal(10) ** 6)
    with transaction() as session:
        add_rate_card(session, "tiny", currency="USD", batch_discount=Decimal(0), **prices)
        grant_credit(session, tenant.id, amount=Decimal(5), currency="USD", reason="prepaid")
    answer_requests(database, tenant, [usage(3, output=4)])
    with structlog.testing.capture_logs() as logs:
        assert look_at_books() == {"months": 2, "credits": 1, "drifts": 0}
    assert logs == []
    spent = "SELECT sum(e.amount) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id WHERE a.kind = "
    assert sql(database, f"{spent} 'receivable'") == [(2,)]

    sql(database, "UPDATE results SET output_amount = output_amount + 1")
    with structlog.testing.capture_logs() as logs:
        assert look_at_books()["drifts"] == 2
    assert [(log["log_level"], log["check"], log["drift"], log["unit"]) for log in logs] == [
        ("error", "rated_amount", "1", "USD"),
        ("error", "ledger", "1", "USD"),
    ]


def test_a_tenant_whose_credit_can_not_be_settled_keeps_no_other_waiting(database: Engine) -> None:
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 2048)")
    tenants = [seed_tenant(database, name) for name in ("acme", "globex")]
    prices = dict.fromkeys(("input_price", "cached_input_price", "output_price"), Decimal(10) ** 6)
    with transaction() as session:
        add_rate_card(session, "tiny", currency="USD", batch_discount=Decimal(0), **prices)
        for tenant in tenants:
            grant_credit(session, tenant.id, amount=Decimal(5), currency="USD", reason="prepaid")
    for tenant in tenants:
        answer_requests(database, tenant, [usage(3)])
    first = min(tenant.id for tenant in tenants)
    sql(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION USING ERRCODE = ''55P03'', MESSAGE = ''locked''; END'",
    )
    sql(
        database,
        "CREATE TRIGGER refuse BEFORE INSERT ON ledger_transactions FOR EACH ROW"
        f" WHEN (NEW.kind = 'credit_spent' AND NEW.tenant_id = '{first}') EXECUTE FUNCTION refuse()",
    )
    with structlog.testing.capture_logs() as logs:
        assert look_at_books() == {"months": 2, "credits": 1, "drifts": 0}
    assert [(log["event"], log["tenant"]) for log in logs] == [("credit not settled", first)]
    settled = sql(database, "SELECT tenant_id FROM ledger_transactions WHERE kind = 'credit_spent'")
    assert settled == [(max(tenant.id for tenant in tenants),)]
