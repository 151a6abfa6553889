"""Rated lines of answers whose tokens always cost the same, which is what nearly all do.

What a token costs is told to the database once, and it multiplies: a recording has hundreds of lines, and to make each
of them here takes longer than to write them all. Products of decimals are exact on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol

from psycopg import Cursor

from pipeline.billing.ledger import post_receivable
from pipeline.billing.pricing import exact_sum
from pipeline.billing.rated_lines import transaction_key
from pipeline.billing.rating import Rates, TokenUsage
from pipeline.tables.arrays import numbers, words
from pipeline.tables.billing import Meter


class _Answer(Protocol):
    @property
    def request_id(self) -> int: ...
    @property
    def slice_id(self) -> int: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def usage(self) -> TokenUsage: ...


# A request always has lines of uncached input and output.
_INSERT: Final = """
    INSERT INTO rated_lines (request_id, meter, rate_card_id, ledger_transaction_id, quantity, unit_price, amount,
                             currency)
    SELECT o.request_id, m.meter, c.rate_card_id, t.id, m.quantity, m.unit_price, m.quantity * m.token_price, c.currency
    FROM unnest(%(ids)s::bigint[], %(cards)s::bigint[], %(uncached)s::bigint[], %(cached)s::bigint[],
                %(outputs)s::bigint[])
        AS o (request_id, card, uncached, cached, output)
    JOIN unnest(%(rate_card_ids)s::bigint[], %(keys)s::text[], %(currencies)s::text[],
                %(uncached_prices)s::numeric[], %(cached_prices)s::numeric[], %(output_prices)s::numeric[],
                %(uncached_token)s::numeric[], %(cached_token)s::numeric[], %(output_token)s::numeric[])
        WITH ORDINALITY
        AS c (rate_card_id, key, currency, uncached_price, cached_price, output_price, uncached_token, cached_token,
              output_token, card)
        ON c.card = o.card
    JOIN ledger_transactions t ON t.idempotency_key = c.key
    CROSS JOIN LATERAL (VALUES
        ('input_uncached', o.uncached, c.uncached_price, c.uncached_token),
        ('input_cached', o.cached, c.cached_price, c.cached_token),
        ('output', o.output, c.output_price, c.output_token)
    ) AS m (meter, quantity, unit_price, token_price)
    WHERE m.meter <> 'input_cached' OR m.quantity > 0
"""


def is_flat(rates: Rates) -> bool:
    """Whether a token of every meter always costs the same."""
    return not any(rates.needs_quantity_before(meter) for meter in Meter)


def write_flat_lines(
    cursor: Cursor[Any], answers: Sequence[_Answer], rates: Mapping[int, Rates], *, source: str
) -> None:
    """Write the lines of answers whose rates, by slice, are flat, and one ledger transaction per tenant and currency.

    As `write_lines` does; written twice, they are a UniqueViolation. Waits for no answer.
    """
    by_owner: dict[tuple[str, str], list[_Answer]] = defaultdict(list)
    for answer in answers:
        by_owner[answer.tenant_id, rates[answer.slice_id].currency].append(answer)
    #: The place of each pair of rates and key, from 1.
    cards: dict[tuple[int, str], int] = {}
    card_of: list[int] = []
    priced: list[_Answer] = []
    for (tenant_id, currency), owned in sorted(by_owner.items()):
        key = transaction_key(source, ((answer.request_id, 1) for answer in owned))
        amount = exact_sum(
            amount
            for slice_id, usages in _by_slice(owned).items()
            for amount in flat_amounts(rates[slice_id], usages).values()
        )
        post_receivable(cursor, tenant_id=tenant_id, currency=currency, amount=amount, idempotency_key=key)
        priced += owned
        card_of += [cards.setdefault((answer.slice_id, key), len(cards) + 1) for answer in owned]
    used = [(rates[slice_id], key) for slice_id, key in cards]
    cursor.execute(
        _INSERT,
        {
            "ids": numbers(answer.request_id for answer in priced),
            "cards": numbers(card_of),
            **columns(answer.usage for answer in priced),
            "rate_card_ids": numbers(one.rate_card_id for one, _ in used),
            "keys": words(key for _, key in used),
            "currencies": words(one.currency for one, _ in used),
            **_prices("uncached", Meter.INPUT_UNCACHED, used),
            **_prices("cached", Meter.INPUT_CACHED, used),
            **_prices("output", Meter.OUTPUT, used),
        },
    )


def flat_amounts(rates: Rates, usages: Sequence[TokenUsage]) -> dict[Meter, Decimal]:
    """What the tokens of several answers cost together, by meter; exactly what their lines come to."""
    tokens = {
        Meter.INPUT_UNCACHED: sum(usage.num_prompt_tokens - usage.num_cached_tokens for usage in usages),
        Meter.INPUT_CACHED: sum(usage.num_cached_tokens for usage in usages),
        Meter.OUTPUT: sum(usage.num_completion_tokens for usage in usages),
    }
    return {meter: rates.amount(meter, quantity) for meter, quantity in tokens.items()}


def columns(usages: Iterable[TokenUsage]) -> dict[str, str]:
    """Tokens of answers, as the parameters `uncached`, `cached` and `outputs`."""
    rows = [(usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_completion_tokens) for usage in usages]
    return {
        "uncached": numbers([prompt - cached for prompt, cached, _ in rows]),
        "cached": numbers([cached for _, cached, _ in rows]),
        "outputs": numbers([output for _, _, output in rows]),
    }


def _by_slice(answers: Sequence[_Answer]) -> dict[int, list[TokenUsage]]:
    found: dict[int, list[TokenUsage]] = defaultdict(list)
    for answer in answers:
        found[answer.slice_id].append(answer.usage)
    return found


def _prices(name: str, meter: Meter, used: Sequence[tuple[Rates, str]]) -> dict[str, str]:
    """Of 1,000,000 tokens before multipliers, and of one token after them."""
    return {
        f"{name}_prices": numbers(rates.by_meter[meter].unit_price for rates, _ in used),
        f"{name}_token": numbers(rates.amount(meter, 1) for rates, _ in used),
    }
