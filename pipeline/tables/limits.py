"""Limits of tenants that differ from those of the settings."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base


class RateLimit(Base):
    """How fast a tenant, or one key of it, may call. None: as the settings say; 0: no limit."""

    __tablename__ = "rate_limits"
    __table_args__ = (
        CheckConstraint("requests_per_minute >= 0 AND tokens_per_minute >= 0", name="limits_not_negative"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Empty: of all keys of the tenant together.
    api_key_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]


class QueueLimit(Base):
    """How much a tenant may have enqueued. None: as the settings say; 0: no limit."""

    __tablename__ = "queue_limits"
    __table_args__ = (CheckConstraint("enqueued_tokens >= 0 AND enqueued_batches >= 0", name="limits_not_negative"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Empty: tokens of each model that has no row of its own, and batches of all models together.
    model: Mapped[str] = mapped_column(primary_key=True, server_default="")
    #: Prompt tokens of requests without an outcome.
    enqueued_tokens: Mapped[int | None]
    #: Batches that have not ended.
    enqueued_batches: Mapped[int | None]
