from __future__ import annotations

from decimal import Decimal

import pytest
from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.budgets import Scope, set_budget
from pipeline.errors import UserError
from pipeline.tables.session import transaction


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    return seed_tenant(database)


def budget(tenant: SeededTenant, amount: Decimal, currency: str = "USD", **options: object) -> str:
    with transaction() as session:
        return set_budget(session, Scope(tenant_id=tenant.id), currency=currency, amount=amount, **options).id  # type: ignore[arg-type]


@pytest.mark.parametrize("amount", ["0", "0.000000000000001", "25000000000000", "99999999999999999999.999999999999999"])
def test_every_amount_that_the_tables_hold_can_be_a_budget(database: Engine, tenant: SeededTenant, amount: str) -> None:
    budget(tenant, Decimal(amount), "IDR")
    assert sql(database, "SELECT amount FROM budgets") == [(Decimal(amount),)]


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        ("-1", "USD", "-1 is no amount"),
        ("NaN", "USD", "NaN is no amount"),
        ("1e20", "USD", r"1E\+20 is no amount"),
        ("0.0000000000000001", "USD", "1E-16 is no amount"),
        ("1", "U1D", "'U1D' is no currency"),
    ],
)
def test_what_is_no_amount_of_a_currency_is_refused(
    tenant: SeededTenant, amount: str, currency: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        budget(tenant, Decimal(amount), currency)
