"""Answers as rows: each has what was used for it, and what it costs where every token costs the same.

One statement writes them and posts to the ledger what they cost together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from psycopg import Cursor

from pipeline.billing.charging import Charged
from pipeline.billing.ledger import POSTED, posting_values
from pipeline.jobs.lines import output_line
from pipeline.tables.arrays import numbers, words

if TYPE_CHECKING:
    from pipeline.jobs.recording import RequestOutcome

# Under the lease that the writer says it has, so that an audit finds what a lease that was lost has written. What one
# slice has in common is told, and looked up, once.
_INSERT: Final = f"""
    {POSTED}, slice AS MATERIALIZED (
        SELECT s.*, posted.id AS ledger_transaction_id
        FROM unnest(%(slice_ids)s::bigint[], %(epochs)s::bigint[], %(batch_ids)s::text[], %(tenant_ids)s::text[],
                    %(card_ids)s::bigint[], %(keys)s::text[], %(uncached_prices)s::numeric[],
                    %(cached_prices)s::numeric[], %(output_prices)s::numeric[])
            AS s (id, lease_epoch, batch_id, tenant_id, rate_card_id, key, uncached_price, cached_price, output_price)
        LEFT JOIN posted ON posted.idempotency_key = s.key
    )
    INSERT INTO results (request_id, batch_id, body, num_line_bytes, slice_id, lease_epoch, group_id, output_token_ids,
                         tenant_id, num_uncached_tokens, num_cached_tokens, num_output_tokens, engine_ms,
                         rate_card_id, ledger_transaction_id, uncached_amount, cached_amount, output_amount)
    SELECT o.request_id, s.batch_id, o.body, o.num_line_bytes, s.id, s.lease_epoch, %(group_id)s, o.output_token_ids,
           s.tenant_id, o.uncached, o.cached, o.output, o.engine_ms, s.rate_card_id, s.ledger_transaction_id,
           o.uncached * s.uncached_price, o.cached * s.cached_price, o.output * s.output_price
    FROM unnest(%(ids)s::bigint[], %(slice_id_of)s::bigint[], %(bodies)b::text[], %(sizes)s::bigint[],
                %(token_ids)b::bytea[], %(uncached)s::bigint[], %(cached)s::bigint[], %(output)s::bigint[],
                %(engine_ms)s::bigint[])
        AS o (request_id, slice_id, body, num_line_bytes, output_token_ids, uncached, cached, output, engine_ms)
    JOIN slice s ON s.id = o.slice_id
"""  # noqa: S608 - a constant


def insert_answers(cursor: Cursor[Any], succeeded: Sequence[RequestOutcome], charged: Charged) -> None:
    """Write answers with their usage and prices, and post the sums of these. Waits for no answer.

    One that is there already is a UniqueViolation.
    """
    slices = list({outcome.claimed.id: outcome.claimed for outcome in succeeded}.values())
    of_slices = [charged.prices.get(claimed.id) for claimed in slices]
    usages = [outcome.usage for outcome in succeeded if outcome.usage is not None]
    bodies = [outcome.body or "" for outcome in succeeded]
    cursor.execute(
        _INSERT,
        {
            **posting_values(charged.sums),
            "group_id": slices[0].group_id,
            "slice_ids": numbers([claimed.id for claimed in slices]),
            "epochs": numbers([claimed.lease_epoch for claimed in slices]),
            "batch_ids": words([claimed.batch_id for claimed in slices]),
            "tenant_ids": words([claimed.tenant_id for claimed in slices]),
            "card_ids": numbers([price and price.rate_card_id for price in of_slices]),
            "keys": words(["" if price is None else price.idempotency_key for price in of_slices]),
            "uncached_prices": numbers([price and price.uncached for price in of_slices]),
            "cached_prices": numbers([price and price.cached for price in of_slices]),
            "output_prices": numbers([price and price.output for price in of_slices]),
            "ids": numbers([outcome.request_id for outcome in succeeded]),
            "slice_id_of": numbers([outcome.claimed.id for outcome in succeeded]),
            "bodies": bodies,
            "sizes": numbers(
                [
                    len(output_line(outcome.request_id, outcome.custom_id, body))
                    for outcome, body in zip(succeeded, bodies, strict=True)
                ]
            ),
            "token_ids": [outcome.output_token_ids for outcome in succeeded],
            "uncached": numbers([usage.num_uncached_tokens for usage in usages]),
            "cached": numbers([usage.num_cached_tokens for usage in usages]),
            "output": numbers([usage.num_completion_tokens for usage in usages]),
            "engine_ms": numbers([usage.engine_ms for usage in usages]),
        },
    )
