from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from pipeline.schemas.responses import CHAT_COMPLETIONS, COMPLETIONS, answer_body
from workers.backends.protocol import Choice, PositionLogprobs, TokenLogprob


def token(text: str, logprob: float) -> TokenLogprob:
    return TokenLogprob(token_id=1, token=text, bytes=list(text.encode()), logprob=logprob)


def choice(text: str = "ab", *, index: int = 0, logprobs: list[PositionLogprobs] | None = None) -> Choice:
    return Choice(index=index, text=text, token_ids=[1, 2], finish_reason="stop", logprobs=logprobs)


def body(endpoint: str, *choices: Choice) -> str:
    return answer_body(
        endpoint=endpoint,
        request_id=255,
        created=1_800_000_000,
        model="tiny",
        choices=choices,
        num_prompt_tokens=7,
        num_cached_tokens=4,
        num_completion_tokens=2 * len(choices),
    )


POSITIONS = [
    PositionLogprobs(sampled=token("a", -0.5), top=[token("a", -0.5), token("b", -1.5)], text_offset=0),
    PositionLogprobs(sampled=token("b", float("-inf")), top=[token("a", -0.1), token("é", -2.0)], text_offset=1),
]


def test_a_chat_answer_is_what_the_openai_client_reads() -> None:
    parsed = ChatCompletion.model_validate_json(body(CHAT_COMPLETIONS, choice(), choice(index=1)), strict=True)
    assert parsed.id == "chatcmpl-000000000000000000000000000000ff"
    assert parsed.object == "chat.completion"
    assert [one.message.content for one in parsed.choices] == ["ab", "ab"]
    assert [one.index for one in parsed.choices] == [0, 1]
    assert parsed.choices[0].logprobs is None
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (7, 4, 11)
    assert parsed.usage.prompt_tokens_details is not None
    assert parsed.usage.prompt_tokens_details.cached_tokens == 4


def test_a_text_answer_is_what_the_openai_client_reads() -> None:
    parsed = Completion.model_validate_json(body(COMPLETIONS, choice()), strict=True)
    assert parsed.id == "cmpl-000000000000000000000000000000ff"
    assert parsed.object == "text_completion"
    assert (parsed.choices[0].text, parsed.choices[0].finish_reason) == ("ab", "stop")


def test_chat_logprobs_are_by_position() -> None:
    parsed = ChatCompletion.model_validate_json(body(CHAT_COMPLETIONS, choice(logprobs=POSITIONS)), strict=True)
    assert parsed.choices[0].logprobs is not None
    content = parsed.choices[0].logprobs.content
    assert content is not None
    assert [(one.token, one.logprob) for one in content] == [("a", -0.5), ("b", -9999.0)]
    assert [[top.token for top in one.top_logprobs] for one in content] == [["a", "b"], ["a", "é"]]
    assert content[1].top_logprobs[1].bytes == [0xC3, 0xA9]


def test_text_logprobs_are_parallel_lists() -> None:
    parsed = Completion.model_validate_json(body(COMPLETIONS, choice(logprobs=POSITIONS)), strict=True)
    logprobs = parsed.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b"]
    assert logprobs.token_logprobs == [-0.5, -9999.0]
    assert logprobs.text_offset == [0, 1]
    # The sampled token is there beside the likeliest.
    assert logprobs.top_logprobs == [{"a": -0.5, "b": -1.5}, {"a": -0.1, "é": -2.0, "b": -9999.0}]
    assert [list(one) for one in logprobs.top_logprobs] == [["a", "b"], ["a", "é", "b"]]


def test_an_answer_without_text_has_lists_of_nothing() -> None:
    parsed = Completion.model_validate_json(body(COMPLETIONS, choice("", logprobs=[])), strict=True)
    logprobs = parsed.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset) == ([], [], [], [])


@pytest.mark.parametrize("text", ["nul \0 and tab \t", "lone \ud800 surrogate", 'quote " and \\', "emoji 🦊 — done"])
def test_any_text_survives_json_and_fits_a_text_column(text: str) -> None:
    written = body(CHAT_COMPLETIONS, choice(text))
    assert "\0" not in written
    written.encode()
    parsed: dict[str, Any] = json.loads(written)
    assert parsed["choices"][0]["message"]["content"] == text
