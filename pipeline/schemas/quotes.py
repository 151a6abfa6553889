"""Quotes, as the API takes and shows them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema

from pipeline.billing.currencies import exact_text
from pipeline.schemas.batches import ENDPOINTS, BatchErrorObject, BatchErrors, FileId, endpoint_of, unix_seconds
from pipeline.tables import OnInvalid, Quote, QuoteStatus, ServiceClass

#: Errors of a quote that the API shows; the console shows all of them.
_SHOWN_ERRORS: Final = 100


class QuoteCreate(BaseModel):
    """What `POST /v1/batches/quote` takes: what the batch would be made of."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: FileId
    endpoint: Annotated[str, AfterValidator(endpoint_of), WithJsonSchema({"type": "string", "enum": list(ENDPOINTS)})]
    on_invalid: OnInvalid = OnInvalid.FAIL
    service_class: ServiceClass = ServiceClass.STANDARD


class QuotedTokens(BaseModel):
    """Completion tokens of the whole batch: half of such batches stay below p50, 95% below p95, and all below worst."""

    p50: int
    p95: int
    worst_case: int


class QuotedCost(BaseModel):
    """Exact amounts, as decimal strings. The batch never costs more than the worst case."""

    currency: str
    p50: str
    p95: str
    worst_case: str


class QuoteObject(BaseModel):
    """A quote. Moments are Unix seconds. What is null is not known while it is computed, or never if it failed."""

    id: str
    object: Literal["batch.quote"] = "batch.quote"
    status: QuoteStatus
    input_file_id: str
    endpoint: str
    on_invalid: OnInvalid
    service_class: ServiceClass
    created_at: int
    #: A batch that is created before then with `quote_id` has this price.
    expires_at: int
    #: Why it failed, or lines that a batch would skip; the first 100.
    errors: BatchErrors | None
    model: str | None
    rate_card_id: int | None
    #: Requests that the batch would run.
    num_requests: int | None
    #: Lines that it would skip.
    num_invalid_lines: int
    #: Exact.
    prompt_tokens: int | None
    #: Of these, tokens that requests have in common at their beginning, which are computed once in a group.
    shared_prompt_tokens: int | None
    output_tokens: QuotedTokens | None
    cost: QuotedCost | None
    #: Finished requests of the same tenant and model that p50 and p95 were learned from; 0: both are the worst case.
    learned_from_requests: int | None
    #: Of a batch that were created now; null where no group serves the model.
    estimated_finish_at: int | None

    @classmethod
    def of(cls, quote: Quote) -> Self:
        is_ready = quote.status is QuoteStatus.READY
        errors = [BatchErrorObject(**error) for error in (quote.errors or ())[:_SHOWN_ERRORS]]
        return cls(
            id=quote.id,
            status=quote.status,
            input_file_id=quote.input_file_id,
            endpoint=quote.endpoint,
            on_invalid=quote.on_invalid,
            service_class=quote.service_class,
            created_at=int(quote.created_at.timestamp()),
            expires_at=int(quote.expires_at.timestamp()),
            errors=BatchErrors(data=errors) if errors else None,
            model=quote.model,
            rate_card_id=quote.rate_card_id,
            num_requests=quote.num_requests if is_ready else None,
            num_invalid_lines=quote.num_errors,
            prompt_tokens=quote.num_prompt_tokens if is_ready else None,
            shared_prompt_tokens=quote.num_shared_tokens if is_ready else None,
            output_tokens=_tokens(quote) if is_ready else None,
            cost=_cost(quote),
            learned_from_requests=quote.num_learned_requests if is_ready else None,
            estimated_finish_at=unix_seconds(quote.finish_at),
        )


def _tokens(quote: Quote) -> QuotedTokens:
    return QuotedTokens(
        p50=quote.num_output_tokens_p50, p95=quote.num_output_tokens_p95, worst_case=quote.num_output_tokens_worst
    )


def _cost(quote: Quote) -> QuotedCost | None:
    if quote.currency is None or quote.cost_p50 is None or quote.cost_p95 is None or quote.cost_worst is None:
        return None

    def shown(amount: Decimal) -> str:
        return exact_text(amount, quote.currency or "")

    return QuotedCost(
        currency=quote.currency,
        p50=shown(quote.cost_p50),
        p95=shown(quote.cost_p95),
        worst_case=shown(quote.cost_worst),
    )
