"""Rate cards: what a model's tokens cost, from a moment on."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.settings import Settings
from pipeline.tables import RateCard
from pipeline.tenancy import audit_log

#: As in `tables.base.Price`: what does not fit is refused, never rounded.
_PRICE_DECIMALS = 6
_PRICE_LIMIT = Decimal(10) ** 14
_DISCOUNT_DECIMALS = 3


class RateCardError(UserError):
    """A rate card can't be made of these prices."""


def add_rate_card(
    session: Session,
    model: str,
    *,
    currency: str,
    input_price: Decimal,
    cached_input_price: Decimal,
    output_price: Decimal,
    batch_discount: Decimal,
) -> RateCard:
    """A card that holds from now on; usage before keeps the card that it was rated with.

    Prices are of 1,000,000 tokens, `batch_discount` is the part (0 to 1) that a batch saves. Raises RateCardError for
    what the table can't hold exactly.
    """
    if not model.strip() or "\x00" in model:
        raise RateCardError(f"{model!r} can't be the name of a model.")
    check_currency(currency)
    prices = {"input_price": input_price, "cached_input_price": cached_input_price, "output_price": output_price}
    for name, price in prices.items():
        if not _fits(price, _PRICE_DECIMALS, _PRICE_LIMIT):
            raise RateCardError(f"{name} is {price}: give a price from 0 on with at most {_PRICE_DECIMALS} decimals.")
    if not _fits(batch_discount, _DISCOUNT_DECIMALS, Decimal(1), inclusive=True):
        raise RateCardError(
            f"batch_discount is {batch_discount}: give a part from 0 to 1 with at most {_DISCOUNT_DECIMALS} decimals."
        )
    card = RateCard(
        model=model,
        currency=currency,
        input_price=input_price,
        cached_input_price=cached_input_price,
        output_price=output_price,
        batch_discount=batch_discount,
        # Not now(), the start of the transaction: two cards in one transaction follow each other.
        effective_from=func.clock_timestamp(),
    )
    session.add(card)
    session.flush()
    session.refresh(card)
    audit_log.record(session, act="rates.set", object=model, details={"rate_card": card.id, "version": card.version})
    return card


def check_currency(currency: str) -> None:
    """Raises RateCardError for what is no code of a currency."""
    if len(currency) != 3 or not currency.isascii() or not currency.isalpha() or not currency.isupper():
        raise RateCardError(f"{currency!r} is no currency: give a code of ISO 4217, such as USD.")


def ensure_rate_card(session: Session, model: str, settings: Settings) -> RateCard:
    """The card of `model` that holds now; one with the default prices of `settings` is made if it has none."""
    # Two that start at once must not both find none.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"rate card of {model}", 0))))
    return current_rate_card(session, model) or add_rate_card(
        session,
        model,
        currency=settings.default_currency,
        input_price=settings.default_input_price,
        cached_input_price=settings.default_cached_input_price,
        output_price=settings.default_output_price,
        batch_discount=settings.default_batch_discount,
    )


def current_rate_card(session: Session, model: str) -> RateCard | None:
    """The card of this one model that holds now by the database's clock; None where it has none.

    Plans of many models, and contracts, are another matter: `cards_in_effect` looks at all of them.
    """
    return session.execute(
        select(RateCard)
        .where(RateCard.model == model, RateCard.effective_from <= func.clock_timestamp())
        .order_by(RateCard.effective_from.desc())
        .limit(1)
    ).scalar_one_or_none()


def list_rate_cards(session: Session, model: str | None = None) -> Sequence[RateCard]:
    """Cards of one model alone, of this or of all, by model, the newest first."""
    query = select(RateCard).where(RateCard.model.is_not(None)).order_by(RateCard.model, RateCard.effective_from.desc())
    if model is not None:
        query = query.where(RateCard.model == model)
    return session.execute(query).scalars().all()


def _fits(value: Decimal, decimals: int, limit: Decimal, *, inclusive: bool = False) -> bool:
    if not value.is_finite() or value < 0 or value > limit or (value == limit and not inclusive):
        return False
    try:
        return value == value.quantize(Decimal(1).scaleb(-decimals))
    except InvalidOperation:
        return False
