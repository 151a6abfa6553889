"""Fair shares

Counters and weights of tenants, what slices are expected to be, indexes that a claim goes by, and credits. Processes of
the version before go on beside it: their claims charge nobody until their outcomes are recorded by this version, and
what they plan counts with the most that it can be.

The indexes are of slices, of which there is one for a minute of work or so: making them takes an instant.

Revision 0007, after 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_EXPECTED = ("num_prompt_tokens", "num_shared_tokens", "num_answer_tokens")
_NOW = sa.text("now()")


def upgrade() -> None:
    op.create_table(
        "fair_shares",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("service_class", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("served", sa.Numeric(38, 6), nullable=False),
        sa.CheckConstraint("service_class IN ('priority', 'standard', 'flex')", name="service_class"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_fair_shares_tenant_id")),
        sa.PrimaryKeyConstraint("model", "service_class", "tenant_id", name=op.f("pk_fair_shares")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "tenant_weights",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("weight", sa.Numeric(9, 3), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint("weight > 0", name="weight_positive"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_tenant_weights_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_tenant_weights")),
    )
    op.create_table(
        "class_turns",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("standard_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("flex_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("group_id", name=op.f("pk_class_turns")),
    )
    op.create_table(
        "credit_notes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(38, 15), nullable=False),
        sa.Column("ledger_transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint("reason IN ('missed_window')", name="reason"),
        sa.CheckConstraint("amount > 0", name="amount_positive"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_credit_notes_tenant_id")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_credit_notes_batch_id")),
        sa.ForeignKeyConstraint(
            ["ledger_transaction_id"], ["ledger_transactions.id"], name=op.f("fk_credit_notes_ledger_transaction_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_notes")),
    )
    op.create_index(
        "uq_credit_notes_batch_id_reason_currency", "credit_notes", ["batch_id", "reason", "currency"], unique=True
    )
    op.create_index("ix_credit_notes_tenant_id_created_at", "credit_notes", ["tenant_id", "created_at"])
    for column in _EXPECTED:
        op.add_column("slices", sa.Column(column, sa.BigInteger(), server_default="0", nullable=False))
    op.create_index(
        "ix_slices_pending_by_tenant",
        "slices",
        ["model", "service_class", "tenant_id", "deadline", "id"],
        postgresql_where="status = 'pending'",
    )
    op.create_index("ix_slices_at_work", "slices", ["model"], postgresql_where="status = 'claimed'")
    op.drop_index("ix_slices_pending", table_name="slices", postgresql_where="status = 'pending'")
    op.create_index("ix_attempts_started_at", "attempts", ["started_at"])


def downgrade() -> None:
    op.drop_index("ix_attempts_started_at", table_name="attempts")
    op.create_index("ix_slices_pending", "slices", ["model", "id"], postgresql_where="status = 'pending'")
    op.drop_index("ix_slices_at_work", table_name="slices", postgresql_where="status = 'claimed'")
    op.drop_index("ix_slices_pending_by_tenant", table_name="slices", postgresql_where="status = 'pending'")
    for column in reversed(_EXPECTED):
        op.drop_column("slices", column)
    for table in ("credit_notes", "class_turns", "tenant_weights", "fair_shares"):
        op.drop_table(table)
