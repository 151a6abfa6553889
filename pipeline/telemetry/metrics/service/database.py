"""PostgreSQL itself: what it holds, who is connected, and what is left to clean up."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values

_NOW: Final = text("SELECT 1")
_SIZE: Final = text("""
    SELECT pg_database_size(datname) AS size, xact_commit, xact_rollback, deadlocks,
           current_setting('max_connections')::int AS max_connections
    FROM pg_stat_database WHERE datname = current_database()
""")
# Of the connections of others, a user who is no superuser sees no state.
_CONNECTIONS: Final = text("""
    SELECT coalesce(state, 'unknown') AS state, count(*) AS num,
           max(extract(epoch FROM clock_timestamp() - xact_start)) AS oldest
    FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1
""")
_TABLES: Final = text("""
    SELECT coalesce(parent.relname, t.relname) AS name, sum(pg_total_relation_size(t.relid)) AS size,
           sum(t.n_dead_tup) AS num_dead
    FROM pg_stat_user_tables t
    LEFT JOIN pg_inherits i ON i.inhrelid = t.relid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10
""")
_STATES: Final = ("active", "idle", "idle in transaction")


def check_database(conn: Connection) -> Values:
    """Whether it answers."""
    conn.execute(_NOW)
    return {}


def read_database(conn: Connection) -> Values:
    found = conn.execute(_SIZE).one()
    rows = {row.state: row for row in conn.execute(_CONNECTIONS)}
    oldest = max((float(row.oldest) for row in rows.values() if row.oldest is not None), default=0.0)
    tables = conn.execute(_TABLES).all()
    return {
        names.DATABASE_SIZE: [((), float(found.size))],
        names.DATABASE_MAX_CONNECTIONS: [((), float(found.max_connections))],
        names.DATABASE_COMMITS: [((), float(found.xact_commit))],
        names.DATABASE_ROLLBACKS: [((), float(found.xact_rollback))],
        names.DATABASE_DEADLOCKS: [((), float(found.deadlocks))],
        names.DATABASE_CONNECTIONS: [
            ((state,), float(rows[state].num if state in rows else 0)) for state in sorted({*_STATES, *rows})
        ],
        names.DATABASE_OLDEST_TRANSACTION: [((), oldest)],
        names.TABLE_SIZE: [((row.name,), float(row.size)) for row in tables],
        names.TABLE_DEAD: [((row.name,), float(row.num_dead)) for row in tables],
    }
