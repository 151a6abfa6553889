"""Quotes and budgets

Adds columns without a default to `batches`, which rewrites nothing. Groups of the version before take no holds: set
hard budgets when all are of this version.

Revision 0011, after 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_MONEY = sa.Numeric(38, 15)


def upgrade() -> None:
    _create_quotes()
    op.add_column("batches", sa.Column("quote_id", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("max_cost", _MONEY, nullable=True))
    op.add_column("batches", sa.Column("pause_reason", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batches", sa.Column("pause_needs", _MONEY, nullable=True))
    op.create_index("ix_batches_paused", "batches", ["paused_at"], postgresql_where="pause_reason IS NOT NULL")
    _create_budgets()


def _create_quotes() -> None:
    op.create_table(
        "quotes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("on_invalid", _enum("on_invalid", "fail", "skip"), nullable=False),
        sa.Column("service_class", _enum("service_class", "priority", "standard", "flex"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", _enum("status", "computing", "ready", "failed"), nullable=False),
        sa.Column("num_computations", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("errors", postgresql.JSONB(), nullable=True),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in (
                "num_errors",
                "num_requests",
                "num_prompt_tokens",
                "num_shared_tokens",
                "num_output_tokens_p50",
                "num_output_tokens_p95",
                "num_output_tokens_worst",
                "num_learned_requests",
            )
        ),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("rate_card_id", sa.BigInteger(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("cost_p50", _MONEY, nullable=True),
        sa.Column("cost_p95", _MONEY, nullable=True),
        sa.Column("cost_worst", _MONEY, nullable=True),
        sa.Column("finish_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_quotes_tenant_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_quotes_api_key_id")),
        sa.ForeignKeyConstraint(["input_file_id"], ["files.id"], name=op.f("fk_quotes_input_file_id")),
        sa.ForeignKeyConstraint(["rate_card_id"], ["rate_cards.id"], name=op.f("fk_quotes_rate_card_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quotes")),
    )
    op.create_index("ix_quotes_computing", "quotes", ["created_at"], postgresql_where="status = 'computing'")
    op.create_index("ix_quotes_expires_at", "quotes", ["expires_at"])


def _create_budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("api_key_id", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("period", _enum("period", "month", "total"), nullable=False),
        sa.Column("amount", _MONEY, nullable=False),
        sa.Column("is_hard", sa.Boolean(), nullable=False),
        sa.Column("is_prepaid", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("num_nonnulls(project_id, api_key_id, batch_id) <= 1", name=op.f("ck_budgets_one_scope")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_budgets_not_negative")),
        sa.CheckConstraint("NOT is_prepaid OR (period = 'total' AND is_hard)", name=op.f("ck_budgets_prepaid_is_hard")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_budgets_tenant_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_budgets_api_key_id")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_budgets_batch_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
    )
    op.create_index(
        "uq_budgets_scope",
        "budgets",
        ["tenant_id", "project_id", "api_key_id", "batch_id", "currency", "period", "is_prepaid"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_index("ix_budgets_batch_id", "budgets", ["batch_id"], postgresql_where="batch_id IS NOT NULL")
    op.create_index("ix_budgets_tenant_id", "budgets", ["tenant_id"], postgresql_where="batch_id IS NULL")
    op.create_table(
        "budget_uses",
        sa.Column("budget_id", sa.Text(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("spent", _MONEY, server_default="0", nullable=False),
        sa.Column("held", _MONEY, server_default="0", nullable=False),
        sa.Column("alerted_percent", sa.SmallInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_uses_budget_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("budget_id", "period_start", name=op.f("pk_budget_uses")),
    )
    op.create_table(
        "holds",
        sa.Column("slice_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("budget_id", sa.Text(), nullable=False),
        sa.Column("period_start", sa.Date(), nullable=False),
        sa.Column("amount", _MONEY, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["slice_id"], ["slices.id"], name=op.f("fk_holds_slice_id")),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name=op.f("fk_holds_budget_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("slice_id", "budget_id", name=op.f("pk_holds")),
    )
    op.create_index("ix_holds_budget_id", "holds", ["budget_id"])


def downgrade() -> None:
    op.drop_table("holds")
    op.drop_table("budget_uses")
    op.drop_table("budgets")
    op.drop_index("ix_batches_paused", table_name="batches")
    for name in ("pause_needs", "paused_at", "pause_reason", "max_cost", "quote_id"):
        op.drop_column("batches", name)
    op.drop_table("quotes")


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=32)
