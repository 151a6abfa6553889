from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from seeds import seed_batch, seed_tenant
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from tokenizer_folders import byte_level

from pipeline.jobs.intake import IntakeReport, intake, load_tokenizer
from pipeline.jobs.intake_table import INTAKE_TABLE
from pipeline.schemas.generation import GenerationParams
from pipeline.settings import Settings
from pipeline.tables import Batch, OnInvalid, RateCard, ServedModel
from pipeline.tokenization import Tokenizer, unpack_token_ids

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CONTEXT = 128
DUPLICATE = (
    "The custom_id for this request is a duplicate of another request. "
    "The custom_id parameter must be unique for each request in a batch."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


class Found:
    """What intake reported and wrote."""

    def __init__(self, report: IntakeReport, rows: list[Any], errors: list[Any]) -> None:
        self.report = report
        self.rows = rows
        self.errors = [(error.line, error.code, error.param) for error in errors]
        self.messages = [error.message for error in errors]
        self.custom_ids = [error.custom_id for error in errors]


Run = Callable[..., Found]


@pytest.fixture
def run(database: Engine, folder: Path) -> Run:
    tenant = seed_tenant(database)
    price = {"currency": "USD", "input_price": 1, "cached_input_price": 1, "output_price": 1, "batch_discount": 0}
    with Session(database) as session, session.begin():
        for name in ("tiny", "other", "unpriced", "later", "broken"):
            path = "/nowhere" if name == "broken" else str(folder)
            session.add(ServedModel(name=name, path=path, context_length=CONTEXT))
        session.add_all(RateCard(model=name, **price) for name in ("tiny", "other", "broken"))
        now = session.execute(text("SELECT now()")).scalar_one()
        session.add(RateCard(model="later", effective_from=now + timedelta(hours=1), **price))

    def run(
        content: bytes,
        *,
        endpoint: str = CHAT,
        skip: bool = False,
        tokenizer_of: Callable[[Path], Tokenizer] = load_tokenizer,
        **settings: Any,
    ) -> Found:
        batch_id = seed_batch(database, tenant, [], endpoint=endpoint)
        with Session(database) as session, session.begin():
            batch = session.get_one(Batch, batch_id)
            batch.on_invalid = OnInvalid.SKIP if skip else OnInvalid.FAIL
            session.flush()
            conn = session.connection()
            report = intake(conn, batch, io.BytesIO(content), Settings(**settings), tokenizer_of)
            rows = conn.execute(text(f"SELECT * FROM {INTAKE_TABLE} ORDER BY line")).all()
            errors = conn.execute(
                text("SELECT * FROM batch_errors WHERE batch_id = :id ORDER BY line"), {"id": batch_id}
            ).all()
        return Found(report, list(rows), list(errors))

    return run


def chat(custom_id: str = "a", **body: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def completion(custom_id: str = "a", **body: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "The fox", "max_tokens": 4, **body}
    return {"custom_id": custom_id, "method": "POST", "url": COMPLETIONS, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def test_good_lines_become_prompts_and_parameters(run: Run, tokenizer: Tokenizer) -> None:
    found = run(jsonl(chat("a"), chat("b", n=3, temperature=0.5, stop="x", logit_bias={"5": -1.5})))
    assert found.report == IntakeReport(model="tiny", num_requests=2, num_errors=0, is_accepted=True)
    prompt = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    first, second = found.rows
    assert unpack_token_ids(first.prompt_token_ids) == ids
    assert (first.line, first.custom_id, first.num_prompt_tokens) == (1, "a", len(ids))
    assert first.params == {"max_tokens": 4}
    assert first.num_tokens == len(ids) + 4
    assert second.num_tokens == len(ids) + 3 * 4
    assert second.params == {"max_tokens": 4, "temperature": 0.5, "n": 3, "stop": ["x"], "logit_bias": {"5": -1.5}}
    assert msgspec.json.decode(json.dumps(second.params), type=GenerationParams) == GenerationParams(
        max_tokens=4, temperature=0.5, n=3, stop=("x",), logit_bias={5: -1.5}
    )


def test_bare_prompts_get_the_first_token_and_ids_stay_as_they_are(run: Run, tokenizer: Tokenizer) -> None:
    found = run(
        jsonl(completion("a"), completion("b", prompt=[7, 8, 9]), completion("c", prompt="")), endpoint=COMPLETIONS
    )
    prompts = [unpack_token_ids(row.prompt_token_ids) for row in found.rows]
    assert prompts == [tokenizer.encode("The fox", add_special_tokens=True), [7, 8, 9], [0]]
    assert prompts[0][0] == 0


def test_missing_max_tokens_is_the_rest_of_the_context_for_chats_and_16_for_prompts(run: Run) -> None:
    row = run(jsonl(chat(max_tokens=None))).rows[0]
    assert row.params["max_tokens"] == CONTEXT - row.num_prompt_tokens
    row = run(jsonl(completion(max_tokens=None)), endpoint=COMPLETIONS).rows[0]
    assert row.params["max_tokens"] == 16


def test_a_prompt_may_fill_the_context_to_the_last_token(run: Run) -> None:
    ids = [5] * (CONTEXT - 4)
    assert run(jsonl(completion(prompt=ids)), endpoint=COMPLETIONS).report.is_accepted
    found = run(jsonl(completion(prompt=[*ids, 5])), endpoint=COMPLETIONS)
    assert found.errors == [(1, "context_length_exceeded", "body.prompt")]
    assert found.messages == [
        f"This model's maximum context length is {CONTEXT} tokens. However, you asked for {CONTEXT - 3} tokens of "
        "prompt and 4 of answer. Please reduce the length of the prompt, or max_tokens."
    ]


LINES: list[tuple[str, Any, tuple[str, str | None]]] = [
    ("bad json", b"{", ("invalid_json_line", None)),
    ("words", b"hello", ("invalid_json_line", None)),
    ("trailing words", json.dumps(chat()).encode() + b"}", ("invalid_json_line", None)),
    ("nan", b'{"custom_id":"a","method":"POST","url":"x","body":{"temperature":NaN}}', ("invalid_json_line", None)),
    ("lone surrogate", json.dumps(chat(user="\ud800")).encode(), ("invalid_json_line", None)),
    ("deep nesting", b'{"custom_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", ("invalid_json_line", None)),
    ("deep body", b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + b'{"tools":' * 9000,
     ("invalid_json_line", None)),
    ("array", [], ("invalid_json_line", None)),
    ("number", 1, ("invalid_json_line", None)),
    ("null", None, ("invalid_json_line", None)),
    ("not utf-8", b'{"custom_id":"\xff"}', ("invalid_encoding", None)),
    ("not utf-8 in the body", json.dumps(chat(user="~")).encode().replace(b"~", b"\xe4\xbd"),
     ("invalid_encoding", None)),
    ("no custom_id", {**chat(), "custom_id": None}, ("missing_required_parameter", "custom_id")),
    ("empty custom_id", chat(""), ("missing_required_parameter", "custom_id")),
    ("custom_id a number", {**chat(), "custom_id": 1}, ("invalid_type", "custom_id")),
    ("custom_id too long", chat("x" * 65), ("string_above_max_length", "custom_id")),
    ("custom_id with nul", chat("a\0b"), ("invalid_value", "custom_id")),
    ("get", {**chat(), "method": "GET"}, ("invalid_method", "method")),
    ("no method", {key: value for key, value in chat().items() if key != "method"},
     ("missing_required_parameter", "method")),
    ("other url", {**chat(), "url": COMPLETIONS}, ("invalid_url", "url")),
    ("url a list", {**chat(), "url": [CHAT]}, ("invalid_url", "url")),
    ("no body", {key: value for key, value in chat().items() if key != "body"}, ("missing_required_parameter", "body")),
    ("body a string", {**chat(), "body": "x"}, ("invalid_type", "body")),
    ("unknown field", {**chat(), "priority": 1}, ("unknown_parameter", "priority")),
    ("no model", {**chat(), "body": {"messages": [{"role": "user"}]}}, ("missing_required_parameter", "body.model")),
    ("unknown model", chat(model="gpt\0x"), ("model_not_found", "body.model")),
    ("unpriced model", chat(model="unpriced"), ("model_not_priced", "body.model")),
    ("price in the future", chat(model="later"), ("model_not_priced", "body.model")),
    ("unknown parameter", chat(temprature=1), ("unknown_parameter", "body.temprature")),
    ("nul in a name", chat("a", **{"a\0": 1}), ("unknown_parameter", "body.a\ufffd")),
    ("temperature", chat(temperature=2.1), ("decimal_above_max_value", "body.temperature")),
    ("temperature a string", chat(temperature="1"), ("invalid_type", "body.temperature")),
    ("temperature true", chat(temperature=True), ("invalid_type", "body.temperature")),
    ("temperature endless", json.dumps(chat("endless", temperature=7.5)).encode().replace(b"7.5", b"1e999"),
     ("invalid_value", "body.temperature")),
    ("top_p", chat(top_p=0), ("decimal_below_min_value", "body.top_p")),
    ("top_k", chat(top_k=-2), ("integer_below_min_value", "body.top_k")),
    ("max_tokens", chat(max_tokens=0), ("integer_below_min_value", "body.max_tokens")),
    ("max_tokens huge", chat(max_tokens=10**60), ("integer_above_max_value", "body.max_tokens")),
    ("max_tokens over", chat(max_tokens=CONTEXT), ("context_length_exceeded", "body.messages")),
    ("two max_tokens", chat(max_completion_tokens=5), ("invalid_value", "body.max_tokens")),
    ("five stops", chat(stop=list("abcde")), ("array_above_max_length", "body.stop")),
    ("empty stop", chat(stop=["a", ""]), ("invalid_value", "body.stop[1]")),
    ("nul in stop", chat(stop="a\0"), ("invalid_value", "body.stop")),
    ("seed", chat(seed=2**63), ("integer_above_max_value", "body.seed")),
    ("seed a decimal", chat(seed=1.5), ("invalid_type", "body.seed")),
    ("n", chat(n=17), ("integer_above_max_value", "body.n")),
    ("presence", chat(presence_penalty=-2.5), ("decimal_below_min_value", "body.presence_penalty")),
    ("frequency", chat(frequency_penalty=3), ("decimal_above_max_value", "body.frequency_penalty")),
    ("bias", chat(logit_bias={"5": 101}), ("decimal_above_max_value", "body.logit_bias")),
    ("bias of a word", chat(logit_bias={"fox": 1}), ("invalid_value", "body.logit_bias")),
    ("bias out of vocabulary", chat(logit_bias={"99999": 1}), ("invalid_value", "body.logit_bias")),
    ("logprobs a number", chat(logprobs=2), ("invalid_type", "body.logprobs")),
    ("top_logprobs alone", chat(top_logprobs=2), ("invalid_value", "body.top_logprobs")),
    ("top_logprobs", chat(logprobs=True, top_logprobs=21), ("integer_above_max_value", "body.top_logprobs")),
    ("stream", chat(stream=True), ("unsupported_value", "body.stream")),
    ("json", chat(response_format={"type": "json_object"}), ("unsupported_value", "body.response_format")),
    ("tools", chat(tools=[{"type": "function"}]), ("unsupported_parameter", "body.tools")),
    ("no messages", chat(messages=[]), ("array_below_min_length", "body.messages")),
    ("message a string", chat(messages=["hi"]), ("invalid_type", "body.messages[0]")),
    ("tool message", chat(messages=[{"role": "tool", "content": "x"}]), ("invalid_value", "body.messages[0].role")),
    ("no content", chat(messages=[{"role": "user"}]), ("missing_required_parameter", "body.messages[0].content")),
    ("content a number", chat(messages=[{"role": "user", "content": 1}]), ("invalid_type", "body.messages[0].content")),
    ("image", chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
     ("unsupported_value", "body.messages[0].content[0].type")),
    ("no parts", chat(messages=[{"role": "user", "content": []}]), ("empty_array", "body.messages[0].content")),
    ("tool calls", chat(messages=[{"role": "assistant", "content": "", "tool_calls": [{}]}]),
     ("unsupported_parameter", "body.messages[0].tool_calls")),
    ("prompt in a chat", chat(prompt="x"), ("unknown_parameter", "body.prompt")),
]  # fmt: skip

PROMPTS: list[tuple[str, Any, tuple[str, str | None]]] = [
    ("no prompt", completion(prompt=None), ("invalid_type", "body.prompt")),
    ("several prompts", completion(prompt=["a", "b"]), ("invalid_type", "body.prompt")),
    ("several id prompts", completion(prompt=[[1], [2]]), ("invalid_type", "body.prompt")),
    ("no ids", completion(prompt=[]), ("array_below_min_length", "body.prompt")),
    ("negative id", completion(prompt=[-1]), ("integer_below_min_value", "body.prompt[0]")),
    ("id out of vocabulary", completion(prompt=[1, 99_999]), ("invalid_value", "body.prompt")),
    ("id out of bounds", completion(prompt=[2**40]), ("invalid_value", "body.prompt")),
    ("logprobs", completion(logprobs=6), ("integer_above_max_value", "body.logprobs")),
    ("logprobs true", completion(logprobs=True), ("invalid_type", "body.logprobs")),
    ("echo", completion(echo=True), ("unsupported_parameter", "body.echo")),
    ("suffix", completion(suffix="x"), ("unsupported_parameter", "body.suffix")),
    ("best_of", completion(best_of=3), ("unsupported_value", "body.best_of")),
    ("long text", completion(prompt="fox " * 500), ("context_length_exceeded", "body.prompt")),
    ("very long text", completion(prompt="fox " * 500_000), ("context_length_exceeded", "body.prompt")),
]


def _content(*lines: Any) -> bytes:
    return b"".join(line + b"\n" if isinstance(line, bytes) else jsonl(line) for line in lines)


@pytest.mark.parametrize(("endpoint", "cases"), [(CHAT, LINES), (COMPLETIONS, PROMPTS)], ids=["chat", "prompts"])
def test_every_bad_line_is_reported_in_one_pass(run: Run, endpoint: str, cases: list[Any]) -> None:
    good = chat("good") if endpoint == CHAT else completion("good")
    # Each bad line names itself, as far as it can.
    lines = [
        {**line, "custom_id": name} if isinstance(line, dict) and line.get("custom_id") == "a" else line
        for name, line, _ in cases
    ]
    found = run(_content(*lines, good), endpoint=endpoint)
    assert found.errors == [(number, *expected) for number, (_, _, expected) in enumerate(cases, 1)]
    assert found.report == IntakeReport(model="tiny", num_requests=1, num_errors=len(cases), is_accepted=False)
    assert all(message.endswith((".", "?")) and len(message) < 400 for message in found.messages)


def test_bad_lines_are_skipped_where_the_batch_asks_for_it(run: Run) -> None:
    found = run(_content(chat("a"), b"{", chat("b", n=0), chat("c")), skip=True)
    assert found.report == IntakeReport(model="tiny", num_requests=2, num_errors=2, is_accepted=True)
    assert [row.custom_id for row in found.rows] == ["a", "c"]
    assert found.custom_ids == [None, "b"]


def test_a_batch_without_a_good_line_is_not_accepted(run: Run) -> None:
    found = run(jsonl(chat("a", n=0), chat("b", n=0)), skip=True)
    assert found.report == IntakeReport(model=None, num_requests=0, num_errors=2, is_accepted=False)


def test_messages_say_what_was_wrong_with_the_value(run: Run) -> None:
    found = run(jsonl(chat("a"), chat("a"), chat("b", temperature=3), chat("c", seed="x"), chat("d", model="nope")))
    assert found.messages == [
        DUPLICATE,
        "Invalid 'body.temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
        "Invalid type for 'body.seed': expected an integer, but got a string instead.",
        "The model 'nope' does not exist. GET /v1/models lists those that do.",
    ]
    assert found.errors[0] == (2, "duplicate_custom_id", "custom_id")
    assert found.custom_ids == ["a", "b", "c", "d"]


def test_a_custom_id_is_taken_by_a_bad_line_too(run: Run) -> None:
    found = run(jsonl(chat("a", n=0), chat("a")), skip=True)
    assert [error[1] for error in found.errors] == ["integer_below_min_value", "duplicate_custom_id"]


def test_a_batch_has_the_model_of_its_first_good_line(run: Run) -> None:
    found = run(jsonl(chat("a", model="nope"), chat("b", model="other"), chat("c"), chat("d", model="other")))
    assert found.report.model == "other"
    assert found.errors == [(1, "model_not_found", "body.model"), (3, "mismatched_model", "body.model")]


def test_blank_lines_are_ignored_and_counted(run: Run) -> None:
    content = b"\xef\xbb\xbf\n  \r\n" + jsonl(chat("a")).replace(b"\n", b"\r\n") + b"\n\n" + jsonl(chat("b"))[:-1]
    assert [row.line for row in run(content).rows] == [3, 6]


@pytest.mark.parametrize(
    ("content", "settings", "code"),
    [
        (b"", {}, "empty_file"),
        (b"\n \n\r\n", {}, "empty_file"),
        (jsonl(chat("a"), chat("b"), chat("c")), {"max_batch_lines": 2}, "too_many_requests"),
        (jsonl(chat("a"), chat("b")), {"max_batch_file_bytes": 200}, "file_too_large"),
        (jsonl(chat("a")).decode().encode("utf-16"), {}, "invalid_encoding"),
        (jsonl(chat("a", model="broken")), {}, "model_unavailable"),
    ],
)
@pytest.mark.parametrize("skip", [True, False])
def test_what_is_wrong_with_the_whole_file_fails_the_batch(
    run: Run, content: bytes, settings: dict[str, Any], code: str, skip: bool
) -> None:
    found = run(content, skip=skip, **settings)
    assert found.errors == [(0, code, None)]
    assert not found.report.is_accepted


def test_as_many_lines_as_allowed_are_accepted(run: Run) -> None:
    assert run(jsonl(chat("a"), chat("b")) + b"\n\n", max_batch_lines=2).report.is_accepted


def test_a_long_line_is_reported_and_the_next_is_read(run: Run) -> None:
    found = run(jsonl(chat("a"), chat("b", user="x" * 2_000_000), chat("c")), skip=True, max_line_bytes=1_000)
    assert found.errors == [(2, "line_too_long", None)]
    assert [row.custom_id for row in found.rows] == ["a", "c"]


def test_a_template_that_refuses_is_an_error_of_its_line(run: Run, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% if messages[0].content == 'no' %}{{ raise_exception('I will not') }}{% endif %}x"
    (byte_level(tmp_path) / "tokenizer_config.json").write_text(json.dumps(config))
    refused = [{"role": "user", "content": "no"}]

    def strict(_: Path) -> Tokenizer:
        return Tokenizer.load(tmp_path)

    found = run(jsonl(chat("a"), chat("b", messages=refused)), tokenizer_of=strict)
    assert found.errors == [(2, "invalid_value", "body.messages")]
    assert "I will not" in found.messages[0]


def test_a_tokenizer_is_kept_until_its_folder_changes(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    first = load_tokenizer(folder)
    assert load_tokenizer(folder) is first
    template = folder / "chat_template.jinja"
    template.write_text("x")
    os.utime(template, ns=(2**62, 2**62))
    assert load_tokenizer(folder).render_chat([]) == "x"


def test_harmless_fields_change_nothing(run: Run) -> None:
    harmless = {
        "user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": False, "service_tier": "flex",
        "prompt_cache_key": "k", "stream": False, "stream_options": None, "tools": [], "tool_choice": "auto",
        "response_format": {"type": "text"}, "modalities": ["text"], "parallel_tool_calls": True, "logit_bias": None,
        "temperature": None, "top_p": None, "n": None, "stop": None, "seed": None, "logprobs": False,
    }  # fmt: skip
    reply: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
    }
    messages = [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, reply]
    found = run(jsonl(chat("a", **harmless), chat("b", messages=messages)))
    assert found.errors == []
    assert found.rows[0].params == {"max_tokens": 4}


def test_many_lines_go_through_in_chunks(run: Run) -> None:
    found = run(jsonl(*(chat(f"request-{number}") for number in range(3000))))
    assert found.report.num_requests == 3000
    assert [row.line for row in found.rows] == list(range(1, 3001))


def test_tens_of_thousands_of_bad_lines_are_all_kept(run: Run) -> None:
    found = run(b"{\n" * 20_000)
    assert len(found.errors) == 20_000
