"""Lines of input files: good ones, good ones with something wrong, and bytes of any kind."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

#: What has broken readers of JSON and of text before.
ODD_TEXTS = st.sampled_from(
    [
        "",
        "\0",
        "a\0b",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\udfff\ud800",
        "🙂" * 9,
        "x" * 65,
        "x" * 2000,
        "e\u0301",
        "<|im_start|>",
        "{{ 7 * 7 }}",
        "$" * 40,
        " - at `$.body`",
        "NaN",
    ]
)
ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1, 1e308, -0.0, 5e-324, 0.1]
)
SCALARS = st.none() | st.booleans() | st.integers() | ODD_NUMBERS | st.floats(allow_nan=False) | st.text() | ODD_TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | ODD_TEXTS, inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "messages", "prompt", "model", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop",
        "seed", "n", "presence_penalty", "frequency_penalty", "logit_bias", "ignore_eos", "user", "metadata", "store",
        "stream", "stream_options", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "best_of",
        "echo", "suffix", "modalities", "reasoning_effort",
    ]
)  # fmt: skip
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "", "\0"])
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", ""])}, optional={"text": st.text() | ODD_TEXTS, "file": VALUES}
)
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES},
    optional={
        "content": st.text() | ODD_TEXTS | st.lists(PARTS, max_size=3) | VALUES,
        "name": st.text(max_size=5) | ODD_TEXTS,
        "tool_calls": VALUES,
        "refusal": VALUES,
    },
)
USABLE = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(-1, 50),
        "max_tokens": st.integers(1, 40),
        "stop": st.text(min_size=1, max_size=4) | st.lists(st.text(min_size=1, max_size=4), max_size=4),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "n": st.integers(1, 4),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 99).map(str), st.floats(-100, 100), max_size=3),
        "ignore_eos": st.booleans(),
    },
)


@st.composite
def requests(draw: st.DrawFn, endpoint: str) -> dict[str, Any]:
    """A line as an object: right, or with up to three things changed."""
    body: dict[str, Any] = {"model": "tiny", **draw(USABLE)}
    if endpoint == CHAT:
        body["messages"] = draw(
            st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1, max_size=3)
            | st.lists(MESSAGES, max_size=3)
        )
    else:
        body["prompt"] = draw(
            st.text(min_size=1) | ODD_TEXTS | st.lists(st.integers(0, 300), max_size=9) | st.lists(SCALARS, max_size=4)
        )
    line: dict[str, Any] = {"custom_id": draw(st.uuids().map(str)), "method": "POST", "url": endpoint, "body": body}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        match draw(st.sampled_from(["field", "field", "envelope", "without", "unknown"])):
            case "field":
                body[draw(FIELDS)] = draw(VALUES)
            case "envelope":
                line[draw(st.sampled_from(["custom_id", "method", "url", "body"]))] = draw(VALUES)
            case "without":
                line.pop(draw(st.sampled_from(["custom_id", "method", "url", "body"])), None)
            case "unknown":
                draw(st.sampled_from([line, body]))[draw(st.text(max_size=200) | ODD_TEXTS)] = draw(VALUES)
    return line


@st.composite
def as_json(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """Written in one of the ways in which JSON can be written."""
    value = draw(values)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=None, separators=draw(_SEPARATORS))
    return text.encode(errors="surrogatepass").replace(b"\n", b" ")


@st.composite
def spoilt(draw: st.DrawFn, lines: st.SearchStrategy[bytes]) -> bytes:
    """With some bytes changed, taken out, put in or repeated."""
    data = bytearray(draw(lines))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "cut", "insert", "repeat", "nest"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : at + draw(st.integers(1, 20))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=6) | st.sampled_from(_FRAGMENTS))
            case "repeat":
                data[at:at] = data[max(0, at - draw(st.integers(1, 60))) : at]
            case "nest":
                data[at:at] = draw(st.sampled_from([b"[", b'{"a":', b'"\\ud800', b"1"])) * draw(
                    st.sampled_from([2, 500, 3000])
                )
    return bytes(data)


_SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\r ")])
_FRAGMENTS = [
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"NaN",
    b"Infinity",
    b"-",
    b"1e999",
    b"9" * 400,
    b"\xed\xa0\x80",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b'"custom_id":"twice",',
    b"/*",
    b"{}",
]


def lines(endpoint: str) -> st.SearchStrategy[bytes]:
    good = as_json(requests(endpoint))
    return good | good | spoilt(good) | as_json(VALUES) | st.binary(max_size=60) | st.just(b"")
