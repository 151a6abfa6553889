"""How requests leave an engine, as metrics count it."""

from __future__ import annotations

from typing import Final

from workers.backends.measures import Measures
from workers.backends.protocol import Outcome, OutcomeStatus

_REASONS: Final = {OutcomeStatus.FAILED: "error", OutcomeStatus.ABORTED: "abort", OutcomeStatus.CRASHED: "crash"}


def count_end(measures: Measures, outcome: Outcome) -> None:
    """By its first choice's reason if it has its answer, and then how long prompt and answer are."""
    if outcome.status is not OutcomeStatus.FINISHED:
        measures.end(_REASONS[outcome.status])
        return
    measures.end(outcome.choices[0].finish_reason if outcome.choices else "stop")
    measures.observe("prompt_tokens", outcome.num_prompt_tokens)
    measures.observe("generation_tokens", outcome.num_completion_tokens)
