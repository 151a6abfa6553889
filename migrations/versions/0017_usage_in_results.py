"""Usage and flat prices in the rows of results

What was used for an answer, and what it costs where a token always costs the same, is written into its row of
`results`. Usage events and rated lines stay as they are: processes of the version before go on writing them, and rated
lines keep every other price. Views give the one form of all of it that readers want. No row is moved.

Processes of the version before do not read what those of this one write: have control and gateways be of this version
before the groups.

Revision 0017, after 0016.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_COLUMNS = {
    "tenant_id": "text",
    "num_uncached_tokens": "bigint",
    "num_cached_tokens": "bigint",
    "num_output_tokens": "bigint",
    "engine_ms": "bigint",
    "rate_card_id": "bigint",
    "ledger_transaction_id": "bigint",
    "uncached_amount": "numeric(38, 15)",
    "cached_amount": "numeric(38, 15)",
    "output_amount": "numeric(38, 15)",
}
_PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'results'::regclass"
_INDEX = "(tenant_id, created_at) WHERE tenant_id IS NOT NULL"

#: Rows `a`, `b` and `m`: a result with usage, its batch, and each meter of it. Batches are joined to the left so that
#: whoever wants nothing of them does not read them.
_OF_RESULTS = """
    FROM results a LEFT JOIN batches b ON b.id = a.batch_id
    CROSS JOIN (VALUES ('input_uncached'), ('input_cached'), ('output')) AS m (meter)
"""
_HAS_METER = "a.tenant_id IS NOT NULL AND (m.meter <> 'input_cached' OR a.num_cached_tokens > 0)"
_QUANTITY = """
    CASE m.meter WHEN 'input_uncached' THEN a.num_uncached_tokens WHEN 'input_cached' THEN a.num_cached_tokens
                 ELSE a.num_output_tokens END
"""
_AMOUNT = """
    CASE m.meter WHEN 'input_uncached' THEN a.uncached_amount WHEN 'input_cached' THEN a.cached_amount
                 ELSE a.output_amount END
"""
_USAGE_OF_EVENTS = """
    u.request_id, u.meter::text AS meter, u.quantity, u.tenant_id, u.project_id, u.api_key_id, u.batch_id,
    u.service_class::text AS service_class, u.model, u.group_id, u.engine_ms, u.occurred_at
"""
_USAGE_OF_RESULTS = f"""
    a.request_id, m.meter, {_QUANTITY}, a.tenant_id, b.project_id, b.api_key_id, a.batch_id, b.service_class::text,
    b.model, a.group_id, CASE m.meter WHEN 'output' THEN a.engine_ms ELSE 0 END, a.created_at
"""
_LINE = """
    l.revision, l.rate_card_id, l.ledger_transaction_id, l.quantity AS rated_quantity, l.quantity_before, l.unit_price,
    l.amount, l.currency
"""
#: What the card of a price says.
_CARD = """
    LEFT JOIN rate_cards k ON k.id = a.rate_card_id
    LEFT JOIN rates r ON r.rate_card_id = a.rate_card_id AND r.model = b.model AND r.meter = m.meter
"""
#: The latest line of `{meter}` of `{request}`, if there is one.
_LATEST_LINE = """
    LEFT JOIN rated_lines l ON l.request_id = {request} AND l.meter = {meter} AND NOT EXISTS (
        SELECT FROM rated_lines n WHERE n.request_id = l.request_id AND n.meter = l.meter AND n.revision > l.revision
    )
