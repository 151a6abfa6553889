"""Usage and prices as groups of older versions wrote them: as usage events and rated lines."""

from __future__ import annotations

from seeds import sql
from sqlalchemy import Engine

_EVENTS = """
    INSERT INTO usage_events (request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class,
                              model, group_id, engine_ms, occurred_at)
    SELECT a.request_id, m.meter, m.quantity, a.tenant_id, b.project_id, b.api_key_id, a.batch_id, b.service_class,
           b.model, a.group_id, CASE m.meter WHEN 'output' THEN a.engine_ms ELSE 0 END, a.created_at
    FROM results a JOIN batches b ON b.id = a.batch_id, LATERAL (VALUES
        ('input_uncached', a.num_uncached_tokens), ('input_cached', a.num_cached_tokens),
        ('output', a.num_output_tokens)
    ) AS m (meter, quantity)
    WHERE a.tenant_id IS NOT NULL AND (m.meter <> 'input_cached' OR m.quantity > 0) AND {which}
"""
_LINES = """
    INSERT INTO rated_lines (request_id, meter, rate_card_id, ledger_transaction_id, quantity, unit_price, amount,
                             currency, rated_at)
    SELECT a.request_id, m.meter, a.rate_card_id, a.ledger_transaction_id, m.quantity, r.unit_price, m.amount,
           k.currency, a.created_at
    FROM results a JOIN batches b ON b.id = a.batch_id JOIN rate_cards k ON k.id = a.rate_card_id, LATERAL (VALUES
        ('input_uncached', a.num_uncached_tokens, a.uncached_amount),
        ('input_cached', a.num_cached_tokens, a.cached_amount), ('output', a.num_output_tokens, a.output_amount)
    ) AS m (meter, quantity, amount) JOIN rates r ON r.meter = m.meter
    WHERE r.rate_card_id = k.id AND r.model = b.model AND (m.meter <> 'input_cached' OR m.quantity > 0) AND {which}
"""
_EMPTY = """
    UPDATE results a SET tenant_id = NULL, num_uncached_tokens = NULL, num_cached_tokens = NULL,
        num_output_tokens = NULL, engine_ms = NULL, rate_card_id = NULL, ledger_transaction_id = NULL,
        uncached_amount = NULL, cached_amount = NULL, output_amount = NULL
    WHERE {which}
"""


def write_as_older_groups(database: Engine, which: str = "true") -> None:
    """Take usage and prices out of the rows of results `a`, and have them be events and lines."""
    for statement in (_EVENTS, _LINES, _EMPTY):
        sql(database, statement.format(which=which))
