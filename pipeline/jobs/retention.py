"""Retention: drops the partitions of months that are no longer kept, and remembers what they came to.

A month goes when it is older than the setting says, its batches have all ended, and what was used is on final invoices,
with all that was changed of it later: then rated lines, usage events, results and requests are dropped, in that order,
in one transaction. Roll-ups, the ledger, invoices and the batches themselves stay, with what the dropped rows came to,
so that every sum still adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, text

from pipeline.billing.rating_lock import change_prices
from pipeline.settings import get_settings
from pipeline.tables.partitions import PARTITIONED_TABLES, REQUEST_NUMBER_BITS
from pipeline.tables.session import connection, get_engine
from pipeline.tables.short_locks import change_with_short_locks
from pipeline.tenancy import audit_log

#: The partitions of what was there before requests carried their month; emptied, and never dropped.
BEFORE: Final = "before"

#: Of the advisory lock, so that one drops at a time.
_LOCK_CLASS: Final = 8

_NAMES: Final = """
    (
        SELECT substr(c.relname, length('requests_') + 1) AS name
        FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = 'requests'::regclass
    ) months
"""
_MONTHS: Final = text(f"""
    SELECT name FROM {_NAMES}
    WHERE (name = 'before' OR name < to_char(now() AT TIME ZONE 'UTC' - make_interval(months => :kept), 'YYYY_MM'))
      AND NOT EXISTS (SELECT FROM dropped_months d WHERE d.name = months.name)
    ORDER BY name <> 'before', name
""")  # noqa: S608 - a constant
#: The first with partitions of its own that are there.
_FIRST_MONTH: Final = text(f"SELECT min(name) FROM {_NAMES} WHERE name <> 'before'")  # noqa: S608 - a constant

# `{name}` is of `_MONTHS` and nobody else's, here and below; `{of_month}` is a span of ids, so that no other month's
# partitions are read.
_COUNT: Final = "SELECT count(*) FROM partitions.requests_{name}"
_YOUNG: Final = """
    SELECT count(*) FROM batches b
    WHERE b.id IN (SELECT DISTINCT batch_id FROM partitions.requests_{name})
      AND coalesce(b.in_progress_at, b.created_at)
        >= (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => :kept)) AT TIME ZONE 'UTC'
"""
_OPEN: Final = """
    SELECT count(*) FROM batches b
    WHERE b.id IN (SELECT DISTINCT batch_id FROM partitions.requests_{name})
      AND b.status NOT IN ('completed', 'failed', 'expired', 'cancelled')
"""
_UNBILLED: Final = """
    SELECT t.name AS tenant, to_char(used.month, 'YYYY-MM') AS month
    FROM (
        SELECT DISTINCT u.tenant_id, u.currency,
               CAST(date_trunc('month', u.occurred_at, 'UTC') AT TIME ZONE 'UTC' AS date) AS month
        FROM rated_usage u WHERE {of_month}
    ) used
    JOIN tenants t ON t.id = used.tenant_id
    WHERE NOT EXISTS (
        SELECT FROM invoices i
        WHERE i.tenant_id = used.tenant_id AND i.month_start = used.month AND i.currency = used.currency
          AND i.status = 'final'
    )
    GROUP BY t.name, used.month ORDER BY used.month, t.name LIMIT 5
"""
# What was rated late, or again, since the last invoice that could have it.
_UNCORRECTED: Final = """
    SELECT DISTINCT t.name AS tenant, to_char(used.month, 'YYYY-MM') AS month
    FROM (
        SELECT DISTINCT tenant_id, CAST(date_trunc('month', occurred_at, 'UTC') AT TIME ZONE 'UTC' AS date) AS month
        FROM metered_usage WHERE {of_month}
    ) used
    JOIN tenants t ON t.id = used.tenant_id
    JOIN ledger_transactions posted ON posted.tenant_id = used.tenant_id AND posted.period = used.month
        AND posted.kind IN ('usage', 'adjustment')
    JOIN ledger_entries e ON e.transaction_id = posted.id
    JOIN ledger_accounts a ON a.id = e.account_id AND a.kind = 'receivable'
    WHERE posted.created_at > (
        SELECT max(i.issued_at) FROM invoices i
        WHERE i.tenant_id = used.tenant_id AND i.currency = a.currency AND i.month_start >= used.month
          AND i.status = 'final'
    )
    ORDER BY month, tenant LIMIT 5
