"""What is served, and by whom."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, false
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, text_enum


class ServedModel(Base):
    """A model that a group has registered; intake reads its tokenizer from `path`."""

    __tablename__ = "served_models"

    name: Mapped[str] = mapped_column(primary_key=True)
    #: Folder in the Hugging Face layout, as control sees it.
    path: Mapped[str]
    #: Longest prompt + max_tokens.
    context_length: Mapped[int]
    created_at: Mapped[Created]


class GroupState(StrEnum):
    STARTING = "starting"  #: Its engine loads.
    READY = "ready"  #: Claims slices.
    RESTARTING = "restarting"  #: Its engine is being replaced; claims nothing.
    DEGRADED = "degraded"  #: Its engine crashed too often; claims nothing until a person looks.
    DRAINING = "draining"  #: Asked to take nothing more; finishes what runs within the drain time.
    DRAINED = "drained"  #: Holds nothing, and claims nothing until it is told to resume.
    STOPPED = "stopped"  #: Ended in order.


class Group(Base):
    """A Celery worker and the ranks that it hosts; the row is taken over when a group of that name starts again."""

    __tablename__ = "groups"

    #: `NAME@HOST`, the Celery node name.
    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("served_models.name"))
    state: Mapped[GroupState] = mapped_column(text_enum(GroupState, "state"))
    reason: Mapped[str | None]
    pid: Mapped[int]
    #: Rank 0 first; empty for an engine without ranks.
    rank_pids: Mapped[list[int]] = mapped_column(JSONB)
    #: Engine kind, tensor parallelism, device, dtype, KV tokens, restarts.
    info: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: A person wants it to hold nothing; it hears of that with its next heartbeat.
    is_drain_wanted: Mapped[bool] = mapped_column(server_default=false())
    started_at: Mapped[Created]
    heartbeat_at: Mapped[Created]
