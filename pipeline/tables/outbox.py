"""Messages to publish, written in the transaction that makes them necessary."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, RowId


class OutboxMessage(Base):
    """Published right after the commit, or by the relay; then deleted. Publishing twice is harmless."""

    __tablename__ = "outbox"

    id: Mapped[RowId]
    queue: Mapped[str]
    #: Name of the Celery task.
    task: Mapped[str]
    args: Mapped[list[Any]] = mapped_column(JSONB)
    #: W3C `traceparent` of whoever wrote it; None where traces are off.
    trace_context: Mapped[str | None]
    created_at: Mapped[Created]
