"""Tenancy

Scopes, expiry and rotation of keys; projects of files; limits of tenants; answers to calls that are sent again; the log
of administrative acts and the records of erasure, which nothing changes any more. Only adds: processes of the version
before go on beside it. What they write has no project, which is the default one; batches that they prepare count
against no limit, and tokens of requests that their groups end stay counted until the batch has ended.

Revision 0010, after 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_APPEND_ONLY = ("audit_log", "erasures")


def upgrade() -> None:
    op.add_column("tenants", _moment("erased_at"))
    op.add_column("api_keys", sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("api_keys", _moment("expires_at"))
    op.add_column("api_keys", sa.Column("rotated_from", sa.Text(), nullable=True))
    op.add_column("files", sa.Column("project_id", sa.Text(), nullable=True))
    for name in ("num_reserved_tokens", "num_released_tokens"):
        op.add_column("batches", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    # Whoever knows of no projects calls for the whole tenant. The table holds a week of keys: its index is soon made.
    op.add_column("idempotency_keys", sa.Column("project_id", sa.Text(), server_default="", nullable=False))
    _name_keys_by("tenant_id", "project_id", "key")
    _create_limits()
    _create_answers()
    _create_logs()


def downgrade() -> None:
    for table in (*_APPEND_ONLY, "idempotent_answers", "queue_limits", "rate_limits"):
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_to_change_log()")
    op.execute("DELETE FROM idempotency_keys WHERE project_id <> ''")
    _name_keys_by("tenant_id", "key")
    op.drop_column("idempotency_keys", "project_id")
    for name in ("num_reserved_tokens", "num_released_tokens"):
        op.drop_column("batches", name)
    op.drop_column("files", "project_id")
    for name in ("scopes", "expires_at", "rotated_from"):
        op.drop_column("api_keys", name)
    op.drop_column("tenants", "erased_at")


def _name_keys_by(*columns: str) -> None:
    op.drop_constraint("pk_idempotency_keys", "idempotency_keys", type_="primary")
    op.create_primary_key("pk_idempotency_keys", "idempotency_keys", columns)


def _create_limits() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), server_default="", nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "requests_per_minute >= 0 AND tokens_per_minute >= 0", name=op.f("ck_rate_limits_limits_not_negative")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_rate_limits_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("tenant_id", "api_key_id", name=op.f("pk_rate_limits")),
    )
    op.create_table(
        "queue_limits",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("enqueued_tokens", sa.BigInteger(), nullable=True),
        sa.Column("enqueued_batches", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "enqueued_tokens >= 0 AND enqueued_batches >= 0", name=op.f("ck_queue_limits_limits_not_negative")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_queue_limits_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("tenant_id", "model", name=op.f("pk_queue_limits")),
    )


def _create_answers() -> None:
    op.create_table(
        "idempotent_answers",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), server_default="", nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        _created(),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_idempotent_answers_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("tenant_id", "project_id", "route", "key", name=op.f("pk_idempotent_answers")),
    )
    op.create_index("ix_idempotent_answers_created_at", "idempotent_answers", ["created_at"])


def _create_logs() -> None:
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_log")),
    )
    op.create_table(
        "erasures",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        _created(),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_erasures_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    op.create_index(op.f("ix_erasures_tenant_id"), "erasures", ["tenant_id"])
    op.execute("""
        CREATE FUNCTION refuse_to_change_log() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'Rows of % are only ever added.', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_is_only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_log()"
        )


def _moment(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def _created() -> sa.Column:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
