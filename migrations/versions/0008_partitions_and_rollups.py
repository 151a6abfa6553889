"""Partitions and roll-ups

The tables that grow with every request become partitioned by month. What is in them stays where it is, as the partition
of all ids from before; ids carry their month from now on. Processes of the version before go on beside it: the database
makes their ids too. But they write no roll-ups: `ryzanstein usage rebuild-rollups` makes up for that once all processes
are of this version.

What takes time comes first, beside whoever writes, and can be begun again. The change itself is then one of names.

Revision 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

#: Partitioned tables with the column that carries the month, and their primary keys.
_KEYS = {
    "requests": ("id", "id"),
    "results": ("request_id", "request_id"),
    "usage_events": ("request_id", "request_id, meter"),
    "rated_lines": ("request_id", "request_id, meter, revision"),
}
_INDEXES = {
    "ix_requests_slice_id": "requests (slice_id)",
    "ix_results_batch_id": "results (batch_id)",
    "ix_usage_events_tenant_id_occurred_at": "usage_events (tenant_id, occurred_at)",
    "ix_usage_events_batch_id": "usage_events (batch_id)",
}
#: Whoever writes to one of the partitioned tables holds these before or after it, in about this order.
_LOCKED = "slices, requests, results, usage_events, rated_lines, ledger_transactions, rate_cards, batches"

#: Bits of an id below the month.
_NUMBER_BITS = 40

_REQUEST_MONTH = """
    CREATE FUNCTION request_month(moment timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
        SELECT (extract(year FROM moment AT TIME ZONE 'UTC')::bigint - 2020) * 12
             + extract(month FROM moment AT TIME ZONE 'UTC')::bigint - 1
    $$
"""
_NEXT_REQUEST_ID = """
    CREATE FUNCTION next_request_id() RETURNS bigint LANGUAGE sql VOLATILE AS $$
        SELECT (request_month(now()) << 40) + nextval('request_numbers')
    $$
"""
# A partition is attached rather than made in place: that way nobody who reads or writes has to wait for it.
_MAKE_PARTITIONS = """
    CREATE FUNCTION make_request_partitions(month bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE
        suffix text := to_char(date '2020-01-01' + make_interval(months => month::int), 'YYYY_MM');
        parent text;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtext('request partitions'), 0);
        IF month < {first_month} OR to_regclass('partitions.rated_lines_' || suffix) IS NOT NULL THEN
            RETURN false;
        END IF;
        FOREACH parent IN ARRAY ARRAY['requests', 'results', 'usage_events', 'rated_lines'] LOOP
            EXECUTE format('CREATE TABLE partitions.%I (LIKE %I INCLUDING ALL)', parent || '_' || suffix, parent);
            IF parent = 'requests' THEN
                EXECUTE format('ALTER TABLE partitions.%I SET (fillfactor = 85)', 'requests_' || suffix);
                EXECUTE format('CREATE UNIQUE INDEX %I ON partitions.%I (batch_id, line)',
                               'uq_requests_batch_id_line_' || suffix, 'requests_' || suffix);
                EXECUTE format('CREATE UNIQUE INDEX %I ON partitions.%I (batch_id, custom_id)',
                               'uq_requests_batch_id_custom_id_' || suffix, 'requests_' || suffix);
            END IF;
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION partitions.%I FOR VALUES FROM (%s) TO (%s)',
                           parent, parent || '_' || suffix, month << 40, (month + 1) << 40);
        END LOOP;
        RETURN true;
    END $$
"""

# Rows that must not be looked at again while the tables are locked.
_VALIDATE = """
    DO $$
    DECLARE
        one record;
    BEGIN
        FOR one IN SELECT conrelid::regclass AS owner, conname FROM pg_constraint
            WHERE NOT convalidated AND conrelid = ANY ('{requests, results, usage_events, rated_lines}'::regclass[])
        LOOP
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', one.owner, one.conname);
        END LOOP;
    END $$
"""
_DROP_FOREIGN_KEYS = """
    DO $$
    DECLARE
        one record;
    BEGIN
        FOR one IN SELECT conrelid::regclass AS owner, conname FROM pg_constraint
            WHERE contype = 'f' AND conrelid = ANY ('{requests, results, usage_events, rated_lines}'::regclass[])
            ORDER BY conrelid DESC
        LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.owner, one.conname);
        END LOOP;
    END $$
