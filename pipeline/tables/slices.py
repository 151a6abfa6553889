"""Slices, the unit of claiming, and the attempts made at them."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, RowId, text_enum
from pipeline.tables.batches import ServiceClass


class SliceStatus(StrEnum):
    PENDING = "pending"  #: Waits for a group.
    CLAIMED = "claimed"  #: A group has a lease on it.
    DONE = "done"  #: No request of it is without an outcome.


class Slice(Base):
    """Consecutive planned requests of one batch and model, claimed as one."""

    __tablename__ = "slices"
    __table_args__ = (
        # In the order in which a claim looks for one.
        Index(
            "ix_slices_pending_by_tenant",
            *("model", "service_class", "tenant_id", "deadline", "id"),
            postgresql_where="status = 'pending'",
        ),
        Index("ix_slices_at_work", "model", postgresql_where="status = 'claimed'"),
        Index("ix_slices_claimed", "lease_expires_at", postgresql_where="status = 'claimed'"),
        Index("uq_slices_batch_id_position", "batch_id", "position", unique=True),
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: Mapped[RowId]
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    service_class: Mapped[ServiceClass] = mapped_column(
        text_enum(ServiceClass, "service_class"), server_default=ServiceClass.STANDARD.value
    )
    model: Mapped[str]
    #: In the batch's plan, from 0.
    position: Mapped[int]
    #: End of the batch's window.
    deadline: Mapped[Moment]
    num_requests: Mapped[int]
    #: Prompt tokens and max_tokens of its requests: the most work that it can be.
    num_tokens: Mapped[int]
    # What it is expected to be; 0 where control of a version before planned it.
    num_prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    #: Of these, those that the prompt before has too: found in the prefix cache, if all goes well.
    num_shared_tokens: Mapped[int] = mapped_column(server_default="0")
    #: Of max_tokens, of each request no more than planning counts.
    num_answer_tokens: Mapped[int] = mapped_column(server_default="0")

    status: Mapped[SliceStatus] = mapped_column(text_enum(SliceStatus, "status"))
    #: Counts the claims; whoever holds an older one writes nothing.
    lease_epoch: Mapped[int] = mapped_column(server_default="0")
    lease_expires_at: Mapped[Moment | None]
    #: Of the last claim; kept when the lease ends, for prefix affinity.
    group_id: Mapped[str | None]
    num_unfinished: Mapped[int]


class AttemptEnd(StrEnum):
    """Why an attempt ended."""

    FINISHED = "finished"  #: Every request of the slice has an outcome.
    LOST = "lost"  #: The lease ran out.
    RETURNED = "returned"  #: The group gave it back: drained, or its engine could not go on.


class Attempt(Base):
    """One claim of a slice by a group, with its lease epoch. Work thrown away is recorded here and never billed."""

    __tablename__ = "attempts"
    #: What groups have got done of late is looked up by it.
    __table_args__ = (Index("ix_attempts_started_at", "started_at"),)

    slice_id: Mapped[int] = mapped_column(ForeignKey("slices.id"), primary_key=True)
    lease_epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    batch_id: Mapped[str]
    group_id: Mapped[str]
    started_at: Mapped[Created]
    ended_at: Mapped[Moment | None]
    end: Mapped[AttemptEnd | None] = mapped_column(text_enum(AttemptEnd, "end"))
    num_succeeded: Mapped[int] = mapped_column(server_default="0")
    num_unsuccessful: Mapped[int] = mapped_column(server_default="0")
    #: Tokens computed for requests that this attempt recorded.
    num_tokens: Mapped[int] = mapped_column(server_default="0")
    #: Their shares of the engine's time. None: a group of the version before did not say.
    engine_ms: Mapped[int | None]
    #: Tokens computed and thrown away (crash, drain, cancel), as far as the group could tell; `waste` has the causes.
    num_wasted_tokens: Mapped[int] = mapped_column(server_default="0")
