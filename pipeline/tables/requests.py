"""Requests and the results of those that succeeded."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import Index, SmallInteger, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Money, text_enum
from pipeline.tables.partitions import PARTITIONED_BY_ID, PARTITIONED_BY_REQUEST


class OutcomeKind(StrEnum):
    """The one terminal result of a request."""

    SUCCEEDED = "succeeded"  #: Has a row in `results`, with its usage.
    FAILED = "failed"  #: `error_code` and `error_message` say why; not billed.
    CANCELLED = "cancelled"  #: Its batch was cancelled first; not billed.
    EXPIRED = "expired"  #: Its window passed first; not billed.


class Request(Base):
    """One accepted line of an input file.

    Partitioned by the month in which it was planned, which its id carries, and with it what hangs on it: see
    `pipeline/tables/partitions.py`. A batch is planned at one moment, so its requests are in one partition: there
    (batch_id, line) and (batch_id, custom_id) are unique. An outcome is an update in place: no index holds it, and each
    page has room for it.
    """

    __tablename__ = "requests"
    __table_args__ = (Index("ix_requests_slice_id", "slice_id"), PARTITIONED_BY_ID)

    #: (months since January 2020) << 40, and a number.
    id: Mapped[int] = mapped_column(primary_key=True, server_default=text("next_request_id()"))
    batch_id: Mapped[str]
    #: Set by planning.
    slice_id: Mapped[int | None]
    #: In the input file, from 1.
    line: Mapped[int]
    custom_id: Mapped[str]
    #: Big-endian 32-bit ids, so that the order of bytes is the order of token ids.
    prompt_token_ids: Mapped[bytes]
    num_prompt_tokens: Mapped[int]
    #: A `GenerationParams`.
    params: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: Engine crashes that this request was part of; kept apart from attempts.
    num_crash_exposures: Mapped[int] = mapped_column(SmallInteger, server_default="0")

    outcome: Mapped[OutcomeKind | None] = mapped_column(text_enum(OutcomeKind, "outcome"))
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]


class PartialOutput(Base):
    """Part of the answer to a request that has no outcome yet, as the group that runs it has generated it.

    The parts of a request, in the order of their positions, are what another attempt goes on from. They are the
    tenant's data like results, opaque here, and deleted in the transaction that gives the request its outcome. No
    foreign key: a part costs one row of one index, and the recording of an outcome looks for parts anyway.
    """

    __tablename__ = "partial_outputs"

    request_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Tokens of the answer, over all choices, that are in the parts before.
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    num_tokens: Mapped[int]
    data: Mapped[bytes]
    created_at: Mapped[Created]


class Result(Base):
    """The answer to a request that succeeded, with what it used and costs; one per request, for ever.

    Usage is in the row where it has a tenant, and its first price where it has a rate card: else it is in usage events,
    which groups of older versions write, and in rated lines. See `pipeline/tables/usage_views.py`.
    """

    __tablename__ = "results"
    __table_args__ = (
        Index("ix_results_batch_id", "batch_id"),
        Index(
            "ix_results_tenant_id_created_at", "tenant_id", "created_at", postgresql_where=text("tenant_id IS NOT NULL")
        ),
        PARTITIONED_BY_REQUEST,
    )

    request_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    batch_id: Mapped[str]
    #: JSON of `response.body` of the output line.
    body: Mapped[str]
    #: Length of the whole output line with its newline, so that the size of a file is a sum.
    num_line_bytes: Mapped[int]
    slice_id: Mapped[int]
    #: Of the attempt that recorded it.
    lease_epoch: Mapped[int]
    group_id: Mapped[str]
    #: Of a batch with receipts: the tokens of the answer, as `pipeline.billing.receipts` packs them.
    output_token_ids: Mapped[bytes | None]
    created_at: Mapped[Created]

    tenant_id: Mapped[str | None]
    #: Tokens by meter, and the request's share of its engine's time.
    num_uncached_tokens: Mapped[int | None]
    num_cached_tokens: Mapped[int | None]
    num_output_tokens: Mapped[int | None]
    engine_ms: Mapped[int | None]
    #: Of a price that is the same for every token.
    rate_card_id: Mapped[int | None]
    ledger_transaction_id: Mapped[int | None]
    uncached_amount: Mapped[Money | None]
    cached_amount: Mapped[Money | None]
    output_amount: Mapped[Money | None]