"""
#: As they were; not looked at row by row under the lock.
_FOREIGN_KEYS = {
    "fk_requests_batch_id": "requests ADD CONSTRAINT {} FOREIGN KEY (batch_id) REFERENCES batches (id)",
    "fk_requests_slice_id": "requests ADD CONSTRAINT {} FOREIGN KEY (slice_id) REFERENCES slices (id)",
    "fk_results_request_id": "results ADD CONSTRAINT {} FOREIGN KEY (request_id) REFERENCES requests (id)",
    "fk_usage_events_request_id": (
        "usage_events ADD CONSTRAINT {} FOREIGN KEY (request_id) REFERENCES results (request_id)"
    ),
    "fk_rated_lines_request_id_meter": (
        "rated_lines ADD CONSTRAINT {} FOREIGN KEY (request_id, meter) REFERENCES usage_events (request_id, meter)"
    ),
    "fk_rated_lines_rate_card_id": (
        "rated_lines ADD CONSTRAINT {} FOREIGN KEY (rate_card_id) REFERENCES rate_cards (id)"
    ),
    "fk_rated_lines_ledger_transaction_id": (
        "rated_lines ADD CONSTRAINT {} FOREIGN KEY (ledger_transaction_id) REFERENCES ledger_transactions (id)"
    ),
}

_BACK = """
    DO $$ BEGIN EXECUTE format('ALTER TABLE partitions.{table} SET SCHEMA %I', current_schema()); END $$
