"""Numbers, money, moments, prompts and answers as people read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from pipeline.console.formatting import duration, moment, money, number, size
from pipeline.console.messages import Said, answer_of, prompt_of


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("0", "USD", "0.00 USD"),
        ("1234567.5", "USD", "1,234,567.50 USD"),
        ("-1234.000000000000001", "USD", "-1,234.000000000000001 USD"),
        ("-0.5", "EUR", "-0.50 EUR"),
        ("99999999999999999999999.123456789012345", "USD", "99,999,999,999,999,999,999,999.123456789012345 USD"),
        ("1000", "JPY", "1,000 JPY"),
    ],
)
def test_money_is_exact(amount: str, currency: str, shown: str) -> None:
    assert money(Decimal(amount), currency) == shown


def test_what_is_not_known_is_a_dash() -> None:
    shown = {number(None), money(None, "USD"), money(Decimal(1), None), moment(None), duration(None), size(None)}
    assert shown == {"–"}


def test_moments_are_utc_for_people_and_machines() -> None:
    at = datetime(2026, 11, 21, 1, 2, 3, tzinfo=timezone(timedelta(hours=2)))
    assert moment(at) == '<time datetime="2026-11-20T23:02:03Z">2026-11-20 23:02:03 UTC</time>'
    assert at.astimezone(UTC).day == 20


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (-5, "0 s"), (59.6, "1 min"), (725, "12 min 5 s"), (3_600, "1 h"), (273_900, "3 d 4 h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (5 * 1024**4, "5,120.0 GiB")]
)
def test_a_size_is_short(num_bytes: int, shown: str) -> None:
    assert size(num_bytes) == shown


def line(body: Any) -> bytes:
    return json.dumps({"custom_id": "a", "body": body}).encode()


def test_prompts_say_who_says_what() -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": "x"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}, "odd", {"role": "tool"}]
    assert prompt_of(line({"messages": messages})) == [
        Said("system", "Be brief."),
        Said("user", 'Look:\n{"type": "image_url", "image_url": "x"}'),
        Said("message", "odd"),
        Said("tool", ""),
    ]
    assert prompt_of(line({"prompt": "Once"})) == [Said("prompt", "Once")]
    assert prompt_of(line({"prompt": [1, 2]})) == [Said("prompt", "[1, 2]")]
    assert len(prompt_of(line({"messages": [{"role": "user", "content": "a"}] * 10_000})) or ()) == 200


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"body": 1}', b'{"body": {}}', b"\xff", b"[" * 100_000])
def test_what_is_no_prompt_is_none(data: bytes) -> None:
    assert prompt_of(data) is None


def test_answers_say_why_they_ended() -> None:
    choices: list[Any] = [{"message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}]
    assert answer_of(json.dumps({"choices": choices})) == [Said("answer", "Yes.", "stop")]
    choices += [{"text": "No", "finish_reason": None}, {"message": {"content": None, "tool_calls": [{"id": 1}]}}, 7]
    assert answer_of(json.dumps({"choices": choices}))[1:] == [
        Said("choice 2", "No"),
        Said("choice 3", '[{"id": 1}]'),
        Said("choice 4", "7"),
    ]
    assert answer_of('{"usage": {}}') == [Said("answer", '{"usage": {}}')]
