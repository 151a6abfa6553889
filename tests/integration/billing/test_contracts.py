from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pipeline.billing.card_files import read_card_file, read_overrides_file
from pipeline.billing.cards_in_effect import find_rates, priced_models
from pipeline.billing.contracts import ContractError, list_contracts, make_contract
from pipeline.billing.plans import add_draft, publish
from pipeline.tables import Meter
from pipeline.tables.session import transaction

DEFAULT = """
plan: default
currency: USD
batch_discount: 0.5
models: {tiny: {input: 1, cached_input: 0.5, output: 4}, large: {input: 2, output: 8}}
"""
GOLD = """
plan: gold
currency: USD
models: {tiny: {input: 0.9, output: 3}}
"""


@pytest.fixture
def tenant(database: Engine) -> SeededTenant:
    with transaction() as session:
        for card in (DEFAULT, GOLD):
            publish(session, add_draft(session, read_card_file(card)))
    return seed_tenant(database)


def price(session: Session, tenant: SeededTenant, model: str, meter: Meter = Meter.OUTPUT) -> Decimal | None:
    rates = find_rates(session, tenant_id=tenant.id, model=model)
    assert rates is not None
    return rates.by_meter[meter].unit_price


def test_a_contract_chooses_the_plan_and_the_default_plan_prices_the_rest(
    database: Engine, tenant: SeededTenant
) -> None:
    other = seed_tenant(database, "globex")
    with transaction() as session:
        make_contract(session, tenant.id, plan="gold")
        assert (price(session, tenant, "tiny"), price(session, tenant, "large")) == (3, 8)
        assert price(session, other, "tiny") == 4
        make_contract(session, tenant.id)
        assert price(session, tenant, "tiny") == 4
        assert [contract.plan for contract in list_contracts(session, tenant.id)] == ["default", "gold"]


def test_overrides_go_before_the_plan_and_keep_the_rest_of_the_card(database: Engine, tenant: SeededTenant) -> None:
    overrides = read_overrides_file("models: {tiny: {output: 2.5}}")
    with transaction() as session:
        make_contract(session, tenant.id, plan="gold", overrides=overrides)
        publish(session, add_draft(session, read_card_file(GOLD.replace("0.9", "0.8"))))
        assert price(session, tenant, "tiny") == Decimal("2.5")
        assert price(session, tenant, "tiny", Meter.INPUT_UNCACHED) == Decimal("0.9")
        assert price(session, tenant, "large") == 8
        make_contract(session, tenant.id, plan="gold")
        assert price(session, tenant, "tiny") == 3


def test_a_contract_may_begin_later(database: Engine, tenant: SeededTenant) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with transaction() as session:
        make_contract(session, tenant.id, plan="gold", effective_from=tomorrow)
        assert price(session, tenant, "tiny") == 4
        rates = find_rates(session, tenant_id=tenant.id, model="tiny", at=tomorrow)
        assert rates is not None
        assert rates.plan == "gold"


def test_what_can_not_be_a_contract_is_refused(database: Engine, tenant: SeededTenant) -> None:
    with transaction() as session:
        with pytest.raises(ContractError, match="Plan 'silver' has no published card"):
            make_contract(session, tenant.id, plan="silver")
        with pytest.raises(ContractError, match="is past"):
            make_contract(session, tenant.id, effective_from=datetime(2026, 1, 1, tzinfo=UTC))
        with pytest.raises(ContractError, match="together"):
            make_contract(session, tenant.id, commitment=Decimal(5))
        with pytest.raises(ContractError, match="commitment is 0"):
            make_contract(session, tenant.id, commitment=Decimal(0), currency="USD")
        unknown = read_overrides_file("models: {huge: {output: 1}}")
        with pytest.raises(ContractError, match="'huge' has no price"):
            make_contract(session, tenant.id, overrides=unknown)
        both = read_overrides_file("models: {tiny: {output: 1}, large: {output: 1}}")
        with pytest.raises(ContractError, match="different currencies, discounts"):
            make_contract(session, tenant.id, plan="gold", overrides=both)


def test_a_contract_is_never_changed_and_is_in_the_audit_log(database: Engine, tenant: SeededTenant) -> None:
    with transaction() as session:
        contract = make_contract(session, tenant.id, plan="gold", commitment=Decimal("99.5"), currency="USD")
    for change in ("UPDATE contracts SET plan = 'default'", "DELETE FROM contracts"):
        with pytest.raises(DBAPIError, match="rows of contracts are never changed"):
            sql(database, change)
    [details] = sql(database, "SELECT details FROM audit_log WHERE act = 'contract.make'")[0]
    assert details == {"tenant": tenant.id, "plan": "gold", "commitment": "99.5 USD", "overrides": []}
    assert sql(database, "SELECT id, commitment FROM contracts") == [(contract.id, Decimal("99.5"))]


def test_a_model_is_priced_for_whom_its_card_holds(database: Engine, tenant: SeededTenant) -> None:
    other = seed_tenant(database, "globex")
    for name in ("tiny", "small"):
        sql(database, "INSERT INTO served_models (name, path, context_length) VALUES (:name, '/', 2048)", name=name)
    with transaction() as session:
        card = publish(session, add_draft(session, read_card_file(GOLD.replace("tiny", "small"))))
        make_contract(session, tenant.id, plan="gold")
        assert priced_models(session, tenant.id) == {"tiny", "small"}
        assert priced_models(session, other.id) == {"tiny"}
        assert priced_models(session, other.id, card.id) == {"small"}