"""

#: What the usage events that are there come to.
_FILL = """
    INSERT INTO usage_rollups (period, starts_at, tenant_id, project_id, api_key_id, model, service_class, meter,
                               currency, shard, num_events, quantity, engine_ms, amount)
    SELECT p.period, date_trunc(p.period, u.occurred_at, 'UTC'), u.tenant_id,
           coalesce(u.project_id, 'proj_' || md5(u.tenant_id)), u.api_key_id, u.model, u.service_class, u.meter,
           coalesce(l.currency, ''), 0, count(*), sum(u.quantity), sum(u.engine_ms), coalesce(sum(l.amount), 0)
    FROM usage_events u
    LEFT JOIN rated_lines l ON l.request_id = u.request_id AND l.meter = u.meter AND NOT EXISTS (
        SELECT FROM rated_lines n WHERE n.request_id = l.request_id AND n.meter = l.meter AND n.revision > l.revision
    )
    CROSS JOIN (VALUES ('hour'), ('day')) AS p (period)
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        first_month = _first_month()
        for table, (column, _) in _KEYS.items():
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS ck_{table}_before")
            op.execute(
                f"ALTER TABLE {table} ADD CONSTRAINT ck_{table}_before"
                f" CHECK ({column} < {first_month << _NUMBER_BITS}) NOT VALID"
            )
        op.execute(_VALIDATE)
        _create_rollups()
        op.execute("DELETE FROM usage_rollups")
        op.execute(_FILL)
    op.create_table(
        "dropped_months",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("num_requests", sa.BigInteger(), nullable=False),
        sa.Column("dropped_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_dropped_months")),
    )
    op.create_table(
        "archived_ledger_lines",
        sa.Column("ledger_transaction_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.Numeric(precision=38, scale=15), nullable=False),
        sa.PrimaryKeyConstraint("ledger_transaction_id", name=op.f("pk_archived_ledger_lines")),
    )
    op.create_table(
        "dropped_batches",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("month", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_dropped_batches_batch_id")),
        sa.ForeignKeyConstraint(["month"], ["dropped_months.name"], name=op.f("fk_dropped_batches_month")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_dropped_batches")),
    )
    op.execute("CREATE SCHEMA partitions")
    op.execute(f"LOCK TABLE {_LOCKED} IN ACCESS EXCLUSIVE MODE")
    op.execute(_DROP_FOREIGN_KEYS)
    op.execute("CREATE SEQUENCE request_numbers")
    op.execute("SELECT setval('request_numbers', last_value, is_called) FROM requests_id_seq")
    op.execute("ALTER TABLE requests ALTER COLUMN id DROP IDENTITY")
    for function in (_REQUEST_MONTH, _NEXT_REQUEST_ID, _MAKE_PARTITIONS.format(first_month=first_month)):
        op.execute(function)
    for table in _KEYS:
        _partition(table, first_month)
    op.execute("ALTER TABLE requests ALTER COLUMN id SET DEFAULT next_request_id()")
    op.execute("SELECT make_request_partitions(request_month(now()) + n) FROM generate_series(0, 3) n")


def _first_month() -> int:
    """The first month with partitions of its own. Ids have months before it only where this was taken back once."""
    largest = op.get_bind().execute(sa.text("SELECT coalesce(max(id), 0) FROM requests")).scalar_one()
    return (int(largest) >> _NUMBER_BITS) + 1


def _partition(table: str, first_month: int) -> None:
    column, key = _KEYS[table]
    op.execute(f"ALTER TABLE {table} SET SCHEMA partitions")
    op.execute(f"ALTER TABLE partitions.{table} RENAME TO {table}_before")
    op.execute(
        f"CREATE TABLE {table} (LIKE partitions.{table}_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
        f" INCLUDING STORAGE) PARTITION BY RANGE ({column})"
    )
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_before")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({key})")
    for name, columns in _INDEXES.items():
        if columns.startswith(f"{table} "):
            op.execute(f"CREATE INDEX {name} ON {columns}")
    op.execute(
        f"ALTER TABLE {table} ATTACH PARTITION partitions.{table}_before"
        f" FOR VALUES FROM (MINVALUE) TO ({first_month << _NUMBER_BITS})"
    )
    op.execute(f"ALTER TABLE partitions.{table}_before DROP CONSTRAINT ck_{table}_before")


def _create_rollups() -> None:
    op.create_table(
        "usage_rollups",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column(
            "period",
            sa.Enum("hour", "day", name="period", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("service_class", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        *_sums(),
        sa.PrimaryKeyConstraint(
            *("tenant_id", "period", "starts_at", "project_id", "api_key_id", "model"),
            *("service_class", "meter", "currency", "shard"),
            name=op.f("pk_usage_rollups"),
        ),
        postgresql_with={"fillfactor": 50},
        if_not_exists=True,
    )
    op.create_index(
        "ix_usage_rollups_api_key_id_period_starts_at",
        "usage_rollups",
        ["api_key_id", "period", "starts_at"],
        if_not_exists=True,
    )
    op.create_table(
        "archived_usage",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("service_class", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        *_sums(),
        sa.PrimaryKeyConstraint(
            *("tenant_id", "starts_at", "project_id", "api_key_id", "model", "service_class", "meter", "currency"),
            name=op.f("pk_archived_usage"),
        ),
        if_not_exists=True,
    )


def _sums() -> list[sa.Column[object]]:
    counters = [sa.Column(name, sa.BigInteger(), nullable=False) for name in ("num_events", "quantity", "engine_ms")]
    return [*counters, sa.Column("amount", sa.Numeric(precision=38, scale=15), nullable=False)]


def downgrade() -> None:
    """Takes as long as it takes to move what was written since; what retention has dropped stays gone."""
    op.execute(f"LOCK TABLE {_LOCKED} IN ACCESS EXCLUSIVE MODE")
    for table in reversed(_KEYS):
        op.execute(f"ALTER TABLE {table} DETACH PARTITION partitions.{table}_before")
        op.execute(f"INSERT INTO partitions.{table}_before SELECT * FROM {table}")  # noqa: S608
        op.execute(f"DROP TABLE {table}")
        op.execute(f"ALTER TABLE partitions.{table}_before RENAME TO {table}")
        op.execute(_BACK.format(table=table))
    for name, definition in _FOREIGN_KEYS.items():
        op.execute(f"ALTER TABLE {definition.format(name)} NOT VALID")
    op.execute("ALTER TABLE requests ALTER COLUMN id DROP DEFAULT")
    op.execute("ALTER TABLE requests ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY")
    op.execute("SELECT setval(pg_get_serial_sequence('requests', 'id'), last_value, is_called) FROM request_numbers")
    for function in ("make_request_partitions(bigint)", "next_request_id()", "request_month(timestamptz)"):
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP SEQUENCE request_numbers")
    op.execute("DROP SCHEMA partitions")
    for table in ("archived_ledger_lines", "dropped_batches", "dropped_months", "archived_usage", "usage_rollups"):
        op.drop_table(table)
