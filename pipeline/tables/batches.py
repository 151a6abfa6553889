"""Batches, and the errors that intake found in their lines."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlalchemy import ForeignKey, Index, SmallInteger, false
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, Money, text_enum

#: The `pause_reason` of a batch that its client paused; no budget has this id.
PAUSED_BY_CLIENT: Final = "client"


class BatchStatus(StrEnum):
    """OpenAI's statuses, with OpenAI's meaning."""

    VALIDATING = "validating"  #: Intake and planning have not committed yet.
    FAILED = "failed"  #: Intake refused it; `batch_errors` says why.
    IN_PROGRESS = "in_progress"  #: Some requests have no outcome yet.
    FINALIZING = "finalizing"  #: All have; the files are being closed.
    COMPLETED = "completed"
    EXPIRED = "expired"  #: The window passed first; what was finished is kept and billed.
    CANCELLING = "cancelling"  #: Running requests are being stopped.
    CANCELLED = "cancelled"


#: Statuses in which a batch can be paused.
PAUSABLE: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


class ServiceClass(StrEnum):
    """How soon a batch is wanted."""

    PRIORITY = "priority"  #: Before all others.
    STANDARD = "standard"
    FLEX = "flex"  #: With what the others leave.


class OnInvalid(StrEnum):
    """What intake does with a batch that has invalid lines."""

    FAIL = "fail"  #: The batch fails, with all of them listed.
    SKIP = "skip"  #: Good lines run; invalid ones become lines of the error file.


class Batch(Base):
    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_tenant_id_created_at", "tenant_id", "created_at", "id"),
        Index("ix_batches_paused", "paused_at", postgresql_where="pause_reason IS NOT NULL"),
        # The sweeper looks only at batches that have not ended.
        Index(
            "ix_batches_unfinished",
            "status",
            postgresql_where="status IN ('validating', 'in_progress', 'finalizing', 'cancelling')",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    #: The key that created it; its usage is reported under this key.
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    #: None, of a gateway of an older version: the tenant's default project.
    project_id: Mapped[str | None]
    service_class: Mapped[ServiceClass] = mapped_column(
        text_enum(ServiceClass, "service_class"), server_default=ServiceClass.STANDARD.value
    )
    #: Whose prices were agreed for it; None: the card that is in effect when an outcome is recorded.
    rate_card_id: Mapped[int | None] = mapped_column(ForeignKey("rate_cards.id"))
    quote_id: Mapped[str | None]
    #: In the currency of its prices; a hard budget of its own.
    max_cost: Mapped[Money | None]
    input_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    endpoint: Mapped[str]
    completion_window: Mapped[str]
    on_invalid: Mapped[OnInvalid] = mapped_column(text_enum(OnInvalid, "on_invalid"))
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata", JSONB)
    output_expires_after_seconds: Mapped[int | None]
    #: Whether its output lines carry signed receipts; see `pipeline/billing/receipts.py`.
    has_receipts: Mapped[bool] = mapped_column(server_default=false())
    #: Of a batch with receipts, set by intake: what its model and its tokenizer were then.
    model_revision: Mapped[str | None]
    tokenizer_revision: Mapped[str | None]

    status: Mapped[BatchStatus] = mapped_column(text_enum(BatchStatus, "status"))
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]
    in_progress_at: Mapped[Moment | None]
    finalizing_at: Mapped[Moment | None]
    completed_at: Mapped[Moment | None]
    failed_at: Mapped[Moment | None]
    expired_at: Mapped[Moment | None]
    cancelling_at: Mapped[Moment | None]
    cancelled_at: Mapped[Moment | None]

    #: Times that preparing it has begun; counted first, so that a preparation that kills its process counts too.
    num_preparations: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    #: Not before this moment is it tried again.
    prepare_after: Mapped[Moment | None]

    #: Why no more of it is claimed at the moment: the id of the budget that has no room, or `PAUSED_BY_CLIENT`. Its
    #: window stands still.
    pause_reason: Mapped[str | None]
    #: What the client said why it paused the batch.
    pause_note: Mapped[str | None]
    paused_at: Mapped[Moment | None]
    #: Room that the budget must have before it goes on.
    pause_needs: Mapped[Money | None]

    # Set by intake. A batch has one model.
    model: Mapped[str | None]
    #: Of the files that exist from planning on; see `shown_output_file_id`.
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    #: Accepted requests: rows of `requests`.
    num_requests: Mapped[int] = mapped_column(server_default="0")
    #: Invalid lines that were skipped: rows of `batch_errors`; they count as failed.
    num_skipped: Mapped[int] = mapped_column(server_default="0")

    #: Prompt tokens that intake has counted against the tenant's limit; see `pipeline/tenancy/queue_limits.py`.
    num_reserved_tokens: Mapped[int] = mapped_column(server_default="0")

    # Kept by whoever writes outcomes, in the same transaction.
    #: Those of them whose requests have an outcome.
    num_released_tokens: Mapped[int] = mapped_column(server_default="0")
    num_succeeded: Mapped[int] = mapped_column(server_default="0")
    #: Failed, cancelled or expired.
    num_unsuccessful: Mapped[int] = mapped_column(server_default="0")
    num_prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    num_cached_tokens: Mapped[int] = mapped_column(server_default="0")
    num_completion_tokens: Mapped[int] = mapped_column(server_default="0")

    #: W3C `traceparent` of the call that made it; None where traces are off.
    trace_context: Mapped[str | None]

    @property
    def num_unfinished(self) -> int:
        """Accepted requests without an outcome."""
        return self.num_requests - self.num_succeeded - self.num_unsuccessful

    @property
    def shown_output_file_id(self) -> str | None:
        """None until there is an answer in it, as a client of OpenAI expects; from then on it can be read."""
        return self.output_file_id if self.num_succeeded > 0 else None

    @property
    def shown_error_file_id(self) -> str | None:
        """None until there is a line in it."""
        return self.error_file_id if self.num_unsuccessful + self.num_skipped > 0 else None


class IdempotencyKey(Base):
    """A submission by the name that its client gave it; see `pipeline/jobs/idempotency.py`."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Of the key that called; empty: of the whole tenant.
    project_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    key: Mapped[str] = mapped_column(primary_key=True)
    #: SHA-256 of what was submitted.
    fingerprint: Mapped[bytes]
    batch_id: Mapped[str]
    created_at: Mapped[Created]


class IdempotentAnswer(Base):
    """What a call of POST was answered, by the name that its client gave it; see `pipeline/jobs/idempotency.py`."""

    __tablename__ = "idempotent_answers"
    __table_args__ = (Index("ix_idempotent_answers_created_at", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Of the key that called; empty: of the whole tenant.
    project_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    #: Name of the operation, such as `create_file`.
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    #: SHA-256 of what was sent.
    fingerprint: Mapped[bytes]
    #: JSON of the answer's body.
    answer: Mapped[str]
    created_at: Mapped[Created]


class BatchError(Base):
    """One invalid line (`line` from 1), or one thing wrong with the file as a whole (`line` 0)."""

    __tablename__ = "batch_errors"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: As far as it could be read.
    custom_id: Mapped[str | None]
    code: Mapped[str]
    param: Mapped[str | None]
    message: Mapped[str]
