"""From what an engine reports to what is recorded."""

from __future__ import annotations

import time
from typing import Final

from pipeline.billing.rating import TokenUsage
from pipeline.billing.receipts import pack_choices
from pipeline.jobs.claiming import PlannedRequest
from pipeline.jobs.recording import RequestOutcome
from pipeline.schemas.responses import answer_body
from pipeline.tables.rates import WasteCause
from pipeline.tables.requests import OutcomeKind
from workers.backends.protocol import Outcome, OutcomeStatus
from workers.held_slices import HeldSlice, InFlight
from workers.waste import wasted

#: Of what was computed for a request whose batch ended first.
_CAUSES: Final = {OutcomeKind.CANCELLED: WasteCause.CANCELLED, OutcomeKind.EXPIRED: WasteCause.EXPIRED}


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
            waste=left.held.waste.take(),
        )
    if outcome.status is OutcomeStatus.FAILED:
        left.held.waste.add(wasted(WasteCause.FAILED, outcome))
        return without_answer(
            left.held, request, OutcomeKind.FAILED, outcome.error_code or "engine_error", outcome.error_message
        )
    kind = left.held.ending or OutcomeKind.CANCELLED
    left.held.waste.add(wasted(_CAUSES[kind], outcome))
    return without_answer(left.held, request, kind)


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
        waste=held.waste.take(),
    )
