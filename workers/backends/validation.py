"""The last check of a request before it reaches an engine, where one bad number could end every other request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.schemas.generation import MAX_TOP_LOGPROBS, GenerationParams
from workers.backends.protocol import EngineRequest


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
    return None


def _parameter_problem(params: GenerationParams, vocab_size: int) -> str | None:
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}; it must be at least 1."
    if params.n < 1:
        return f"n is {params.n}; it must be at least 1."
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        return f"temperature is {params.temperature}; it must be a number from 0."
    if not 0 < params.top_p <= 1:
        return f"top_p is {params.top_p}; it must be above 0 and at most 1."
    if params.top_k < 0:
        return f"top_k is {params.top_k}; it must be at least 0, where 0 is off."
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_TOP_LOGPROBS:
        return f"logprobs is {params.logprobs}; it must be from 0 to {MAX_TOP_LOGPROBS}."
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(value := getattr(params, name)):
            return f"{name} is {value}; it must be a finite number."
    if any(not 0 <= token_id < vocab_size for token_id in params.logit_bias):
        return f"logit_bias names a token id outside the vocabulary; ids are 0 to {vocab_size - 1}."
    if not all(map(math.isfinite, params.logit_bias.values())):
        return "logit_bias has a value that is not a finite number."
    if not all(params.stop):
        return "stop has an empty string; leave it out."
    return None
