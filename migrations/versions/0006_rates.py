"""Rate cards of plans, contracts, credits, and waste

A card has rates of several models, in four models of price. The cards that are there become versions of the default
plan. Processes of the version before go on beside it: they read and write cards of one model with flat prices, of which the
database makes rates, and know nothing of other cards and of contracts. So publish none of these before all processes
are of this version.

Revision 0006, after 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_METERS = ("input_uncached", "input_cached", "output")
_FLAT_PRICES = ("input_price", "cached_input_price", "output_price")

# One transaction gives one version at a time: two would find the same.
_NUMBER_CARDS = """
    CREATE FUNCTION number_rate_card() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('rate cards of ' || NEW.plan, 0));
        NEW.version := (SELECT coalesce(max(version), 0) + 1 FROM rate_cards WHERE plan = NEW.plan);
        RETURN NEW;
    END $$
"""

_CONTENT = """
    CREATE FUNCTION rate_card_content(card bigint) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT jsonb_build_object(
            'plan', k.plan, 'version', k.version, 'currency', k.currency,
            'batch_discount', k.batch_discount::text, 'priority_multiplier', k.priority_multiplier::text,
            'flex_multiplier', k.flex_multiplier::text,
            'rates', (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'model', r.model, 'meter', r.meter, 'pricing', r.pricing, 'unit_price', r.unit_price::text,
                    'package_size', r.package_size, 'tiers', r.tiers, 'minimum', r.minimum::text
                ) ORDER BY r.model COLLATE "C", r.meter COLLATE "C"), '[]'::jsonb)
                FROM rates r WHERE r.rate_card_id = k.id
            )
        )::text FROM rate_cards k WHERE k.id = card
    $$
"""

_MAKE_RATES = """
    CREATE FUNCTION make_flat_rates() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO rates (rate_card_id, model, meter, pricing, unit_price)
        VALUES (NEW.id, NEW.model, 'input_uncached', 'flat', NEW.input_price),
               (NEW.id, NEW.model, 'input_cached', 'flat', NEW.cached_input_price),
               (NEW.id, NEW.model, 'output', 'flat', NEW.output_price);
        UPDATE rate_cards SET sha256 = sha256(convert_to(rate_card_content(NEW.id), 'UTF8')) WHERE id = NEW.id;
        RETURN NULL;
    END $$
"""

# What the trigger above does to the card that it belongs to is one level deeper than what anybody else does.
_KEEP_CARDS = """
    CREATE FUNCTION keep_published_rate_card() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.published_at IS NOT NULL AND pg_trigger_depth() = 1 THEN
            RAISE EXCEPTION 'rate card % is published and can not be changed; make a new version', OLD.id;
        END IF;
        IF TG_OP = 'DELETE' THEN
            RETURN OLD;
        END IF;
        IF OLD.published_at IS NULL AND NEW.published_at IS NOT NULL THEN
            NEW.sha256 := sha256(convert_to(rate_card_content(OLD.id), 'UTF8'));
        END IF;
        RETURN NEW;
    END $$
"""

_KEEP_RATES = """
    CREATE FUNCTION keep_published_rates() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        card bigint := CASE TG_OP WHEN 'DELETE' THEN OLD.rate_card_id ELSE NEW.rate_card_id END;
    BEGIN
        IF pg_trigger_depth() = 1 AND EXISTS (
            SELECT FROM rate_cards
            WHERE published_at IS NOT NULL
              AND id IN (card, CASE TG_OP WHEN 'INSERT' THEN card ELSE OLD.rate_card_id END)
        ) THEN
            RAISE EXCEPTION 'rate card % is published and its rates can not be changed; make a new version', card;
        END IF;
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END $$
"""

_APPEND_ONLY = """
    CREATE FUNCTION keep_row() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'rows of % are never changed; write another', TG_TABLE_NAME;
    END $$
