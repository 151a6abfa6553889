"""Usage added up, so that a report reads few rows. Never the source of truth: events are."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import DateTime, Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Moment, Money, text_enum


class Period(StrEnum):
    """What a roll-up adds up over, in UTC."""

    HOUR = "hour"
    DAY = "day"


class UsageRollup(Base):
    """One meter of what a key used of a model in an hour or a day, as far as one shard has counted it.

    A tenant's groups record at the same time, and each locks the rows that it adds to until its commit. So each adds
    to the shard that its id falls into, and who reads adds the shards up.
    """

    __tablename__ = "usage_rollups"
    __table_args__ = (
        Index("ix_usage_rollups_api_key_id_period_starts_at", "api_key_id", "period", "starts_at"),
        # An addition is an update in place: no index holds what it changes, and each page has room for it.
        {"postgresql_with": {"fillfactor": 50}},
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    period: Mapped[Period] = mapped_column(text_enum(Period, "period"), primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    #: The default one for events without a project.
    project_id: Mapped[str] = mapped_column(primary_key=True)
    api_key_id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    service_class: Mapped[str] = mapped_column(primary_key=True)
    meter: Mapped[str] = mapped_column(primary_key=True)
    #: Of the amount; empty for events that have no price.
    currency: Mapped[str] = mapped_column(primary_key=True)
    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    #: Of the meter `output`: requests.
    num_events: Mapped[int]
    quantity: Mapped[int]
    engine_ms: Mapped[int]
    amount: Mapped[Money]


class ArchivedUsage(Base):
    """What the usage events of dropped partitions came to, by hour: roll-ups are the sum of this and of the events."""

    __tablename__ = "archived_usage"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    starts_at: Mapped[Moment] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(primary_key=True)
    api_key_id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    service_class: Mapped[str] = mapped_column(primary_key=True)
    meter: Mapped[str] = mapped_column(primary_key=True)
    currency: Mapped[str] = mapped_column(primary_key=True)
    num_events: Mapped[int]
    quantity: Mapped[int]
    engine_ms: Mapped[int]
    amount: Mapped[Money]
