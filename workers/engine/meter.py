"""Measures the engine of rank 0: a few numbers per step and per request, and nothing per token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.backends.measures import Measures
from workers.engine.scheduler import Plan
from workers.engine.sequence import Sequence


@dataclass(slots=True)
class Moments:
    """When a request came to the engine, first ran, and had its first token; in seconds of the engine's clock."""

    submitted_at: float
    admitted_at: float | None = None
    first_token_at: float | None = None
    #: Tokens that earlier attempts had generated, and choices that these finished.
    num_earlier_tokens: int = 0
    num_earlier_choices: int = 0


class Meter:
    def __init__(self) -> None:
        self._measures = Measures()
        #: End of the step before.
        self._stepped_at = 0.0

    def take(self) -> Measures:
        """What was measured since this was last asked."""
        taken, self._measures = self._measures, Measures()
        return taken

    def planned(self, plan: Plan) -> None:
        if plan.preempted:
            self._measures.count("num_preemptions", len(plan.preempted))
        if plan.admitted:
            self._count_prompts(plan.admitted)

    def _count_prompts(self, admitted: Iterable[Sequence]) -> None:
        for sequence in admitted:
            self._measures.count("num_prefix_queries", sequence.num_tokens)
            self._measures.count("num_prefix_hits", sequence.num_computed_tokens)
            if sequence.index == 0:  # the other choices have the same prompt
                self._measures.count("num_prompt_tokens", sequence.num_prompt_tokens)

    def stepped(self, plan: Plan, began_at: float, ended_at: float, num_sampled: int, num_first: int) -> None:
        """A step that sampled so many tokens, of which `num_first` were the first of their requests."""
        measures = self._measures
        measures.count("num_generation_tokens", num_sampled)
        measures.observe("step_seconds", ended_at - began_at)
        measures.observe("step_tokens", plan.num_tokens)
        if num_sampled > num_first:
            # Whoever has a later token in this step ran in the step before, but for what was preempted between: the
            # engine was not idle.
            measures.observe("inter_token_seconds", ended_at - self._stepped_at, num_sampled - num_first)
        self._stepped_at = ended_at

    def finished(self, moments: Moments, now: float, num_tokens: int, num_choices: int) -> None:
        """A request has its answer, of so many tokens over all choices."""
        if moments.admitted_at is None or moments.first_token_at is None:
            return  # what was generated before was all of it
        measures = self._measures
        measures.observe("queue_seconds", moments.admitted_at - moments.submitted_at)
        measures.observe("first_token_seconds", moments.first_token_at - moments.submitted_at)
        measures.observe("prefill_seconds", moments.first_token_at - moments.admitted_at)
        measures.observe("decode_seconds", now - moments.first_token_at)
        measures.observe("inference_seconds", now - moments.admitted_at)
        measures.observe("duration_seconds", now - moments.submitted_at)
        num_tokens -= moments.num_earlier_tokens
        num_choices -= moments.num_earlier_choices
        if num_tokens > num_choices:
            measures.observe("token_seconds", (now - moments.first_token_at) * num_choices / (num_tokens - num_choices))
