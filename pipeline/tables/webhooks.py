"""Webhooks: where tenants want to hear of what happens to their batches, what did, and what was sent."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, text_enum


class DeliveryStatus(StrEnum):
    PENDING = "pending"  #: Is being sent, or waits for its next attempt.
    DELIVERED = "delivered"  #: The receiver answered with a status of success.
    FAILED = "failed"  #: Given up: no attempt succeeded in time, or its endpoint was disabled.


class WebhookEndpoint(Base):
    """An address of a tenant that events are sent to. Its secret is derived, and kept nowhere."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_tenant_id_created_at", "tenant_id", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    #: None: it hears of the batches of all projects, and only keys of the whole tenant see it.
    project_id: Mapped[str | None]
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    #: Counts the secrets that it has had.
    secret_generation: Mapped[int] = mapped_column(server_default="1")
    #: The last characters of the secret, to tell it from others.
    secret_hint: Mapped[str]
    #: Until then what is sent is signed by the secret before, too.
    old_secret_until: Mapped[Moment | None]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    #: Since the first failure after the last success.
    failing_since: Mapped[Moment | None]
    #: Nothing is sent to it from then on.
    disabled_at: Mapped[Moment | None]
    disabled_reason: Mapped[str | None]


class WebhookEvent(Base):
    """Something that has happened to a batch, which somebody wants to hear of; its id is the same in every attempt."""

    __tablename__ = "webhook_events"
    __table_args__ = (Index("ix_webhook_events_created_at", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    type: Mapped[str]
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"))
    created_at: Mapped[Created]


class WebhookDelivery(Base):
    """One event on its way to one endpoint, with the log of the attempts to send it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_endpoint_id_created_at", "endpoint_id", "created_at"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where="status = 'pending'"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("webhook_events.id", ondelete="CASCADE"), index=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    status: Mapped[DeliveryStatus] = mapped_column(
        text_enum(DeliveryStatus, "status"), server_default=DeliveryStatus.PENDING.value
    )
    #: Attempts in all, counted when they begin.
    num_attempts: Mapped[int] = mapped_column(server_default="0")
    #: Of these, those since it was sent, or sent again.
    num_tries: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    #: While an attempt is being made: when it counts as lost.
    next_attempt_at: Mapped[Created]
    give_up_at: Mapped[Moment]
    #: The last attempts, each with `at`, `status` (of HTTP, or null), `error` (or null) and `ms`.
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    created_at: Mapped[Created]
    delivered_at: Mapped[Moment | None]
