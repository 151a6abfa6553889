"""A request in the engine, from `submit` to its outcome."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.backends.protocol import (
    Choice,
    EngineRequest,
    Outcome,
    OutcomeStatus,
    Partial,
    PartialChoice,
    Progress,
)
from workers.engine.choice_writer import ChoiceWriter
from workers.engine.meter import Moments
from workers.engine.sampler import Sample
from workers.engine.sequence import Sequence

#: Tokens of one request that are generated between two reports of its progress.
REPORT_TOKENS = 16


@dataclass(slots=True, eq=False)
class RequestState:
    """A request that has not ended: a sequence per choice, as many choices as are finished, and its time."""

    request: EngineRequest
    sequences: list[Sequence]
    writers: list[ChoiceWriter]
    moments: Moments
    choices: dict[int, Choice] = field(default_factory=dict)
    engine_ms: float = 0.0
    #: By choice: what was generated since the last report; empty for a request too short to be worth one.
    unreported: list[list[Sample]] = field(default_factory=list)
    num_unreported: int = 0

    def __post_init__(self) -> None:
        if self.request.params.max_tokens > REPORT_TOKENS:
            self.unreported = [[] for _ in self.sequences]

    @property
    def num_cached_tokens(self) -> int:
        # The other choices find the prompt of the first: that is no hit of what was there before.
        return self.sequences[0].num_cached_tokens or 0

    def resume(self, partial: Partial) -> None:
        """Take over what was generated before; choices that it finishes are finished."""
        self.engine_ms = partial.engine_ms
        self.sequences[0].num_cached_tokens = partial.num_cached_tokens
        for sequence, writer, generated in zip(self.sequences, self.writers, partial.choices, strict=True):
            for one in samples_of(generated):
                if writer.finish_reason is None:
                    sequence.append(one.token_id)
                    writer.append(one)
            if writer.finish_reason is not None:
                self.choices[sequence.index] = writer.choice()
        self.moments.num_earlier_tokens = sum(sequence.num_generated_tokens for sequence in self.sequences)
        self.moments.num_earlier_choices = len(self.choices)

    def add_unreported(self, index: int, generated: Sample) -> bool:
        """Keep a token for the next report; whether that is due."""
        if not self.unreported:
            return False
        self.unreported[index].append(generated)
        self.num_unreported += 1
        return self.num_unreported >= REPORT_TOKENS

    def take_progress(self) -> Progress:
        choices = [partial_choice(samples) for samples in self.unreported]
        self.unreported = [[] for _ in self.unreported]
        self.num_unreported = 0
        partial = Partial(choices=choices, num_cached_tokens=self.num_cached_tokens, engine_ms=round(self.engine_ms))
        return Progress(id=self.request.id, partial=partial)

    def outcome(
        self, status: OutcomeStatus, error_code: str | None = None, error_message: str | None = None
    ) -> Outcome:
        is_finished = status is OutcomeStatus.FINISHED
        return Outcome(
            id=self.request.id,
            status=status,
            choices=[self.choices[index] for index in sorted(self.choices)] if is_finished else [],
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_cached_tokens=self.num_cached_tokens,
            num_completion_tokens=sum(sequence.num_generated_tokens for sequence in self.sequences),
            engine_ms=round(self.engine_ms),
            error_code=error_code,
            error_message=error_message,
        )


def partial_choice(samples: Iterable[Sample]) -> PartialChoice:
    return PartialChoice(
        [one.token_id for one in samples],
        [(one.logprob, list(one.top_logprobs)) for one in samples if one.logprob is not None],
    )


def samples_of(choice: PartialChoice) -> list[Sample]:
    if not choice.logprobs:
        return [Sample(token_id) for token_id in choice.token_ids]
    return [
        Sample(token_id, logprob, tuple(top))
        for token_id, (logprob, top) in zip(choice.token_ids, choice.logprobs, strict=True)
    ]
