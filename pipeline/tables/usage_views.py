"""Usage and its prices in one form, whichever tables they are kept in: views, which nothing is written to.

What an answer used, and what it costs where a token always costs the same, is in its row of `results`. Every other
price is a rated line. Groups of older versions have written usage events, and rated lines of all prices. The views have
a row for each meter of an answer, whatever way it was recorded.

PostgreSQL hands constants and parameters down into a view, and the row of a correlated subquery, but no rows of a join:
whoever reads these names a tenant and a span, a batch, or a span of requests; who has only a request asks `results`.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import BigInteger, DateTime, MetaData, Numeric, SmallInteger, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pipeline.tables.base import text_enum
from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter

#: Whether a tenant `t` used anything from :begin until :end, asked of what the views are made of: of an index each.
HAS_USED: Final = """(
    EXISTS (SELECT FROM results a WHERE a.tenant_id = t.id AND a.created_at >= :begin AND a.created_at < :end)
    OR EXISTS (SELECT FROM usage_events u WHERE u.tenant_id = t.id AND u.occurred_at >= :begin AND u.occurred_at < :end)
)"""


class ViewBase(DeclarativeBase):
    """Apart from the tables, so that nobody takes a view for one that is missing."""

    metadata = MetaData()
    type_annotation_map = {  # noqa: RUF012
        str: Text(),
        int: BigInteger(),
        datetime: DateTime(timezone=True),
        Decimal: Numeric(),
        Meter: text_enum(Meter, "meter"),
        ServiceClass: text_enum(ServiceClass, "service_class"),
    }


class _Usage:
    """What was used."""

    request_id: Mapped[int] = mapped_column(primary_key=True)
    meter: Mapped[Meter] = mapped_column(primary_key=True)
    #: Tokens.
    quantity: Mapped[int]
    tenant_id: Mapped[str]
    project_id: Mapped[str | None]
    api_key_id: Mapped[str]
    batch_id: Mapped[str]
    service_class: Mapped[ServiceClass]
    model: Mapped[str]
    group_id: Mapped[str]
    #: Of the meter `output` alone, so that sums are right.
    engine_ms: Mapped[int]
    occurred_at: Mapped[datetime]


class MeteredUsage(_Usage, ViewBase):
    """One meter of one result."""

    __tablename__ = "metered_usage"


class RatedUsage(_Usage, ViewBase):
    """One meter of one result with the price that holds now; that is NULL, all of it, where it has none."""

    __tablename__ = "rated_usage"

    revision: Mapped[int | None] = mapped_column(SmallInteger)
    rate_card_id: Mapped[int | None]
    ledger_transaction_id: Mapped[int | None]
    rated_quantity: Mapped[int | None]
    quantity_before: Mapped[int | None]
    unit_price: Mapped[Decimal | None]
    amount: Mapped[Decimal | None]
    currency: Mapped[str | None]
