"""Contracts: the plan and the own prices that a tenant has, and the least that a month is billed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pipeline.billing.card_files import Multipliers, OverridesFile, check_exact
from pipeline.billing.cards_in_effect import find_rates
from pipeline.billing.plans import add_card, publish
from pipeline.billing.pricing import Rate
from pipeline.billing.rate_cards import check_currency
from pipeline.billing.rating import Rates
from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.tables import Contract, Meter, RateCard
from pipeline.tables.billing import DEFAULT_PLAN
from pipeline.tenancy import audit_log

#: Decimals of `tables.base.Money`.
_MONEY_DECIMALS: Final = 15
_MONEY_LIMIT: Final = Decimal(10) ** 20


class ContractError(UserError):
    """These can't be the terms of a contract."""


def make_contract(
    session: Session,
    tenant_id: str,
    *,
    plan: str = DEFAULT_PLAN,
    overrides: OverridesFile | None = None,
    commitment: Decimal | None = None,
    currency: str | None = None,
    effective_from: datetime | None = None,
) -> Contract:
    """The terms of a tenant from now on, or from a moment to come; they take the place of all before.

    What `overrides` leave out of a model is as on the card that would hold without them now, and stays so. Raises
    ContractError and RateCardError.
    """
    _check_plan(session, plan)
    check_commitment(commitment, currency)
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    if effective_from is not None and effective_from < now:
        raise ContractError(f"{effective_from.isoformat()} is past: a contract holds from now on, or later.")
    contract_id = new_id("con")
    contract = Contract(
        id=contract_id,
        tenant_id=tenant_id,
        plan=plan,
        overrides=f"contract {contract_id}" if overrides else None,  # which no card of a file can be called
        commitment=commitment,
        currency=currency,
        effective_from=effective_from or now,
    )
    session.add(contract)
    session.flush()
    session.refresh(contract)
    if overrides is not None:
        _publish_overrides(session, contract, overrides)
    audit_log.record(
        session,
        act="contract.make",
        object=contract.id,
        details={
            "tenant": tenant_id,
            "plan": plan,
            "commitment": "" if commitment is None else f"{commitment:f} {currency}",
            "overrides": sorted(overrides.models) if overrides else [],
        },
    )
    return contract


def list_contracts(session: Session, tenant_id: str | None = None) -> Sequence[Contract]:
    """By tenant, the latest to take effect first."""
    query = select(Contract).order_by(Contract.tenant_id, Contract.effective_from.desc(), Contract.created_at.desc())
    if tenant_id is not None:
        query = query.where(Contract.tenant_id == tenant_id)
    return session.execute(query).scalars().all()


def check_commitment(commitment: Decimal | None, currency: str | None) -> None:
    """Raises ContractError unless there are both, in a form that the table holds, or none."""
    if (commitment is None) != (currency is None):
        raise ContractError("Give a commitment and its currency together, or none.")
    if commitment is not None and currency is not None:
        check_currency(currency)
        check_money("commitment", commitment)


def fits_money(amount: Decimal) -> bool:
    """Whether it is an amount from 0 on that the tables hold exactly."""
    exponent = amount.as_tuple().exponent
    return isinstance(exponent, int) and -exponent <= _MONEY_DECIMALS and 0 <= amount < _MONEY_LIMIT


def check_money(name: str, amount: Decimal) -> None:
    """Raises ContractError for what is no positive amount that the tables hold exactly."""
    if not fits_money(amount) or not amount:
        raise ContractError(f"{name} is {amount}: give an amount above 0 with at most {_MONEY_DECIMALS} decimals.")


def _check_plan(session: Session, plan: str) -> None:
    is_known = select(RateCard.id).where(RateCard.plan == plan, RateCard.published_at.is_not(None)).limit(1)
    if plan != DEFAULT_PLAN and session.execute(is_known).first() is None:
        raise ContractError(f"Plan {plan!r} has no published card. `ryzanstein rates show` lists what there is.")


def _publish_overrides(session: Session, contract: Contract, overrides: OverridesFile) -> None:
    """A card of the contract's own: of each model that is overridden, every meter."""
    rates: dict[str, dict[Meter, Rate]] = {}
    bases: dict[str, Rates] = {}
    for model, prices in overrides.models.items():
        base = find_rates(session, tenant_id=contract.tenant_id, model=model, at=contract.effective_from)
        if base is None:
            raise ContractError(f"Model {model!r} has no price on plan {contract.plan!r} that could be overridden.")
        bases[model] = base
        rates[model] = {**base.by_meter, **prices.rates()}
    terms = {_terms(session.get_one(RateCard, base.rate_card_id)) for base in bases.values()}
    if len(terms) > 1:
        raise ContractError(
            f"{', '.join(bases)} have cards of different currencies, discounts or multipliers. Override models of one "
            "card, or publish a plan."
        )
    [(currency, discount, priority, flex)] = terms
    check_exact(rates, discount, Multipliers(priority=priority, flex=flex))
    card = add_card(
        session,
        rates,
        plan=contract.overrides,
        currency=currency,
        effective_from=None,
        batch_discount=discount,
        priority_multiplier=priority,
        flex_multiplier=flex,
    )
    publish(session, card)


def _terms(card: RateCard) -> tuple[str, Decimal, Decimal, Decimal]:
    return card.currency, card.batch_discount, card.priority_multiplier, card.flex_multiplier
