"""The first schema

Revision 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("args", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "rate_cards",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("input_price", sa.Numeric(precision=20, scale=6), nullable=False),
        sa.Column("cached_input_price", sa.Numeric(precision=20, scale=6), nullable=False),
        sa.Column("output_price", sa.Numeric(precision=20, scale=6), nullable=False),
        sa.Column("batch_discount", sa.Numeric(precision=4, scale=3), nullable=False),
        sa.Column("effective_from", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("batch_discount BETWEEN 0 AND 1", name=op.f("ck_rate_cards_discount_is_a_part")),
        sa.CheckConstraint(
            "input_price >= 0 AND cached_input_price >= 0 AND output_price >= 0",
            name=op.f("ck_rate_cards_prices_not_negative"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_cards")),
    )
    op.create_index("uq_rate_cards_model_effective_from", "rate_cards", ["model", "effective_from"], unique=True)
    op.create_table(
        "served_models",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("context_length", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_served_models")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("short_id", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("short_id", name=op.f("uq_api_keys_short_id")),
    )
    op.create_index(op.f("ix_api_keys_tenant_id"), "api_keys", ["tenant_id"], unique=False)
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("storage_key", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column(
            "view",
            sa.Enum("output", "error", name="view", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.CheckConstraint("(batch_id IS NULL) = (view IS NULL)", name=op.f("ck_files_view_has_batch")),
        sa.CheckConstraint("(storage_key IS NULL) = (view IS NOT NULL)", name=op.f("ck_files_blob_or_view")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_files_batch_id"), use_alter=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_files_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index(op.f("ix_files_batch_id"), "files", ["batch_id"], unique=False)
    op.create_index("ix_files_tenant_id_created_at", "files", ["tenant_id", "created_at"], unique=False)
    op.create_index(
        "ix_files_expiring",
        "files",
        ["expires_at"],
        unique=False,
        postgresql_where="deleted_at IS NULL AND expires_at IS NOT NULL",
    )
    op.create_table(
        "groups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "starting",
                "ready",
                "restarting",
                "degraded",
                "stopped",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("rank_pids", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("info", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["served_models.name"], name=op.f("fk_groups_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
    )
    op.create_table(
        "ledger_accounts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_ledger_accounts_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_accounts")),
    )
    op.create_index(
        "uq_ledger_accounts",
        "ledger_accounts",
        ["kind", "tenant_id", "currency"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_ledger_transactions_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transactions")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_ledger_transactions_idempotency_key")),
    )
    op.create_index(op.f("ix_ledger_transactions_tenant_id"), "ledger_transactions", ["tenant_id"], unique=False)
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column(
            "on_invalid",
            sa.Enum("fail", "skip", name="on_invalid", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("output_expires_after_seconds", sa.BigInteger(), nullable=True),
        sa.Column(
            "status",
            sa.Enum(
                "validating",
                "failed",
                "in_progress",
                "finalizing",
                "completed",
                "expired",
                "cancelling",
                "cancelled",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("num_preparations", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("prepare_after", sa.DateTime(timezone=True), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("num_requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_skipped", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_succeeded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_unsuccessful", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_batches_api_key_id")),
        sa.ForeignKeyConstraint(["input_file_id"], ["files.id"], name=op.f("fk_batches_input_file_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_batches_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_tenant_id_created_at", "batches", ["tenant_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_batches_unfinished",
        "batches",
        ["status"],
        unique=False,
        postgresql_where="status IN ('validating', 'in_progress', 'finalizing', 'cancelling')",
    )
    op.create_table(
        "ledger_entries",
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=38, scale=15), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["ledger_accounts.id"], name=op.f("fk_ledger_entries_account_id")),
        sa.ForeignKeyConstraint(
            ["transaction_id"], ["ledger_transactions.id"], name=op.f("fk_ledger_entries_transaction_id")
        ),
        sa.PrimaryKeyConstraint("transaction_id", "account_id", name=op.f("pk_ledger_entries")),
    )
    op.create_index(op.f("ix_ledger_entries_account_id"), "ledger_entries", ["account_id"], unique=False)
    op.create_table(
        "batch_errors",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("param", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_batch_errors_batch_id")),
        sa.PrimaryKeyConstraint("batch_id", "line", name=op.f("pk_batch_errors")),
    )
    op.create_table(
        "slices",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column("num_requests", sa.BigInteger(), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("pending", "claimed", "done", name="status", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.Column("num_unfinished", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_slices_batch_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_slices_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slices")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "ix_slices_claimed", "slices", ["lease_expires_at"], unique=False, postgresql_where="status = 'claimed'"
    )
    op.create_index("ix_slices_pending", "slices", ["model", "id"], unique=False, postgresql_where="status = 'pending'")
    op.create_index("uq_slices_batch_id_position", "slices", ["batch_id", "position"], unique=True)
    op.create_table(
        "attempts",
        sa.Column("slice_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "end",
            sa.Enum("finished", "lost", "returned", name="end", native_enum=False, create_constraint=True, length=32),
            nullable=True,
        ),
        sa.Column("num_succeeded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_unsuccessful", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("num_wasted_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["slice_id"], ["slices.id"], name=op.f("fk_attempts_slice_id")),
        sa.PrimaryKeyConstraint("slice_id", "lease_epoch", name=op.f("pk_attempts")),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("slice_id", sa.BigInteger(), nullable=True),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("prompt_token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("num_prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("num_crash_exposures", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column(
            "outcome",
            sa.Enum(
                "succeeded",
                "failed",
                "cancelled",
                "expired",
                name="outcome",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_requests_batch_id")),
        sa.ForeignKeyConstraint(["slice_id"], ["slices.id"], name=op.f("fk_requests_slice_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
        postgresql_with={"fillfactor": 85},
    )
    op.create_index("ix_requests_slice_id", "requests", ["slice_id"], unique=False)
    op.create_index("uq_requests_batch_id_custom_id", "requests", ["batch_id", "custom_id"], unique=True)
    op.create_index("uq_requests_batch_id_line", "requests", ["batch_id", "line"], unique=True)
    op.create_table(
        "results",
        sa.Column("request_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("num_line_bytes", sa.BigInteger(), nullable=False),
        sa.Column("slice_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name=op.f("fk_results_request_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_results")),
    )
    op.create_index("ix_results_batch_id", "results", ["batch_id"], unique=False)
    op.create_table(
        "usage_events",
        sa.Column("request_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "meter",
            sa.Enum(
                "input_uncached",
                "input_cached",
                "output",
                name="meter",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("engine_ms", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["results.request_id"], name=op.f("fk_usage_events_request_id")),
        sa.PrimaryKeyConstraint("request_id", "meter", name=op.f("pk_usage_events")),
    )
    op.create_index("ix_usage_events_batch_id", "usage_events", ["batch_id"], unique=False)
    op.create_index("ix_usage_events_tenant_id_occurred_at", "usage_events", ["tenant_id", "occurred_at"], unique=False)
    op.create_table(
        "rated_lines",
        sa.Column("request_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "meter",
            sa.Enum(
                "input_uncached",
                "input_cached",
                "output",
                name="meter",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("revision", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("rate_card_id", sa.BigInteger(), nullable=False),
        sa.Column("ledger_transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", sa.Numeric(precision=20, scale=6), nullable=False),
        sa.Column("amount", sa.Numeric(precision=38, scale=15), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("rated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["ledger_transaction_id"], ["ledger_transactions.id"], name=op.f("fk_rated_lines_ledger_transaction_id")
        ),
        sa.ForeignKeyConstraint(["rate_card_id"], ["rate_cards.id"], name=op.f("fk_rated_lines_rate_card_id")),
        sa.ForeignKeyConstraint(
            ["request_id", "meter"],
            ["usage_events.request_id", "usage_events.meter"],
            name=op.f("fk_rated_lines_request_id_meter"),
        ),
        sa.PrimaryKeyConstraint("request_id", "meter", "revision", name=op.f("pk_rated_lines")),
    )
    # files and batches refer to each other
    op.create_foreign_key("fk_files_batch_id", "files", "batches", ["batch_id"], ["id"])
    # No transaction of the ledger can be committed unless its entries sum to zero.
    op.execute("""
        CREATE FUNCTION ledger_transaction_sums_to_zero() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (SELECT sum(amount) FROM ledger_entries WHERE transaction_id = NEW.transaction_id) <> 0 THEN
                RAISE EXCEPTION 'the entries of ledger transaction % do not sum to zero', NEW.transaction_id;
            END IF;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE CONSTRAINT TRIGGER ledger_entries_sum_to_zero AFTER INSERT OR UPDATE ON ledger_entries
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger_transaction_sums_to_zero()
    """)


def downgrade() -> None:
    op.drop_constraint("fk_files_batch_id", "files")
    op.drop_table("rated_lines")
    op.drop_index("ix_usage_events_tenant_id_occurred_at", table_name="usage_events")
    op.drop_index("ix_usage_events_batch_id", table_name="usage_events")
    op.drop_table("usage_events")
    op.drop_index("ix_results_batch_id", table_name="results")
    op.drop_table("results")
    op.drop_index("uq_requests_batch_id_line", table_name="requests")
    op.drop_index("uq_requests_batch_id_custom_id", table_name="requests")
    op.drop_index("ix_requests_slice_id", table_name="requests")
    op.drop_table("requests")
    op.drop_table("attempts")
    op.drop_index("uq_slices_batch_id_position", table_name="slices")
    op.drop_index("ix_slices_pending", table_name="slices", postgresql_where="status = 'pending'")
    op.drop_index("ix_slices_claimed", table_name="slices", postgresql_where="status = 'claimed'")
    op.drop_table("slices")
    op.drop_table("batch_errors")
    op.drop_index(op.f("ix_ledger_entries_account_id"), table_name="ledger_entries")
    op.drop_table("ledger_entries")
    op.drop_index(
        "ix_batches_unfinished",
        table_name="batches",
        postgresql_where="status IN ('validating', 'in_progress', 'finalizing', 'cancelling')",
    )
    op.drop_index("ix_batches_tenant_id_created_at", table_name="batches")
    op.drop_table("batches")
    op.drop_index(op.f("ix_ledger_transactions_tenant_id"), table_name="ledger_transactions")
    op.drop_table("ledger_transactions")
    op.drop_index("uq_ledger_accounts", table_name="ledger_accounts", postgresql_nulls_not_distinct=True)
    op.drop_table("ledger_accounts")
    op.drop_table("groups")
    op.drop_index("ix_files_expiring", table_name="files")
    op.drop_index("ix_files_tenant_id_created_at", table_name="files")
    op.drop_index(op.f("ix_files_batch_id"), table_name="files")
    op.drop_table("files")
    op.drop_index(op.f("ix_api_keys_tenant_id"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("tenants")
    op.drop_table("served_models")
    op.drop_index("uq_rate_cards_model_effective_from", table_name="rate_cards")
    op.drop_table("rate_cards")
    op.drop_table("outbox")
    op.execute("DROP FUNCTION ledger_transaction_sums_to_zero")
