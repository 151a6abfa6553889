"""Partitions and roll-ups

Revision 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

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
        sa.Column("num_events", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("engine_ms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=38, scale=15), nullable=False),
        sa.PrimaryKeyConstraint(
            *("tenant_id", "period", "starts_at", "project_id", "api_key_id", "model"),
            *("service_class", "meter", "currency", "shard"),
            name=op.f("pk_usage_rollups"),
        ),
        postgresql_with={"fillfactor": 50},
    )
    op.create_index(
        "ix_usage_rollups_api_key_id_period_starts_at", "usage_rollups", ["api_key_id", "period", "starts_at"]
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
        sa.Column("num_events", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("engine_ms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=38, scale=15), nullable=False),
        sa.PrimaryKeyConstraint(
            *("tenant_id", "starts_at", "project_id", "api_key_id", "model", "service_class", "meter", "currency"),
            name=op.f("pk_archived_usage"),
        ),
    )
    op.execute(_FILL)


def downgrade() -> None:
    op.drop_table("archived_usage")
    op.drop_table("usage_rollups")