"""


def upgrade() -> None:
    _extend_rate_cards()
    _create_rates()
    _create_contracts()
    _create_credits()
    _extend_rating()
    _create_waste()


def _extend_rate_cards() -> None:
    op.add_column("rate_cards", sa.Column("plan", sa.Text(), server_default="default", nullable=False))
    op.add_column("rate_cards", sa.Column("version", sa.BigInteger(), server_default="0", nullable=False))
    for service_class in ("priority", "flex"):
        column = sa.Column(f"{service_class}_multiplier", sa.Numeric(6, 3), server_default="1", nullable=False)
        op.add_column("rate_cards", column)
    moment = sa.DateTime(timezone=True)
    op.add_column("rate_cards", sa.Column("published_at", moment, server_default=sa.text("now()"), nullable=True))
    op.add_column("rate_cards", sa.Column("sha256", sa.LargeBinary(), nullable=True))
    for name in ("model", *_FLAT_PRICES, "effective_from"):
        op.alter_column("rate_cards", name, nullable=True)
    op.create_check_constraint(
        op.f("ck_rate_cards_multipliers_not_negative"),
        "rate_cards",
        "priority_multiplier >= 0 AND flex_multiplier >= 0",
    )
    op.execute("""
        UPDATE rate_cards k SET published_at = k.created_at, version = numbered.version
        FROM (SELECT id, row_number() OVER (ORDER BY id) AS version FROM rate_cards) numbered WHERE numbered.id = k.id
    """)
    op.create_index("uq_rate_cards_plan_version", "rate_cards", ["plan", "version"], unique=True)


def _create_rates() -> None:
    op.create_table(
        "rates",
        sa.Column("rate_card_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("meter", _enum("meter", *_METERS), nullable=False),
        sa.Column("pricing", _enum("pricing", "flat", "graduated", "volume", "package"), nullable=False),
        sa.Column("unit_price", sa.Numeric(20, 6), nullable=True),
        sa.Column("package_size", sa.BigInteger(), nullable=True),
        sa.Column("tiers", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("minimum", sa.Numeric(20, 6), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(pricing IN ('flat', 'package')) = (unit_price IS NOT NULL)", name=op.f("ck_rates_has_unit_price")
        ),
        sa.CheckConstraint(
            "(pricing IN ('graduated', 'volume')) = (tiers IS NOT NULL)", name=op.f("ck_rates_has_tiers")
        ),
        sa.CheckConstraint(
            "(pricing = 'package') = (package_size IS NOT NULL)", name=op.f("ck_rates_has_package_size")
        ),
        sa.CheckConstraint("unit_price >= 0 AND package_size > 0 AND minimum >= 0", name=op.f("ck_rates_not_negative")),
        sa.ForeignKeyConstraint(
            ["rate_card_id"], ["rate_cards.id"], name=op.f("fk_rates_rate_card_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rate_card_id", "model", "meter", name=op.f("pk_rates")),
    )
    op.create_index("ix_rates_model", "rates", ["model"])
    for meter, price in zip(_METERS, _FLAT_PRICES, strict=True):
        op.execute(
            "INSERT INTO rates (rate_card_id, model, meter, pricing, unit_price)"
            f" SELECT id, model, '{meter}', 'flat', {price} FROM rate_cards"  # noqa: S608
        )
    for function in (_CONTENT, _NUMBER_CARDS, _MAKE_RATES, _KEEP_CARDS, _KEEP_RATES):
        op.execute(function)
    op.execute("UPDATE rate_cards SET sha256 = sha256(convert_to(rate_card_content(id), 'UTF8'))")
    op.execute("""
        CREATE TRIGGER number_rate_card BEFORE INSERT ON rate_cards FOR EACH ROW EXECUTE FUNCTION number_rate_card()
    """)
    op.execute("""
        CREATE TRIGGER make_flat_rates AFTER INSERT ON rate_cards
        FOR EACH ROW WHEN (NEW.model IS NOT NULL) EXECUTE FUNCTION make_flat_rates()
    """)
    op.execute("""
        CREATE TRIGGER keep_published_rate_card BEFORE UPDATE OR DELETE ON rate_cards
        FOR EACH ROW EXECUTE FUNCTION keep_published_rate_card()
    """)
    op.execute("""
        CREATE TRIGGER keep_published_rates BEFORE INSERT OR UPDATE OR DELETE ON rates
        FOR EACH ROW EXECUTE FUNCTION keep_published_rates()
    """)


def _create_contracts() -> None:
    op.create_table(
        "contracts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("overrides", sa.Text(), nullable=True),
        sa.Column("commitment", sa.Numeric(38, 15), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        _moment("effective_from"),
        _moment("created_at"),
        sa.CheckConstraint(
            "(commitment IS NULL) = (currency IS NULL) AND commitment > 0",
            name=op.f("ck_contracts_commitment_has_currency"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_contracts_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contracts")),
    )
    op.create_index("ix_contracts_tenant_id_effective_from", "contracts", ["tenant_id", "effective_from"])
    op.add_column("batches", sa.Column("rate_card_id", sa.BigInteger(), nullable=True))
    # Not checked against the batches that are there, which would hold the lock for long: none has one.
    op.execute("""
        ALTER TABLE batches ADD CONSTRAINT fk_batches_rate_card_id FOREIGN KEY (rate_card_id) REFERENCES rate_cards (id)
        NOT VALID
    """)


def _create_credits() -> None:
    op.create_table(
        "credit_grants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(38, 15), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        _moment("created_at"),
        sa.CheckConstraint("amount > 0", name=op.f("ck_credit_grants_positive")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_credit_grants_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_grants")),
    )
    op.create_index("ix_credit_grants_tenant_id", "credit_grants", ["tenant_id"])
    op.add_column("ledger_accounts", sa.Column("grant_id", sa.Text(), nullable=True))
    op.create_foreign_key("fk_ledger_accounts_grant_id", "ledger_accounts", "credit_grants", ["grant_id"], ["id"])
    op.drop_index("uq_ledger_accounts", table_name="ledger_accounts")
    op.create_index(
        "uq_ledger_accounts",
        "ledger_accounts",
        ["kind", "tenant_id", "currency", "grant_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.add_column("ledger_transactions", sa.Column("kind", sa.Text(), server_default="usage", nullable=False))
    op.add_column("ledger_transactions", sa.Column("period", sa.Date(), nullable=True))


def _extend_rating() -> None:
    op.add_column("rated_lines", sa.Column("quantity_before", sa.BigInteger(), server_default="0", nullable=False))
    op.alter_column("rated_lines", "unit_price", nullable=True)
    op.create_table(
        "rating_counters",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("rate_card_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("meter", _enum("meter", *_METERS), nullable=False),
        sa.Column("service_class", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["rate_card_id"], ["rate_cards.id"], name=op.f("fk_rating_counters_rate_card_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_rating_counters_tenant_id")),
        sa.PrimaryKeyConstraint(
            "tenant_id", "month", "rate_card_id", "model", "meter", "service_class", name=op.f("pk_rating_counters")
        ),
    )


def _create_waste() -> None:
    causes = ("crash", "drain", "lost_lease", "failed", "cancelled", "expired", "recomputed")
    op.create_table(
        "waste",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("slice_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("cause", _enum("cause", *causes), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column("engine_ms", sa.BigInteger(), nullable=True),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_waste")),
    )
    op.create_index("ix_waste_created_at", "waste", ["created_at"])
    op.create_index("ix_waste_slice_id_lease_epoch", "waste", ["slice_id", "lease_epoch"])
    op.add_column("attempts", sa.Column("engine_ms", sa.BigInteger(), nullable=True))
    op.execute(_APPEND_ONLY)
    for table in ("waste", "contracts", "credit_grants"):
        op.execute(
            f"CREATE TRIGGER keep_row BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep_row()"
        )


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=32)


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def downgrade() -> None:
    """Cards that are not of one model with flat prices go, with the prices of what they rated."""
    op.drop_column("attempts", "engine_ms")
    op.drop_table("waste")
    op.drop_table("rating_counters")
    for trigger in ("keep_published_rate_card", "make_flat_rates", "number_rate_card"):
        op.execute(f"DROP TRIGGER {trigger} ON rate_cards")
    op.execute("""
        DELETE FROM rated_lines l USING rate_cards k WHERE k.id = l.rate_card_id AND (k.model IS NULL
            OR k.effective_from IS NULL OR k.published_at IS NULL)
    """)
    op.alter_column("rated_lines", "unit_price", nullable=False)
    op.drop_column("rated_lines", "quantity_before")
    op.drop_column("ledger_transactions", "period")
    op.drop_column("ledger_transactions", "kind")
    op.execute(
        "DELETE FROM ledger_entries e USING ledger_accounts a WHERE a.id = e.account_id AND a.grant_id IS NOT NULL"
    )
    op.execute("DELETE FROM ledger_accounts WHERE grant_id IS NOT NULL")
    op.drop_column("ledger_accounts", "grant_id")  # with the index that holds it
    op.create_index(
        "uq_ledger_accounts",
        "ledger_accounts",
        ["kind", "tenant_id", "currency"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("credit_grants")
    op.drop_column("batches", "rate_card_id")
    op.drop_table("contracts")
    op.drop_table("rates")
    op.execute("DELETE FROM rate_cards WHERE model IS NULL OR effective_from IS NULL OR published_at IS NULL")
    for name in ("model", *_FLAT_PRICES, "effective_from"):
        op.alter_column("rate_cards", name, nullable=False)
    op.drop_index("uq_rate_cards_plan_version", table_name="rate_cards")
    for name in ("sha256", "published_at", "flex_multiplier", "priority_multiplier", "version", "plan"):
        op.drop_column("rate_cards", name)
    for function in (
        "number_rate_card()",
        "rate_card_content(bigint)",
        "make_flat_rates()",
        "keep_published_rate_card()",
        "keep_published_rates()",
        "keep_row()",
    ):
        op.execute(f"DROP FUNCTION {function}")