"""

_VIEWS = {
    "metered_usage": f"""
        SELECT {_USAGE_OF_EVENTS} FROM usage_events u
        UNION ALL
        SELECT {_USAGE_OF_RESULTS} {_OF_RESULTS} WHERE {_HAS_METER}
    """,
    "usage_prices": f"""
        SELECT {_USAGE_OF_EVENTS}, {_LINE}
        FROM usage_events u JOIN rated_lines l ON l.request_id = u.request_id AND l.meter = u.meter
        UNION ALL
        SELECT {_USAGE_OF_RESULTS}, {_LINE}
        {_OF_RESULTS} JOIN rated_lines l ON l.request_id = a.request_id AND l.meter = m.meter WHERE {_HAS_METER}
        UNION ALL
        SELECT {_USAGE_OF_RESULTS}, 1::smallint, a.rate_card_id, a.ledger_transaction_id, {_QUANTITY},
               0::bigint, r.unit_price, {_AMOUNT}, k.currency
        {_OF_RESULTS} {_CARD} WHERE {_HAS_METER} AND a.rate_card_id IS NOT NULL
    """,
    "rated_usage": f"""
        SELECT {_USAGE_OF_EVENTS}, {_LINE}
        FROM usage_events u {_LATEST_LINE.format(request="u.request_id", meter="u.meter")}
        UNION ALL
        SELECT {_USAGE_OF_RESULTS},
               coalesce(l.revision, CASE WHEN a.rate_card_id IS NOT NULL THEN 1::smallint END),
               coalesce(l.rate_card_id, a.rate_card_id), coalesce(l.ledger_transaction_id, a.ledger_transaction_id),
               coalesce(l.quantity, CASE WHEN a.rate_card_id IS NOT NULL THEN {_QUANTITY} END),
               coalesce(l.quantity_before, CASE WHEN a.rate_card_id IS NOT NULL THEN 0::bigint END),
               CASE WHEN l.request_id IS NULL THEN r.unit_price ELSE l.unit_price END,
               coalesce(l.amount, {_AMOUNT}), coalesce(l.currency, k.currency)
        {_OF_RESULTS} {_LATEST_LINE.format(request="a.request_id", meter="m.meter")} {_CARD} WHERE {_HAS_METER}
    """,
}

#: What is in rows of results, as processes of the version before read it.
_MOVE_BACK = (
    """
    INSERT INTO usage_events (request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class,
                              model, group_id, engine_ms, occurred_at)
    SELECT request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class, model, group_id,
           engine_ms, occurred_at
    FROM metered_usage u WHERE request_id IN (SELECT request_id FROM results WHERE tenant_id IS NOT NULL)
    ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO rated_lines (request_id, meter, revision, rate_card_id, ledger_transaction_id, quantity,
                             quantity_before, unit_price, amount, currency, rated_at)
    SELECT request_id, meter, revision, rate_card_id, ledger_transaction_id, rated_quantity, quantity_before,
           unit_price, amount, currency, occurred_at
    FROM usage_prices WHERE request_id IN (SELECT request_id FROM results WHERE rate_card_id IS NOT NULL)
    ON CONFLICT DO NOTHING
    """,
)


def upgrade() -> None:
    lock_timeout = op.get_bind().execute(sa.text("SHOW lock_timeout")).scalar_one()
    with op.get_context().autocommit_block():
        # Nullable and without defaults: nothing is rewritten, and whoever knows nothing of them goes on.
        added = ", ".join(f"ADD COLUMN IF NOT EXISTS {name} {kind}" for name, kind in _COLUMNS.items())
        op.execute(f"ALTER TABLE results {added}")
        # Beside the writers, whom it waits for: the limit for locks is not meant for that.
        op.execute("SET lock_timeout = 0")
        for partition in op.get_bind().exec_driver_sql(_PARTITIONS).scalars().all():
            name = f"ix_{partition.removeprefix('partitions.')}_tenant_id_created_at"
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS partitions.{name}")  # of a try that was interrupted
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {partition} {_INDEX}")
        op.execute(f"SET lock_timeout = '{lock_timeout}'")
    op.execute(f"CREATE INDEX ix_results_tenant_id_created_at ON results {_INDEX}")
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    """Takes as long as it takes to write what is in rows of results as usage events and rated lines."""
    op.execute("LOCK TABLE results, usage_events, rated_lines IN ACCESS EXCLUSIVE MODE")
    for statement in _MOVE_BACK:
        op.execute(statement)
    for name in _VIEWS:
        op.execute(f"DROP VIEW {name}")
    op.execute("DROP INDEX ix_results_tenant_id_created_at")
    for name in _COLUMNS:
        op.drop_column("results", name)
