"""The plug between a group and its engine: submit, abort, take outcomes, load, health.

A group knows nothing else of what generates. Ours (`native`) and an echo (`echo`) stand behind it; others can.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Protocol

import msgspec

from pipeline.schemas.generation import GenerationParams
from workers.backends.measures import Measures


class PartialChoice(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one choice, in the order in which they were generated."""

    token_ids: list[int]
    #: One entry per token where log-probabilities were asked for, else none: the token's own, and the likeliest tokens
    #: with theirs. See `workers.engine.sampler.Sample`.
    logprobs: list[tuple[float, list[tuple[int, float]]]] = []

    def joined(self, later: PartialChoice) -> PartialChoice:
        return PartialChoice(self.token_ids + later.token_ids, self.logprobs + later.logprobs)


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has generated of an answer so far: enough for any engine to go on from there.

    The rest is drawn by (seed, choice, position), so that the answer is the one that would have come anyway.
    """

    #: One per choice.
    choices: list[PartialChoice]
    #: As in `Outcome`: prompt tokens that the first attempt found in the prefix cache, and engine time so far.
    num_cached_tokens: int = 0
    engine_ms: int = 0

    @property
    def num_tokens(self) -> int:
        """Generated, over all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    def joined(self, later: Partial) -> Partial:
        """This and what was generated after it."""
        return Partial(
            choices=[before.joined(after) for before, after in zip(self.choices, later.choices, strict=True)],
            num_cached_tokens=later.num_cached_tokens,
            engine_ms=later.engine_ms,
        )


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What was generated of one request since its last report, or since it was submitted."""

    id: str
    partial: Partial


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for the engine. Everything about it was checked on the CPU before."""

    #: Chosen by the group, unique among the requests that the engine holds; opaque to the engine.
    id: str
    prompt_token_ids: list[int]
    params: GenerationParams
    #: Resolved by the group: `params.seed`, or one derived from the request.
    seed: int
    #: Prefix blocks are shared only between requests of equal salt (the tenant's id).
    cache_salt: str = ""
    #: What an earlier attempt has generated of the answer; the engine goes on from there.
    partial: Partial | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The log-probability of one token, natural logarithm, before temperature and truncation."""

    token_id: int
    #: The token's text; replacement characters stand for bytes that are no whole character.
    token: str
    #: The token's UTF-8 bytes.
    bytes: list[int]
    logprob: float


class PositionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    sampled: TokenLogprob
    #: The likeliest tokens, likeliest first; empty where none were asked for.
    top: list[TokenLogprob] = []
    #: Where in the choice's text the sampled token begins. One that has no text there begins where the next one does.
    text_offset: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    #: Without the stop string that ended it.
    text: str
    #: All tokens generated, the end-of-sequence token and those of a stop string among them.
    token_ids: list[int]
    finish_reason: str  # "stop" | "length"
    #: One entry per token of the text; None where none were asked for.
    logprobs: list[PositionLogprobs] | None = None


class OutcomeStatus(StrEnum):
    """How a request left the engine."""

    FINISHED = "finished"  #: All choices are there.
    FAILED = "failed"  #: This request can't be answered (`error_code`, `error_message`); another try ends the same.
    ABORTED = "aborted"  #: The group asked for it.
    CRASHED = "crashed"  #: The engine died with the request in it; the request may run again.


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one submitted request; the engine reports each exactly once."""

    id: str
    status: OutcomeStatus
    choices: list[Choice] = []
    num_prompt_tokens: int = 0
    #: Prompt tokens found in the prefix cache; never all of them, since the last one is always computed.
    num_cached_tokens: int = 0
    #: Over all choices.
    num_completion_tokens: int = 0
    #: Its share of every step that it ran in: step milliseconds x its tokens / the step's tokens.
    engine_ms: int = 0
    #: Of an aborted or a crashed request: all that is known of its answer, for the next attempt.
    partial: Partial | None = None
    error_code: str | None = None
    error_message: str | None = None


class EngineState(StrEnum):
    STARTING = "starting"  #: Loading and warming up.
    READY = "ready"  #: Generates.
    RESTARTING = "restarting"  #: A rank died or hung; all of them are being replaced.
    DEGRADED = "degraded"  #: Crashed too often; takes nothing until a person looks.
    STOPPED = "stopped"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    state: EngineState
    #: Process ids of the ranks, rank 0 first; empty for an engine without any.
    rank_pids: list[int] = []
    #: Steps run since the start; advances while work is queued, or the engine hangs.
    num_steps: int = 0
    num_restarts: int = 0
    reason: str | None = None
    #: Of the weights as they run, of an engine that has any and knows by now: `bfloat16`.
    dtype: str | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    num_waiting: int
    num_running: int
    #: Tokens that the KV cache can hold, and those in use by running sequences.
    num_kv_tokens: int
    num_kv_tokens_used: int
    #: Tokens of a block of that cache; 0 where there is none.
    kv_block_size: int = 0


class EngineError(Exception):
    """The engine failed."""


class EngineStartError(EngineError):
    """The engine could not start."""


class Engine(Protocol):
    """Thread-safe: a group submits, aborts and takes outcomes from different threads."""

    def start(self) -> None:
        """Load and warm up; returns when a real token was generated. Raises EngineStartError with what to do."""

    def submit(self, request: EngineRequest) -> None:
        """Queue a request; it is admitted as soon as there is room, in the order of submission."""

    def abort(self, ids: Collection[str]) -> None:
        """Stop these requests; each that had not ended is reported as aborted. Unknown ids are fine."""

    def take_outcomes(self, max_outcomes: int, timeout: float) -> list[Outcome]:
        """Outcomes in the order of their ends, as soon as there is one; none after `timeout` seconds."""

    def take_progress(self) -> list[Progress]:
        """What was generated since the last call, in its order. All that is known of a request that was aborted or
        has crashed is here before its outcome is; an engine that answers in an instant has nothing to report.
        """

    def load(self) -> Load: ...

    def health(self) -> Health: ...

    def measures(self) -> Measures:
        """What was measured since the start; never less than before, whatever was restarted in between."""

    def stop(self) -> None:
        """End at once; what is running is reported as crashed to whoever still takes outcomes. Idempotent."""
