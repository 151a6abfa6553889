"""The last check of a request before it reaches an engine, where one bad number could end every other request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.schemas.generation import MAX_TOP_LOGPROBS, GenerationParams
from workers.backends.protocol import EngineRequest, Partial

#: Most choices that one request may ask for: each is a sequence of its own.
MAX_CHOICES = 128
#: Of a token's bias, and of the penalties, either way.
MAX_LOGIT_BIAS = 100.0
MAX_PENALTY = 2.0


@dataclass(frozen=True, slots=True)
class Rejection:
    error_code: str
    error_message: str


def check_request(request: EngineRequest, *, vocab_size: int, context_length: int) -> Rejection | None:
    """Why the engine can't run this request; None if it can."""
    prompt, params = request.prompt_token_ids, request.params
    if not prompt:
        return Rejection("empty_prompt", "The prompt has no tokens; send at least one.")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        return Rejection(
            "invalid_token_id", f"The prompt has a token id outside the vocabulary; ids are 0 to {vocab_size - 1}."
        )
    if params.max_tokens > 0 and len(prompt) + params.max_tokens > context_length:
        return Rejection(
            "context_length_exceeded",
            f"The prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}, "
            f"together more than the model's context of {context_length}. Shorten one of them.",
        )
    if (problem := _parameter_problem(params, vocab_size)) is not None:
        return Rejection("invalid_parameter", problem)
    if not -(2**63) <= request.seed < 2**63 or (params.seed is not None and not -(2**63) <= params.seed < 2**63):
        return Rejection("invalid_parameter", "seed must fit into 64 bits.")
    return None


def fits(partial: Partial, request: EngineRequest, vocab_size: int) -> bool:
    """Whether the engine can go on with the request from there; it may come from another version, or be damaged."""
    params = request.params
    num_logprobs = 0 if params.logprobs is None else 1
    return len(partial.choices) == params.n and all(
        len(choice.token_ids) <= params.max_tokens
        and len(choice.logprobs) == num_logprobs * len(choice.token_ids)
        and all(0 <= token_id < vocab_size for token_id in choice.token_ids)
        and all(0 <= token_id < vocab_size for _, top in choice.logprobs for token_id, _ in top)
        for choice in partial.choices
    )


def _parameter_problem(params: GenerationParams, vocab_size: int) -> str | None:
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}; it must be at least 1."
    if not 1 <= params.n <= MAX_CHOICES:
        return f"n is {params.n}; it must be from 1 to {MAX_CHOICES}."
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        return f"temperature is {params.temperature}; it must be a number from 0."
    if not 0 < params.top_p <= 1:
        return f"top_p is {params.top_p}; it must be above 0 and at most 1."
    if not 0 <= params.top_k < 2**31:
        return f"top_k is {params.top_k}; it must be from 0, where 0 is off, to {2**31 - 1}."
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_TOP_LOGPROBS:
        return f"logprobs is {params.logprobs}; it must be from 0 to {MAX_TOP_LOGPROBS}."
    for name in ("presence_penalty", "frequency_penalty"):
        if not abs(value := getattr(params, name)) <= MAX_PENALTY:
            return f"{name} is {value}; it must be from {-MAX_PENALTY:g} to {MAX_PENALTY:g}."
    if any(not 0 <= token_id < vocab_size for token_id in params.logit_bias):
        return f"logit_bias names a token id outside the vocabulary; ids are 0 to {vocab_size - 1}."
    if any(not abs(bias) <= MAX_LOGIT_BIAS for bias in params.logit_bias.values()):
        return f"logit_bias has a value that is not from {-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}."
    if not all(params.stop):
        return "stop has an empty string; leave it out."
    return None
