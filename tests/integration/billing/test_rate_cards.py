from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine

from pipeline.billing.rate_cards import (
    RateCardError,
    add_rate_card,
    current_rate_card,
    ensure_rate_card,
    list_rate_cards,
)
from pipeline.settings import get_settings
from pipeline.tables.session import transaction

PRICES: dict[str, Any] = {
    "currency": "EUR",
    "input_price": Decimal("0.10"),
    "cached_input_price": Decimal("0.05"),
    "output_price": Decimal("0.400001"),
    "batch_discount": Decimal("0.5"),
}


def test_a_card_keeps_its_prices_exactly(database: Engine) -> None:
    with transaction() as session:
        add_rate_card(session, "tiny", **PRICES)
    with transaction() as session:
        card = current_rate_card(session, "tiny")
        assert card is not None
        assert {name: getattr(card, name) for name in PRICES} == PRICES


def test_a_change_of_price_is_a_new_card_and_the_old_one_stays(database: Engine) -> None:
    with transaction() as session:
        add_rate_card(session, "tiny", **PRICES)
        add_rate_card(session, "tiny", **PRICES | {"output_price": Decimal(2)})
        add_rate_card(session, "other", **PRICES)

        current = current_rate_card(session, "tiny")
        assert current is not None
        assert current.output_price == 2
        assert [card.output_price for card in list_rate_cards(session, "tiny")] == [Decimal(2), Decimal("0.400001")]
        assert [card.model for card in list_rate_cards(session)] == ["other", "tiny", "tiny"]


def test_a_model_without_a_card_has_none(database: Engine) -> None:
    with transaction() as session:
        assert current_rate_card(session, "tiny") is None


def test_the_default_card_is_made_once_and_never_replaces_another(database: Engine) -> None:
    settings = get_settings()
    with transaction() as session:
        made = ensure_rate_card(session, "tiny", settings)
        assert made.input_price == settings.default_input_price
        assert ensure_rate_card(session, "tiny", settings).id == made.id
        other = add_rate_card(session, "other", **PRICES)
        assert ensure_rate_card(session, "other", settings).id == other.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_price": Decimal("-1")}, "input_price is -1"),
        ({"output_price": Decimal("0.0000001")}, "output_price is 1E-7: .* at most 6 decimals"),
        ({"cached_input_price": Decimal("NaN")}, "cached_input_price is NaN"),
        ({"input_price": Decimal("1e14")}, "input_price"),
        ({"batch_discount": Decimal("1.001")}, "from 0 to 1"),
        ({"batch_discount": Decimal("0.3333")}, "at most 3 decimals"),
        ({"currency": "usd"}, "'usd' is no currency"),
    ],
)
def test_what_the_table_can_not_hold_exactly_is_refused(database: Engine, change: dict[str, Any], message: str) -> None:
    with transaction() as session, pytest.raises(RateCardError, match=message):
        add_rate_card(session, "tiny", **PRICES | change)
