"""The spans of a slice's attempt: the claim, the engine's time, and the recordings that it shares with other slices.

They are few, however many requests there are. All of it exists only where traces are on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

from pipeline.billing.rating import TokenUsage
from pipeline.jobs.claiming import ClaimedSlice
from pipeline.tables.slices import AttemptEnd
from pipeline.telemetry import genai_names as names
from pipeline.telemetry import tracing


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket that was received: when, by the system's clock, and the context of whoever wrote it."""

    received_ns: int
    trace_context: str | None

    @classmethod
    def received(cls, trace_context: str | None) -> Self:
        return cls(time.time_ns(), trace_context)


class AttemptTrace:
    """Begins when a slice was claimed. Told from different threads, one after the other, under the slices' lock."""

    def __init__(self, claimed: ClaimedSlice, attempt: tracing.Span) -> None:
        self._claimed = claimed
        self._attempt = attempt
        self._entered_ns: int | None = None
        self._left_ns: int | None = None
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_completion_tokens = 0

    @classmethod
    def begin(
        cls, claimed: ClaimedSlice, num_requests: int, *, ticket: Ticket | None, claim_ns: int
    ) -> AttemptTrace | None:
        """None where traces are off. `claim_ns` is when the claim was begun; it ends now.

        A ticket names no slice: whoever wrote it is linked, and the attempt belongs to the batch that it is for.
        """
        if not tracing.is_on():
            return None
        attempt = tracing.start_span(
            "slice.attempt",
            {
                names.TENANT: claimed.tenant_id,
                names.BATCH: claimed.batch_id,
                names.SLICE: claimed.id,
                names.ATTEMPT: claimed.lease_epoch,
                names.GROUP: claimed.group_id,
                names.NUM_REQUESTS: num_requests,
                names.HAS_TICKET: ticket is not None,
            },
            parent=claimed.trace_context,
            links=() if ticket is None else (ticket.trace_context,),
            start_ns=claim_ns if ticket is None else ticket.received_ns,
        )
        tracing.start_span("slice.claim", parent=attempt.context, start_ns=claim_ns).end()
        return cls(claimed, attempt)

    @property
    def context(self) -> str | None:
        return self._attempt.context

    @property
    def batch_context(self) -> str | None:
        return self._claimed.trace_context

    def entered(self) -> None:
        """A request was put into the engine."""
        if self._entered_ns is None:
            self._entered_ns = time.time_ns()

    def left(self) -> None:
        """A request left the engine."""
        self._left_ns = time.time_ns()

    def add(self, usage: TokenUsage) -> None:
        """An answer was recorded."""
        self._num_prompt_tokens += usage.num_prompt_tokens
        self._num_cached_tokens += usage.num_cached_tokens
        self._num_completion_tokens += usage.num_completion_tokens

    def end(self, end: AttemptEnd, num_succeeded: int, num_unsuccessful: int) -> None:
        if self._entered_ns is not None:
            engine = tracing.start_span(
                f"{names.operation(self._claimed.endpoint)} {self._claimed.model}",
                {
                    names.OPERATION: names.operation(self._claimed.endpoint),
                    names.PROVIDER: names.OUR_NAME,
                    names.REQUEST_MODEL: self._claimed.model,
                    names.RESPONSE_MODEL: self._claimed.model,
                    names.INPUT_TOKENS: self._num_prompt_tokens,
                    names.CACHED_INPUT_TOKENS: self._num_cached_tokens,
                    names.OUTPUT_TOKENS: self._num_completion_tokens,
                },
                parent=self.context,
                start_ns=self._entered_ns,
            )
            engine.end(self._left_ns)
        self._attempt.set(
            {
                names.ATTEMPT_END: end.value,
                names.NUM_SUCCEEDED: num_succeeded,
                names.NUM_UNSUCCESSFUL: num_unsuccessful,
            }
        )
        if end is AttemptEnd.LOST:
            self._attempt.fail("lease_lost")
        self._attempt.end()


def recording_span(traces: Sequence[AttemptTrace | None], num_outcomes: int) -> AbstractContextManager[tracing.Span]:
    """Around the transaction that writes outcomes of these attempts, with a link to each.

    It belongs to the one attempt that it serves, or to the one batch; where batches meet in it, to itself.
    """
    if not tracing.is_on():
        return tracing.span("outcomes.record")
    known = [trace for trace in traces if trace is not None]
    contexts = list(dict.fromkeys(trace.context for trace in known))
    batches = {trace.batch_context for trace in known}
    parent = contexts[0] if len(contexts) == 1 else batches.pop() if len(batches) == 1 else None
    return tracing.span("outcomes.record", {names.NUM_REQUESTS: num_outcomes}, parent=parent, links=contexts)
