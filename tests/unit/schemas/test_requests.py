from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.schemas.bodies import MAX_CHOICES, ChatCompletionBody
from pipeline.schemas.generation import GenerationParams
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.schemas.requests import BODIES, check_line, parse_body, parse_line, readable_custom_id

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "secret words"}]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def parse(data: bytes, endpoint: str = CHAT) -> Any:
    line = parse_line(data)
    check_line(line, endpoint)
    return parse_body(line, endpoint)


def chat(**body: Any) -> bytes:
    body = {"model": "m", "messages": MESSAGES, **body}
    return json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body}).encode()


def params(**body: Any) -> GenerationParams:
    result: GenerationParams = parse(chat(**body)).params(max_tokens=5, vocab_size=100)
    return result


@given(data=st.binary(max_size=50))
def test_any_bytes_are_a_line_or_an_error_of_the_line(data: bytes) -> None:
    readable_custom_id(data)
    with pytest.raises(InvalidRequestError):
        parse(data)


@settings(max_examples=500, deadline=None)
@given(
    endpoint=st.sampled_from(sorted(BODIES)),
    body=st.dictionaries(
        st.sampled_from(sorted({name for body in BODIES.values() for name in body.__struct_fields__})), json_values
    ),
)
def test_any_values_of_the_known_fields_are_taken_or_refused_by_name(endpoint: str, body: dict[str, Any]) -> None:
    content = {"model": "m", "messages": MESSAGES} if endpoint == CHAT else {"model": "m", "prompt": "p"}
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": content | body}
    error = _error_of(json.dumps(line, ensure_ascii=False).encode(), endpoint)
    if error is not None:
        assert "\0" not in str(error) + (error.param or "")
        assert error.code == "invalid_json_line" or (error.param or "").startswith("body.")


def _error_of(data: bytes, endpoint: str) -> InvalidRequestError | None:
    try:
        parse(data, endpoint).params(max_tokens=1, vocab_size=100)
    except InvalidRequestError as error:
        return error
    return None


def test_the_defaults_are_openais() -> None:
    assert params() == GenerationParams(max_tokens=5)


def test_null_means_the_default() -> None:
    nothing = dict.fromkeys(set(ChatCompletionBody.__struct_fields__) - {"model", "messages"})
    assert params(**nothing) == GenerationParams(max_tokens=5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 1e-9}, {"temperature": 0.0}),
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": []}, {"stop": ()}),
        ({"n": MAX_CHOICES}, {"n": MAX_CHOICES}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"seed": 0}, {"seed": 0}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"logit_bias": {"99": -100}}, {"logit_bias": {99: -100.0}}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
    ],
)
def test_parameters_become_what_the_engine_is_asked(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert params(**body) == GenerationParams(max_tokens=5, **expected)


def test_either_name_sets_the_most_tokens() -> None:
    assert parse(chat(max_tokens=7)).asked_tokens == 7
    assert parse(chat(max_completion_tokens=8)).asked_tokens == 8
    assert parse(chat(max_tokens=8, max_completion_tokens=8)).asked_tokens == 8
    assert parse(chat()).asked_tokens is None


def test_parts_of_a_message_become_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = parse(chat(messages=[{"role": "system", "content": parts, "name": "ann"}]))
    assert body.plain_messages() == [{"role": "system", "content": "one\ntwo", "name": "ann"}]


@pytest.mark.parametrize("body", [{"messages": "secret"}, {"stop": ["secret" * 1000]}, {"seed": "secret"}])
def test_no_text_of_a_client_is_repeated_in_an_error(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(chat(**body))
    assert "secret" not in str(caught.value)


def test_names_that_a_client_made_up_are_cut() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(chat(**{"x" * 10_000: 1}))
    assert caught.value.code == "unknown_parameter"
    assert len(str(caught.value)) < 200


def test_the_custom_id_of_a_bad_line_is_read_where_it_can_be() -> None:
    assert readable_custom_id(b'{"custom_id": "a", "body": 1, "x": [}') is None
    assert readable_custom_id(b'{"custom_id": "a\\u0000", "x": [1]}') == "a\ufffd"
    assert readable_custom_id(b'{"custom_id": 5}') is None
    assert readable_custom_id(b"[]") is None
    assert readable_custom_id(None) is None
    assert readable_custom_id(json.dumps({"custom_id": "y" * 100}).encode()) == "y" * 64
