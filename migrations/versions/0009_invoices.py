"""Invoices

Their tables, and triggers that hold what is issued immutable. A batch can ask for receipts, for which its results keep
the tokens of their answers; new columns have defaults that rewrite nothing, so that gateways and groups of the version
before go on beside it, and give no receipts.

Revision 0009, after 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_MONEY = sa.Numeric(38, 15)
_PRICE = sa.Numeric(20, 6)
_STATUSES = ("draft", "collecting", "final", "void")
_KINDS = ("usage", "correction", "commitment", "credit_note", "credit", "rounding")
_METERS = ("input_uncached", "input_cached", "output")
_CLASSES = ("priority", "standard", "flex")
_PARTS = ("invoice_lines", "invoice_items")


def _choice(values: tuple[str, ...], name: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=32)


def upgrade() -> None:
    _add_tables()
    _close_what_is_issued()
    op.add_column("batches", sa.Column("has_receipts", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("batches", sa.Column("model_revision", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("tokenizer_revision", sa.Text(), nullable=True))
    op.add_column("results", sa.Column("output_token_ids", sa.LargeBinary(), nullable=True))


def _add_tables() -> None:
    op.create_table(
        "invoices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("month_start", sa.Date(), nullable=False),
        sa.Column("status", _choice(_STATUSES, "status"), nullable=False),
        sa.Column("number", sa.Text(), nullable=True),
        sa.Column("customer", postgresql.JSONB(), nullable=False),
        sa.Column("supplier", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("voided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("void_reason", sa.Text(), nullable=True),
        sa.Column("exact", _MONEY, nullable=True),
        sa.Column("total", _MONEY, nullable=True),
        sa.Column("receipts_root", sa.Text(), nullable=True),
        sa.Column("num_receipts", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(status = 'final') <= (number IS NOT NULL)", name=op.f("ck_invoices_final_has_number")),
        sa.CheckConstraint("(number IS NULL) = (issued_at IS NULL)", name=op.f("ck_invoices_number_is_of_issue")),
        sa.CheckConstraint("(number IS NULL) = (total IS NULL)", name=op.f("ck_invoices_issued_has_total")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_invoices_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
        sa.UniqueConstraint("number", name=op.f("uq_invoices_number")),
    )
    op.create_index(
        "uq_invoices_of_month",
        "invoices",
        ["tenant_id", "currency", "month_start"],
        unique=True,
        postgresql_where="status <> 'void'",
    )
    op.create_index("ix_invoices_tenant_id_created_at", "invoices", ["tenant_id", "created_at", "id"])
    op.create_table(
        "invoice_lines",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("kind", _choice(_KINDS, "kind"), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("service_month", sa.Date(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("meter", _choice(_METERS, "meter"), nullable=True),
        sa.Column("service_class", _choice(_CLASSES, "service_class"), nullable=True),
        sa.Column("rate_card_id", sa.BigInteger(), nullable=True),
        sa.Column("unit_price", _PRICE, nullable=True),
        sa.Column("quantity", sa.BigInteger(), nullable=True),
        sa.Column("exact", _MONEY, nullable=False),
        sa.Column("amount", _MONEY, nullable=False),
        sa.Column("credit_note_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_invoice_lines_invoice_id")),
        sa.PrimaryKeyConstraint("invoice_id", "position", name=op.f("pk_invoice_lines")),
    )
    op.create_index("ix_invoice_lines_credit_note_id", "invoice_lines", ["credit_note_id"])
    op.create_table(
        "invoice_items",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("meter", _choice(_METERS, "meter"), nullable=False),
        sa.Column("service_class", _choice(_CLASSES, "service_class"), nullable=False),
        sa.Column("rate_card_id", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", _PRICE, nullable=True),
        sa.Column("num_events", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("exact", _MONEY, nullable=False),
        sa.ForeignKeyConstraint(
            ["invoice_id", "position"],
            ["invoice_lines.invoice_id", "invoice_lines.position"],
            name=op.f("fk_invoice_items_invoice_id_position"),
        ),
        sa.PrimaryKeyConstraint("invoice_id", "number", name=op.f("pk_invoice_items")),
    )
    op.create_table(
        "invoice_numbers",
        sa.Column("year", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("year", name=op.f("pk_invoice_numbers")),
    )
    op.create_table(
        "billing_details",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("tax_id", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("reference", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_billing_details_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_billing_details")),
    )


def _close_what_is_issued() -> None:
    """A final invoice can be made void, and that is all that ever changes of it."""
    op.execute("""
        CREATE FUNCTION invoice_is_closed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.number IS NOT NULL AND NOT (
                TG_OP = 'UPDATE' AND OLD.status = 'final' AND NEW.status = 'void'
                AND to_jsonb(NEW) - '{status,voided_at,void_reason}'::text[]
                  = to_jsonb(OLD) - '{status,voided_at,void_reason}'::text[]
            ) THEN
                RAISE EXCEPTION 'invoice % is closed', OLD.number;
            END IF;
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END $$
    """)
    op.execute("""
        CREATE FUNCTION invoice_part_is_closed() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE closed text;
        BEGIN
            SELECT number INTO closed FROM invoices
            WHERE id IN (CASE WHEN TG_OP <> 'INSERT' THEN OLD.invoice_id END,
                         CASE WHEN TG_OP <> 'DELETE' THEN NEW.invoice_id END) AND number IS NOT NULL;
            IF closed IS NOT NULL THEN
                RAISE EXCEPTION 'invoice % is closed', closed;
            END IF;
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END $$
    """)
    op.execute("""
        CREATE FUNCTION invoices_are_kept() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% can not be emptied: it holds issued invoices', TG_TABLE_NAME;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER invoices_are_immutable BEFORE UPDATE OR DELETE ON invoices
        FOR EACH ROW EXECUTE FUNCTION invoice_is_closed()
    """)
    for table in _PARTS:
        op.execute(f"""
            CREATE TRIGGER {table}_are_immutable BEFORE INSERT OR UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION invoice_part_is_closed()
        """)
    for table in ("invoices", *_PARTS):
        op.execute(f"""
            CREATE TRIGGER {table}_are_kept BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION invoices_are_kept()
        """)


def downgrade() -> None:
    op.drop_column("results", "output_token_ids")
    for column in ("tokenizer_revision", "model_revision", "has_receipts"):
        op.drop_column("batches", column)
    for table in ("billing_details", "invoice_numbers", "invoice_items", "invoice_lines", "invoices"):
        op.drop_table(table)
    for function in ("invoices_are_kept", "invoice_part_is_closed", "invoice_is_closed"):
        op.execute(f"DROP FUNCTION {function}")
