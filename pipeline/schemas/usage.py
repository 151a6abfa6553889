"""Usage and costs in buckets of time, as OpenAI shows them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, WithJsonSchema

from pipeline.billing.currencies import decimal_text
from pipeline.billing.usage_buckets import CostResult, CostsBy, UsageBy, UsageResult

#: Written digit by digit; a number of JSON has no binary fraction.
ExactNumber = Annotated[Decimal, WithJsonSchema({"type": "number"})]


class UsageCompletionsResult(BaseModel):
    """What is null was not asked for by `group_by`."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    input_cached_tokens: int
    input_uncached_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: None = None
    api_key_id: str | None
    model: str | None
    batch: bool | None
    service_tier: str | None

    @classmethod
    def of(cls, result: UsageResult, by: list[UsageBy]) -> UsageCompletionsResult:
        return cls(
            input_tokens=result.num_input_uncached_tokens + result.num_input_cached_tokens,
            input_cached_tokens=result.num_input_cached_tokens,
            input_uncached_tokens=result.num_input_uncached_tokens,
            output_tokens=result.num_output_tokens,
            num_model_requests=result.num_requests,
            project_id=result.project_id,
            api_key_id=result.api_key_id,
            model=result.model,
            batch=True if UsageBy.BATCH in by else None,
            service_tier=result.service_class,
        )


class CostsAmount(BaseModel):
    #: A number of JSON, exact: a client that reads numbers as floats may round it.
    value: ExactNumber
    #: In lower case, as OpenAI has it.
    currency: str
    #: The same as text; not of OpenAI.
    exact: str


class CostsResult(BaseModel):
    """What is null was not asked for by `group_by`; an amount that is null has no price yet, and is not free."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: CostsAmount | None
    line_item: str | None
    project_id: str | None
    user_id: None = None
    api_key_id: str | None
    #: Of a line item alone.
    quantity: int | None
    quantity_unit: Literal["tokens"] | None

    @classmethod
    def of(cls, result: CostResult, by: list[CostsBy]) -> CostsResult:
        is_item = CostsBy.LINE_ITEM in by
        amount = None
        if result.currency is not None and result.amount is not None:
            currency = result.currency.lower()
            amount = CostsAmount(value=result.amount, currency=currency, exact=decimal_text(result.amount))
        return cls(
            amount=amount,
            line_item=result.line_item,
            project_id=result.project_id,
            api_key_id=result.api_key_id,
            quantity=result.quantity if is_item else None,
            quantity_unit="tokens" if is_item else None,
        )


class Bucket(BaseModel):
    object: Literal["bucket"] = "bucket"
    #: Unix seconds, the first inclusive and the last exclusive.
    start_time: int
    end_time: int


class UsageCompletionsBucket(Bucket):
    results: list[UsageCompletionsResult]


class CostsBucket(Bucket):
    results: list[CostsResult]


class BucketPage(BaseModel):
    """`page=next_page` asks for the next buckets, as long as `has_more`."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["page"] = "page"
    has_more: bool
    next_page: str | None


class UsageCompletionsPage(BucketPage):
    data: list[UsageCompletionsBucket]


class CostsPage(BucketPage):
    data: list[CostsBucket]


def page_json(page: BucketPage) -> bytes:
    """JSON in which decimals are numbers with all of their digits."""
    return orjson.dumps(page.model_dump(), default=_number)


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(decimal_text(value).encode())
    raise TypeError(f"{type(value).__name__} is not JSON")
