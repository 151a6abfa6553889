"""How far a batch is, as its stream of events shows it."""

from __future__ import annotations

import hashlib
from typing import Literal, Self

from pydantic import BaseModel

from pipeline.billing.currencies import decimal_text
from pipeline.jobs.progress import BatchProgress
from pipeline.schemas.batches import (
    BatchUsage,
    InputTokensDetails,
    OutputTokensDetails,
    RequestCounts,
)
from pipeline.tables import BatchStatus


class Cost(BaseModel):
    #: A decimal string: what the tokens so far cost at the prices of this moment.
    amount: str
    currency: str


class ProgressObject(BaseModel):
    """A batch at one moment: the data of each event."""

    object: Literal["batch.progress"] = "batch.progress"
    batch_id: str
    status: BatchStatus
    request_counts: RequestCounts
    usage: BatchUsage
    cost: Cost | None
    pause_reason: str | None
    pause_note: str | None
    #: By the speed of the last minute; null where nothing can be said.
    seconds_left: int | None

    @classmethod
    def of(cls, progress: BatchProgress, seconds_left: int | None = None) -> Self:
        cost, currency = progress.cost, progress.currency
        return cls(
            batch_id=progress.batch_id,
            status=progress.status,
            request_counts=RequestCounts(
                total=progress.num_requests, completed=progress.num_succeeded, failed=progress.num_unsuccessful
            ),
            usage=BatchUsage(
                input_tokens=progress.num_prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=progress.num_cached_tokens),
                output_tokens=progress.num_completion_tokens,
                output_tokens_details=OutputTokensDetails(),
                total_tokens=progress.num_tokens,
            ),
            cost=None if cost is None or currency is None else Cost(amount=decimal_text(cost), currency=currency),
            pause_reason=progress.pause_reason,
            pause_note=progress.pause_note,
            seconds_left=seconds_left,
        )

    @property
    def event_id(self) -> str:
        """Names the state, so that a client that knows it is not sent it again."""
        state = self.model_dump_json(exclude={"seconds_left"})
        return hashlib.sha256(state.encode()).hexdigest()[:16]
