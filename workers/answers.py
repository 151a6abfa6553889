"""From what an engine reports to what is recorded."""

from __future__ import annotations

import time

from pipeline.billing.rating import TokenUsage
from pipeline.billing.receipts import pack_choices
from pipeline.jobs.claiming import PlannedRequest
from pipeline.jobs.recording import RequestOutcome
from pipeline.schemas.responses import answer_body
from pipeline.tables.requests import OutcomeKind
from workers.backends.protocol import Outcome, OutcomeStatus
from workers.held_slices import HeldSlice, InFlight


def outcome_of(left: InFlight, outcome: Outcome) -> RequestOutcome:
    """What is recorded of an outcome that needs no other attempt."""
    claimed, request = left.held.claimed, left.request
    if outcome.status is OutcomeStatus.FINISHED:
        body = answer_body(
            endpoint=claimed.endpoint,
            request_id=request.id,
            created=int(time.time()),
            model=claimed.model,
            choices=outcome.choices,
            num_prompt_tokens=outcome.num_prompt_tokens,
            num_cached_tokens=outcome.num_cached_tokens,
            num_completion_tokens=outcome.num_completion_tokens,
        )
        usage = TokenUsage(
            outcome.num_prompt_tokens, outcome.num_cached_tokens, outcome.num_completion_tokens, outcome.engine_ms
        )
        return RequestOutcome(
            request.id,
            request.custom_id,
            claimed,
            OutcomeKind.SUCCEEDED,
            body=body,
            usage=usage,
            output_token_ids=_token_ids(outcome) if claimed.has_receipts else None,
            num_wasted_tokens=_take_waste(left.held),
        )
    left.held.num_wasted_tokens += computed_tokens(outcome)
    if outcome.status is OutcomeStatus.FAILED:
        return without_answer(
            left.held, request, OutcomeKind.FAILED, outcome.error_code or "engine_error", outcome.error_message
        )
    return without_answer(left.held, request, left.held.ending or OutcomeKind.CANCELLED)


def _token_ids(outcome: Outcome) -> bytes:
    return pack_choices(choice.token_ids for choice in sorted(outcome.choices, key=lambda choice: choice.index))


def without_answer(
    held: HeldSlice, request: PlannedRequest, kind: OutcomeKind, code: str | None = None, message: str | None = None
) -> RequestOutcome:
    """What is recorded of a request that failed, or whose batch ended first."""
    return RequestOutcome(
        request.id,
        request.custom_id,
        held.claimed,
        kind,
        error_code=code,
        error_message=message,
        num_wasted_tokens=_take_waste(held),
    )


def _take_waste(held: HeldSlice) -> int:
    """Waste since the last outcome: it is recorded with the next."""
    wasted, held.num_wasted_tokens = held.num_wasted_tokens, 0
    return wasted


def computed_tokens(outcome: Outcome) -> int:
    """Tokens that were computed for it and that no other attempt goes on from: waste, where there is no answer."""
    num_kept = 0 if outcome.partial is None else outcome.partial.num_tokens
    return outcome.num_prompt_tokens - outcome.num_cached_tokens + max(0, outcome.num_completion_tokens - num_kept)
