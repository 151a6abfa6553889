"""Lines with two things wrong, of which the first is explained by reading on: what fuzzing found."""

from __future__ import annotations

import pytest

from pipeline.schemas.invalid import InvalidRequestError
from pipeline.schemas.requests import parse_body, parse_line

CHAT = "/v1/chat/completions"


def refusal(body: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(parse_line(b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":%s}' % body), CHAT)
    return caught.value


def test_a_value_out_of_range_before_a_name_that_is_no_text() -> None:
    error = refusal(b'{"model":"tiny","max_tokens":0,"\x96\x8b":[1]}')
    assert (error.code, error.param) == ("integer_below_min_value", "body.max_tokens")
    assert "Expected a value >= 1." in str(error)