"""

_REMEMBER: Final = (
    "INSERT INTO dropped_months (name, num_requests) SELECT '{name}', count(*) FROM partitions.requests_{name}",
    """
    INSERT INTO dropped_batches (batch_id, month)
    SELECT DISTINCT batch_id, '{name}' FROM partitions.requests_{name} ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO archived_usage (starts_at, tenant_id, project_id, api_key_id, model, service_class, meter, currency,
                                num_events, quantity, engine_ms, amount)
    SELECT date_trunc('hour', u.occurred_at, 'UTC'), u.tenant_id, coalesce(u.project_id, 'proj_' || md5(u.tenant_id)),
           u.api_key_id, u.model, u.service_class, u.meter, coalesce(u.currency, ''), count(*), sum(u.quantity),
           sum(u.engine_ms), coalesce(sum(u.amount), 0)
    FROM rated_usage u WHERE {of_month}
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    ON CONFLICT ON CONSTRAINT pk_archived_usage DO UPDATE
    SET num_events = archived_usage.num_events + excluded.num_events,
        quantity = archived_usage.quantity + excluded.quantity,
        engine_ms = archived_usage.engine_ms + excluded.engine_ms, amount = archived_usage.amount + excluded.amount
    """,
    # What a revision added to the ledger is the difference to the one before it.
    """
    INSERT INTO archived_ledger_lines (ledger_transaction_id, amount)
    SELECT ledger_transaction_id, sum(amount - before) FROM (
        SELECT ledger_transaction_id, amount,
               coalesce(lag(amount) OVER (PARTITION BY request_id, meter ORDER BY revision), 0) AS before
        FROM usage_prices WHERE {of_month}
    ) prices
    GROUP BY ledger_transaction_id
    ON CONFLICT (ledger_transaction_id) DO UPDATE SET amount = archived_ledger_lines.amount + excluded.amount
    """,
    """
    DELETE FROM attempts a USING slices s, dropped_batches d
    WHERE d.month = '{name}' AND s.batch_id = d.batch_id AND a.slice_id = s.id
    """,
    "DELETE FROM slices s USING dropped_batches d WHERE d.month = '{name}' AND s.batch_id = d.batch_id",
)


@dataclass(frozen=True, slots=True)
class OldMonth:
    """A month that is no longer to be kept."""

    #: `2026_11`, or `before`.
    name: str
    num_requests: int
    #: What keeps it nonetheless; None: nothing.
    kept_because: str | None


def old_months(engine: Engine | None = None, *, months: int | None = None) -> list[OldMonth]:
    """Months before the last `months` full ones (None: as the setting says), the oldest first, and what keeps them."""
    kept = _kept_months(months)
    if kept is None:
        return []
    with connection(engine) as conn:
        conn.execute(text("SET LOCAL statement_timeout = 0"))
        found = []
        for name in conn.scalars(_MONTHS, {"kept": kept}).all():
            num_requests = int(conn.scalar(text(_COUNT.format(name=name))) or 0)
            if name == BEFORE and num_requests == 0:
                continue
            found.append(OldMonth(name, num_requests, _what_keeps(conn, name, kept)))
        return found


def _what_keeps(conn: Connection, name: str, kept: int) -> str | None:
    if name == BEFORE and (num := conn.scalar(text(_YOUNG.format(name=name)), {"kept": kept})):
        return f"{num} of its batches are younger"
    if num := conn.scalar(text(_OPEN.format(name=name))):
        return f"{num} of its batches have not ended"
    of_month = _of_month(conn, name)
    if unbilled := conn.execute(text(_UNBILLED.format(of_month=of_month))).all():
        return f"no final invoice has what was used by {_named(unbilled)}"
    if uncorrected := conn.execute(text(_UNCORRECTED.format(of_month=of_month))).all():
        return f"no final invoice has the corrections of what was used by {_named(uncorrected)}"
    return None


def _of_month(conn: Connection, name: str) -> str:
    """The condition that a request is of the month."""
    if name == BEFORE:
        return f"request_id < {_first_id(str(conn.scalar(_FIRST_MONTH)))}"
    return f"request_id >= {_first_id(name)} AND request_id < {_first_id(name, months_later=1)}"


def _first_id(name: str, months_later: int = 0) -> int:
    year, month = name.split("_")
    return (int(year) - 2020) * 12 + int(month) - 1 + months_later << REQUEST_NUMBER_BITS


def _named(rows: Sequence[Row[*tuple[Any, ...]]]) -> str:
    return ", ".join(f"{row.tenant} in {row.month}" for row in rows)


def drop_old_months(engine: Engine | None = None, *, months: int | None = None) -> list[OldMonth]:
    """Drop the months that nothing keeps; returns all that are old. Safe if two do it at once."""
    engine = engine or get_engine()
    kept = _kept_months(months)
    return [
        month if month.kept_because is not None or kept is None else _drop(engine, month, kept)
        for month in old_months(engine, months=months)
    ]


def _kept_months(months: int | None) -> int | None:
    return get_settings().retention_months if months is None else months


def _drop(engine: Engine, month: OldMonth, kept: int) -> OldMonth:
    reasons: list[str | None] = []
    with engine.connect() as conn:
        conn.detach()  # its limits are its own, and it is closed afterwards
        change_with_short_locks(conn, lambda: reasons.append(_drop_in_one_transaction(conn, month.name, kept)))
    return replace(month, kept_because=reasons[-1])


def _drop_in_one_transaction(conn: Connection, name: str, kept: int) -> str | None:
    """Returns what keeps it by now, if anything does."""
    conn.execute(text("SELECT pg_advisory_xact_lock(:lock, 0)"), {"lock": _LOCK_CLASS})
    change_prices(conn)
    if conn.scalar(text("SELECT count(*) FROM dropped_months WHERE name = :name"), {"name": name}):
        conn.rollback()
        return None
    if (reason := _what_keeps(conn, name, kept)) is not None:
        conn.rollback()
        return reason
    of_month = _of_month(conn, name)
    for statement in (*_REMEMBER, *_removal(name)):
        conn.execute(text(statement.format(name=name, of_month=of_month)))
    audit_log.record(conn, act="month.drop", object=name)
    conn.commit()
    return None


def _removal(name: str) -> Sequence[str]:
    if name == BEFORE:
        return [f"TRUNCATE {', '.join(f'partitions.{table}_before' for table in PARTITIONED_TABLES)}"]
    return [
        # In the order in which they are written, so that who writes and who drops do not wait for each other.
        f"LOCK TABLE {', '.join(reversed(PARTITIONED_TABLES))} IN ACCESS EXCLUSIVE MODE",
        *(f"DROP TABLE partitions.{table}_{name}" for table in PARTITIONED_TABLES),
    ]
