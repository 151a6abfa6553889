"""Plans and the versions of their cards: drafts, and what is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, null, select, update
from sqlalchemy.orm import Session

from pipeline.billing.card_files import CardFile
from pipeline.billing.pricing import Rate
from pipeline.billing.rate_cards import RateCardError
from pipeline.tables import Meter, Pricing, RateCard
from pipeline.tables import Rate as RateRow
from pipeline.tenancy import audit_log


def add_draft(session: Session, card: CardFile) -> RateCard:
    """A draft of the next version of its plan; nothing is rated by it until it is published."""
    return add_card(
        session,
        card.rates(),
        plan=card.plan,
        currency=card.currency,
        effective_from=card.effective_from,
        batch_discount=card.batch_discount,
        priority_multiplier=card.multipliers.priority,
        flex_multiplier=card.multipliers.flex,
    )


def add_card(session: Session, rates: Mapping[str, Mapping[Meter, Rate]], **columns: Any) -> RateCard:
    """A draft with these columns of RateCard."""
    # Said in the statement: a value that is left out would be now.
    columns["effective_from"] = columns.get("effective_from") or null()
    card_id = session.execute(
        insert(RateCard).values(**columns, published_at=null()).returning(RateCard.id)
    ).scalar_one()
    session.execute(
        insert(RateRow),
        [
            {"rate_card_id": card_id, "model": model, "meter": meter, **_columns(rate)}
            for model, by_meter in rates.items()
            for meter, rate in by_meter.items()
        ],
    )
    return session.get_one(RateCard, card_id, populate_existing=True)


def publish(session: Session, card: RateCard, *, is_never_in_effect: bool = False) -> RateCard:
    """Publish a draft; from its `effective_from` on, or from now, the models that it prices have these prices.

    With `is_never_in_effect`, it rates nothing by itself unless it has an `effective_from`: for re-rating alone, where
    that may be past. Raises RateCardError for one that is published, or that would change what was rated already.
    """
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    if card.published_at is not None:
        raise RateCardError(f"Version {card.version} of plan {card.plan!r} is published already.")
    effective_from: datetime | None = card.effective_from
    if effective_from is None and not is_never_in_effect:
        effective_from = now
    if effective_from is not None and effective_from < now and not is_never_in_effect:
        raise RateCardError(
            f"effective_from is {effective_from.isoformat()}, which is past: usage since then keeps its price. Leave "
            "it out, or rate a month again with `ryzanstein bill rerate`."
        )
    session.execute(
        update(RateCard).where(RateCard.id == card.id).values(published_at=now, effective_from=effective_from)
    )
    session.refresh(card)
    digest = card.sha256.hex() if card.sha256 else ""
    audit_log.record(
        session,
        act="rates.publish",
        object=f"{card.plan} {card.version}",
        details={"rate_card": card.id, "sha256": digest},
    )
    return card


def remove_draft(session: Session, card: RateCard) -> None:
    """Its rates go with it. The database refuses to remove one that is published."""
    session.delete(card)
    session.flush()


def find_card(session: Session, plan: str, version: int | None = None) -> RateCard:
    """This version of a plan, or its newest. Raises RateCardError."""
    query = select(RateCard).where(RateCard.plan == plan).order_by(RateCard.version.desc()).limit(1)
    if version is not None:
        query = query.where(RateCard.version == version)
    card = session.execute(query).scalar_one_or_none()
    if card is None:
        wanted = f"plan {plan!r}" if version is None else f"version {version} of plan {plan!r}"
        raise RateCardError(f"There is no {wanted}. `ryzanstein rates show` lists what there is.")
    return card


def list_cards(session: Session) -> Sequence[RateCard]:
    """By plan, the newest version first."""
    return session.execute(select(RateCard).order_by(RateCard.plan, RateCard.version.desc())).scalars().all()


def rates_of_card(session: Session, card: RateCard) -> Sequence[RateRow]:
    """By model and meter."""
    query = select(RateRow).where(RateRow.rate_card_id == card.id).order_by(RateRow.model, RateRow.meter)
    return session.execute(query).scalars().all()


def _columns(rate: Rate) -> dict[str, Any]:
    is_tiered = rate.pricing in (Pricing.GRADUATED, Pricing.VOLUME)
    return {
        "pricing": rate.pricing,
        "unit_price": rate.unit_price,
        "package_size": rate.package_size or None,
        "tiers": [{"up_to": tier.up_to, "price": f"{tier.price:f}"} for tier in rate.tiers] if is_tiered else None,
        "minimum": rate.minimum,
    }
