from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.schemas.generation import GenerationParams
from workers.backends.protocol import EngineRequest
from workers.backends.validation import Rejection, check_request


def check(prompt: list[int], seed: int = 0, **params: Any) -> Rejection | None:
    params = {"max_tokens": 4, **params}
    request = EngineRequest(id="r", prompt_token_ids=prompt, params=GenerationParams(**params), seed=seed)
    return check_request(request, vocab_size=100, context_length=16)


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ([0], {}),
        ([99] * 12, {}),
        ([1], {"max_tokens": 15}),
        ([1], {"temperature": 0.0, "top_p": 0.001, "top_k": 2**31 - 1, "n": 128, "logprobs": 20}),
        ([1], {"presence_penalty": -2.0, "frequency_penalty": 2.0, "logit_bias": {0: -100.0, 99: 100.0}}),
        ([1], {"seed": -(2**63)}),
    ],
)
def test_what_the_engine_can_run_passes(prompt: list[int], params: dict[str, Any]) -> None:
    assert check(prompt, **params) is None


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ([], "empty_prompt"),
        ([100], "invalid_token_id"),
        ([-1], "invalid_token_id"),
        ([10**30], "invalid_token_id"),
        ([1] * 13, "context_length_exceeded"),
    ],
)
def test_a_prompt_that_can_not_run_is_rejected(prompt: list[int], code: str) -> None:
    rejection = check(prompt)
    assert rejection is not None
    assert rejection.error_code == code


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("n", 0),
        ("n", 10**9),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2**31),
        ("logprobs", 21),
        ("logprobs", -1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", 2.1),
        ("logit_bias", {100: 0.0}),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 101.0}),
        ("stop", ("",)),
        ("seed", 2**64),
    ],
)
def test_a_parameter_that_could_hurt_others_is_rejected_by_name(name: str, value: Any) -> None:
    rejection = check([1], **{name: value})
    assert rejection is not None
    assert rejection.error_code == "invalid_parameter"
    assert name in rejection.error_message


def test_a_seed_that_no_message_can_carry_is_rejected() -> None:
    assert check([1], seed=2**64) is not None
