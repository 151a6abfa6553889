from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from answered import answer_requests, usage
from running_gateways import wait_for
from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.contracts import ContractError
from pipeline.billing.credits import (
    credit_balance,
    credit_left,
    credit_spent,
    grant_credit,
    limit_to_credit,
    settle_credit,
    tenants_with_credit,
)
from pipeline.billing.rate_cards import add_rate_card
from pipeline.tables.session import transaction

#: A token costs one.
MILLION = Decimal(10) ** 6

WAITING = """
    SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/models/tiny', 2048)")
    with transaction() as session:
        prices = dict.fromkeys(("input_price", "cached_input_price", "output_price"), MILLION)
        add_rate_card(session, "tiny", currency="USD", batch_discount=Decimal(0), **prices)
    return seed_tenant(database)


def grant(tenant: SeededTenant, amount: int, **options: object) -> str:
    with transaction() as session:
        return grant_credit(session, tenant.id, amount=Decimal(amount), currency="USD", reason="prepaid", **options).id  # type: ignore[arg-type]


def balance(tenant: SeededTenant) -> Decimal:
    with transaction() as session:
        return credit_balance(session, tenant.id, "USD")


def settle(tenant: SeededTenant) -> Decimal:
    with transaction() as session:
        return settle_credit(session, tenant.id, "USD")


def make_prepaid(tenant: SeededTenant) -> Decimal:
    with transaction() as session:
        return limit_to_credit(session, tenant.id, "USD").amount


def pass_three_hours(database: Engine) -> None:
    """Have all that is there be of three hours ago."""
    sql(database, "ALTER TABLE credit_grants DISABLE TRIGGER keep_row")
    moved = "created_at = created_at - interval '3 h'"
    sql(database, f"UPDATE credit_grants SET {moved}, expires_at = expires_at - interval '3 h'")
    for table in ("ledger_transactions", "budgets"):
        sql(database, f"UPDATE {table} SET {moved}")


def accounts(database: Engine) -> dict[str, Decimal]:
    rows = sql(
        database,
        "SELECT a.kind, sum(e.amount) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id GROUP BY 1",
    )
    return {kind: amount for kind, amount in rows if amount}


def test_credit_pays_for_what_is_used_after_it_was_granted(database: Engine, tenant: SeededTenant) -> None:
    answer_requests(database, tenant, [usage(5)])
    grant(tenant, 100)
    assert balance(tenant) == 100
    answer_requests(database, tenant, [usage(20, output=10)])
    assert balance(tenant) == 70
    assert (settle(tenant), settle(tenant)) == (30, 0)
    assert balance(tenant) == 70
    assert accounts(database) == {"receivable": 5, "revenue": -35, "credit": -70, "granted": 100}
    month = datetime.now(UTC).date().replace(day=1)
    with transaction() as session:
        assert credit_spent(session, tenant.id, "USD", month) == 30
        assert credit_spent(session, tenant.id, "EUR", month) == 0
        assert tenants_with_credit(session) == [(tenant.id, "USD")]


def test_what_is_used_beyond_all_credit_is_owed(database: Engine, tenant: SeededTenant) -> None:
    late, soon = grant(tenant, 10, priority=2), grant(tenant, 10, priority=1)
    answer_requests(database, tenant, [usage(14)])
    with transaction() as session:
        assert credit_left(session, tenant.id, "USD") == {soon: 0, late: 6}
    answer_requests(database, tenant, [usage(10)])
    assert settle(tenant) == 20
    assert balance(tenant) == 0
    assert accounts(database) == {"receivable": 4, "revenue": -24, "granted": 20}
    grant(tenant, 50)  # pays for nothing of before
    assert balance(tenant) == 50
    assert settle(tenant) == 0


def test_credit_that_expires_pays_for_what_was_used_before_and_for_nothing_after(
    database: Engine, tenant: SeededTenant
) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    grant_id = grant(tenant, 10, expires_at=expires_at)
    answer_requests(database, tenant, [usage(4)])
    pass_three_hours(database)
    answer_requests(database, tenant, [usage(4)])

    assert balance(tenant) == 0
    assert (settle(tenant), settle(tenant)) == (4, 0)
    assert accounts(database) == {"receivable": 4, "revenue": -8, "granted": 10, "expired": -6}
    assert sql(database, "SELECT grant_id FROM ledger_accounts WHERE kind = 'credit'") == [(grant_id,)]


def test_a_prepaid_tenant_loses_what_expires_of_the_credit_that_its_budget_was_made_of(
    database: Engine, tenant: SeededTenant
) -> None:
    grant(tenant, 10, expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert make_prepaid(tenant) == 10
    grant(tenant, 50)
    pass_three_hours(database)

    settle(tenant)

    assert sql(database, "SELECT amount FROM budgets") == [(50,)]


def test_what_had_expired_before_a_tenant_was_made_prepaid_is_not_taken_off_its_budget(
    database: Engine, tenant: SeededTenant
) -> None:
    grant(tenant, 10, expires_at=datetime.now(UTC) + timedelta(hours=1))
    pass_three_hours(database)
    grant(tenant, 50)
    assert make_prepaid(tenant) == 50

    settle(tenant)

    assert accounts(database) == {"credit": -50, "granted": 60, "expired": -10}
    assert sql(database, "SELECT amount FROM budgets") == [(50,)]


def test_who_is_made_prepaid_while_credit_is_granted_may_spend_it(database: Engine, tenant: SeededTenant) -> None:
    grant(tenant, 10)
    with transaction() as granting, ThreadPoolExecutor(1) as pool:
        grant_credit(granting, tenant.id, amount=Decimal(50), currency="USD", reason="prepaid")
        made = pool.submit(make_prepaid, tenant)
        wait_for(lambda: sql(database, WAITING) != [])
        granting.commit()
        assert made.result(30) == 60


def test_what_is_no_credit_is_refused(database: Engine, tenant: SeededTenant) -> None:
    with pytest.raises(ContractError, match="amount is 0"):
        grant(tenant, 0)
    with pytest.raises(ContractError, match="is past"):
        grant(tenant, 1, expires_at=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(ContractError, match="priority is -1"):
        grant(tenant, 1, priority=-1)
    assert sql(database, "SELECT count(*) FROM ledger_transactions") == [(0,)]
