"""Quotes: what a batch will cost, computed before it runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, SmallInteger
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, Money, text_enum
from pipeline.tables.batches import OnInvalid, ServiceClass


class QuoteStatus(StrEnum):
    COMPUTING = "computing"  #: Control has yet to read the input file.
    READY = "ready"  #: A batch can be made of it until it expires.
    FAILED = "failed"  #: The file can't be run; `errors` says why.


class Quote(Base):
    """The price of one input file at one rate card. What follows `status` is unknown while it is computed."""

    __tablename__ = "quotes"
    __table_args__ = (
        Index("ix_quotes_computing", "created_at", postgresql_where="status = 'computing'"),
        Index("ix_quotes_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    project_id: Mapped[str | None]
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    input_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    endpoint: Mapped[str]
    on_invalid: Mapped[OnInvalid] = mapped_column(text_enum(OnInvalid, "on_invalid"))
    service_class: Mapped[ServiceClass] = mapped_column(text_enum(ServiceClass, "service_class"))
    created_at: Mapped[Created]
    #: The price holds for batches made before it.
    expires_at: Mapped[Moment]

    status: Mapped[QuoteStatus] = mapped_column(text_enum(QuoteStatus, "status"))
    #: Times that computing it has begun; counted first, so that one that kills its process counts too.
    num_computations: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    #: The errors of the file, each with `line`, `code`, `param` and `message`.
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    num_errors: Mapped[int] = mapped_column(server_default="0")

    model: Mapped[str | None]
    rate_card_id: Mapped[int | None] = mapped_column(ForeignKey("rate_cards.id"))
    num_requests: Mapped[int] = mapped_column(server_default="0")
    num_prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    #: Of these, tokens that the prefix cache serves if the batch runs in one group.
    num_shared_tokens: Mapped[int] = mapped_column(server_default="0")
    #: Completion tokens: as many as half of such batches stay below, as 95% do, and as all do.
    num_output_tokens_p50: Mapped[int] = mapped_column(server_default="0")
    num_output_tokens_p95: Mapped[int] = mapped_column(server_default="0")
    num_output_tokens_worst: Mapped[int] = mapped_column(server_default="0")
    #: Finished requests of the same tenant and model that the first two were learned from.
    num_learned_requests: Mapped[int] = mapped_column(server_default="0")
    currency: Mapped[str | None]
    cost_p50: Mapped[Money | None]
    cost_p95: Mapped[Money | None]
    cost_worst: Mapped[Money | None]
    #: At the load of the moment, if a batch is made at once; None where no group serves the model.
    finish_at: Mapped[Moment | None]
