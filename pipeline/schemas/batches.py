"""Batches, as the API takes and shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)

from pipeline.billing.currencies import decimal_text
from pipeline.schemas.files import ExpiresAfter
from pipeline.schemas.service_classes import ServiceTier, check_window, class_of
from pipeline.schemas.windows import WINDOW_PATTERN, window_seconds
from pipeline.tables import Batch, BatchError, BatchStatus, OnInvalid, ServiceClass
from pipeline.tables.batches import PAUSABLE

#: Endpoints that the requests of a batch can be for.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions")

MAX_METADATA_PAIRS = 16


def endpoint_of(value: str) -> str:
    if value not in ENDPOINTS:
        raise ValueError(f"{value[:64]!r} is not supported. Supported endpoints: {', '.join(ENDPOINTS)}.")
    return value


def _class(value: ServiceClass | None, info: ValidationInfo) -> ServiceClass:
    return class_of(value, info.data.get("service_tier"))


def _window(value: str, info: ValidationInfo) -> str:
    window_seconds(value)
    if "service_class" in info.data:  # else that one is the mistake
        check_window(value, info.data["service_class"])
    return value


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("NUL characters can't be stored.")
    return value


# A limit on the length also has pydantic refuse lone surrogates, which are no Unicode.
FileId = Annotated[str, StringConstraints(max_length=128), AfterValidator(_storable)]
QuoteId = Annotated[str, StringConstraints(max_length=128), AfterValidator(_storable)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_storable)]
MetadataValue = Annotated[str, StringConstraints(max_length=512), AfterValidator(_storable)]


class BatchCreate(BaseModel):
    """What `POST /v1/batches` takes."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: FileId
    # Checked by our own functions, for the sake of their messages; what they take is described beside them.
    endpoint: Annotated[str, AfterValidator(endpoint_of), WithJsonSchema({"type": "string", "enum": list(ENDPOINTS)})]
    #: Extension: how soon it is wanted. `service_tier` is OpenAI's word for it.
    service_tier: ServiceTier | None = None
    service_class: Annotated[ServiceClass | None, AfterValidator(_class), Field(validate_default=True)] = None
    completion_window: Annotated[
        str, AfterValidator(_window), WithJsonSchema({"type": "string", "pattern": WINDOW_PATTERN, "examples": ["24h"]})
    ]
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_PAIRS)] | None = None
    output_expires_after: ExpiresAfter | None = None
    #: Extension: `skip` runs the good lines of a file that has bad ones, which become lines of the error file.
    on_invalid: OnInvalid | None = None
    #: Extension: whether the lines of its output file carry signed receipts; null leaves it to the operator.
    receipts: StrictBool | None = None
    #: Extension: a quote of the same file, whose prices the batch then has.
    quote_id: QuoteId | None = None
    #: Extension: the batch pauses before it costs more, in the currency of its prices.
    max_cost: Annotated[Decimal, Field(gt=0, lt=10**20, decimal_places=15)] | None = None


class BatchPause(BaseModel):
    """What `POST /v1/batches/{batch_id}/pause` takes."""

    model_config = ConfigDict(extra="forbid")

    #: Why, for whoever looks at the batch.
    reason: Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_storable)] | None = None


class BatchErrorObject(BaseModel):
    """One thing wrong with the input file; `line` counts from 1, and is null where it is the file as a whole."""

    code: str
    message: str
    param: str | None
    line: int | None

    @classmethod
    def of(cls, error: BatchError) -> Self:
        return cls(code=error.code, message=error.message, param=error.param, line=error.line or None)


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchErrorObject]


class RequestCounts(BaseModel):
    """Lines of the input file. Skipped, cancelled and expired ones count as failed."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Tokens of the requests that have succeeded so far."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. Moments are Unix seconds, null until they have come."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    #: Null until the input file has been read.
    model: str | None
    #: Only of a batch that failed: skipped lines are in the error file.
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    #: Extension: how soon it is wanted.
    service_class: ServiceClass
    #: Extension: whether the lines of its output file carry signed receipts.
    receipts: bool
    #: Extension: the quote whose prices it has.
    quote_id: str | None
    #: Extension, a decimal string.
    max_cost: str | None
    #: Extension: why it waits although it has not ended: the id of a budget that has no room, or `client`.
    pause_reason: str | None
    #: Extension: what the client said when it paused the batch.
    pause_note: str | None
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch, errors: Sequence[BatchError] = ()) -> Self:
        """`errors` are shown if the batch failed."""
        is_failed = batch.status is BatchStatus.FAILED
        is_pausable = batch.status in PAUSABLE
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model,
            errors=BatchErrors(data=[BatchErrorObject.of(error) for error in errors]) if is_failed else None,
            input_file_id=batch.input_file_id,
            completion_window=batch.completion_window,
            status=batch.status,
            output_file_id=batch.shown_output_file_id,
            error_file_id=batch.shown_error_file_id,
            created_at=int(batch.created_at.timestamp()),
            in_progress_at=unix_seconds(batch.in_progress_at),
            expires_at=unix_seconds(batch.expires_at),
            finalizing_at=unix_seconds(batch.finalizing_at),
            completed_at=unix_seconds(batch.completed_at),
            failed_at=unix_seconds(batch.failed_at),
            expired_at=unix_seconds(batch.expired_at),
            cancelling_at=unix_seconds(batch.cancelling_at),
            cancelled_at=unix_seconds(batch.cancelled_at),
            request_counts=RequestCounts(
                total=batch.num_requests + batch.num_skipped,
                completed=batch.num_succeeded,
                failed=batch.num_unsuccessful + batch.num_skipped,
            ),
            usage=BatchUsage(
                input_tokens=batch.num_prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=batch.num_cached_tokens),
                output_tokens=batch.num_completion_tokens,
                output_tokens_details=OutputTokensDetails(),
                total_tokens=batch.num_prompt_tokens + batch.num_completion_tokens,
            ),
            service_class=batch.service_class,
            receipts=batch.has_receipts,
            quote_id=batch.quote_id,
            max_cost=None if batch.max_cost is None else decimal_text(batch.max_cost),
            pause_reason=batch.pause_reason if is_pausable else None,
            pause_note=batch.pause_note if is_pausable else None,
            metadata=batch.metadata_,
        )


def unix_seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
