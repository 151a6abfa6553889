"""Batches through a whole stack, as a client with the stock `openai` package lives through them."""

from __future__ import annotations

import json
from collections.abc import Callable

import openai
import pytest
from batch_jobs import (
    FINAL,
    chat_line,
    check_complete,
    check_ledger,
    lines_of,
    read_lines,
    submit,
    wait_for_batch,
    wait_for_end,
    wait_until_under_way,
)
from openai.types import Completion
from openai.types.chat import ChatCompletion
from stacks import RunningStack

MakeStack = Callable[..., RunningStack]


def test_a_batch_goes_in_and_answers_usage_and_a_bill_come_out(stack: RunningStack, client: openai.OpenAI) -> None:
    lines = lines_of(40)

    batch = wait_for_end(client, submit(client, lines, metadata={"for": "a test"}).id)

    check_complete(stack, batch, lines)
    assert batch.metadata == {"for": "a test"}
    assert batch.model == "tiny"
    for line in read_lines(client, batch.output_file_id):
        assert line["response"]["status_code"] == 200
        answer = ChatCompletion.model_validate(line["response"]["body"])
        assert answer.choices[0].finish_reason in ("stop", "length")
    (bill,) = json.loads(stack.run("bill", "--tenant", "default", "--json").stdout)
    (usage,) = json.loads(stack.run("usage", "--tenant", "default", "--by", "batch", "--json").stdout)[-1:]
    assert bill["currency"] == "USD"
    assert {"exact", "rounding", "total"} <= set(bill)
    assert usage["requests"] >= 1


def test_completions_take_text_and_token_ids(client: openai.OpenAI) -> None:
    bodies = [{"prompt": "hello"}, {"prompt": [7, 8, 9], "logprobs": 2, "n": 2}]
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "max_tokens": 4, **body},
        }
        for number, body in enumerate(bodies)
    ]

    batch = wait_for_end(client, submit(client, lines, endpoint="/v1/completions").id)

    assert batch.status == "completed", batch.errors
    text, token_ids = (
        Completion.model_validate(line["response"]["body"]) for line in read_lines(client, batch.output_file_id)
    )
    assert len(text.choices) == 1
    assert token_ids.usage is not None
    assert token_ids.usage.prompt_tokens == 3
    assert [choice.index for choice in token_ids.choices] == [0, 1]


def test_every_bad_line_is_listed_or_skipped(stack: RunningStack, client: openai.OpenAI) -> None:
    lines = [
        chat_line("good"),
        "{not JSON",
        chat_line("good"),
        chat_line("hot", temperature=3),
        chat_line("other", model="other"),
        chat_line("fine"),
    ]
    wrong = {2: "invalid_json_line", 3: "duplicate_custom_id", 4: "decimal_above_max_value", 5: "model_not_found"}

    failed = wait_for_end(client, submit(client, lines).id)
    skipping = wait_for_end(client, submit(client, lines, extra_body={"on_invalid": "skip"}).id)

    assert failed.status == "failed"
    assert failed.errors is not None
    assert {error.line: error.code for error in failed.errors.data or []} == wrong
    assert failed.output_file_id is None
    assert skipping.status == "completed"
    assert skipping.request_counts is not None
    assert skipping.request_counts.model_dump() == {"total": 6, "completed": 2, "failed": 4}
    assert [line["custom_id"] for line in read_lines(client, skipping.output_file_id)] == ["good", "fine"]
    assert [line["error"]["code"] for line in read_lines(client, skipping.error_file_id)] == list(wrong.values())
    check_ledger(stack, skipping)


def test_a_tenant_sees_nothing_of_another(stack: RunningStack, client: openai.OpenAI) -> None:
    batch = wait_for_end(client, submit(client, lines_of(1)).id)
    created = json.loads(stack.run("keys", "create", "--tenant", "stranger", "--json").stdout)
    stranger = openai.OpenAI(base_url=stack.report["base_url"], api_key=created["key"], max_retries=0)

    assert list(stranger.batches.list()) == []
    assert list(stranger.files.list()) == []
    for attempt in (
        lambda: stranger.batches.retrieve(batch.id),
        lambda: stranger.batches.cancel(batch.id),
        lambda: stranger.files.retrieve(batch.input_file_id),
        lambda: stranger.files.content(batch.output_file_id or ""),
        lambda: stranger.files.delete(batch.input_file_id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    stack.run("keys", "revoke", created["id"])
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_cancelled_in_the_middle_before_the_start_and_after_the_end(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", RYZANSTEIN_SLICE_REQUESTS="25", RYZANSTEIN_ECHO_TOKENS_PER_SECOND="200")
    stack.up()
    client, lines = stack.client(), lines_of(300)

    running = submit(client, lines)
    wait_until_under_way(client, running.id, 10)
    waiting = submit(client, lines)
    wait_for_batch(client, waiting.id, lambda batch: batch.status == "in_progress")
    fresh = submit(client, lines)
    for batch in (fresh, waiting, running):
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")

    ended = wait_for_end(client, running.id)
    assert ended.status == "cancelled"
    finished = read_lines(client, ended.output_file_id)
    cancelled = read_lines(client, ended.error_file_id)
    assert len(finished) >= 10
    assert {line["error"]["code"] for line in cancelled} == {"batch_cancelled"}
    assert sorted(line["custom_id"] for line in finished + cancelled) == sorted(line["custom_id"] for line in lines)
    check_ledger(stack, ended)
    for batch in (waiting, fresh):
        assert wait_for_end(client, batch.id).status == "cancelled"
    assert client.batches.cancel(ended.id).status == "cancelled"

    done = wait_for_end(client, submit(client, lines_of(1)).id)
    assert done.status in FINAL
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(done.id)
    assert len(read_lines(client, done.output_file_id)) == 1
