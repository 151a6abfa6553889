"""Batches as a client sends them, and what must be true of them afterwards, by the client's files and by SQL."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import openai
import psycopg
from openai.types import Batch
from stacks import RunningStack, wait_for

FINAL = {"completed", "failed", "expired", "cancelled"}


def chat_line(custom_id: str, content: str = "hello", **body: Any) -> dict[str, Any]:
    """One good line for the model `tiny`; keyword arguments go into its body."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **body},
    }


def lines_of(num_requests: int, **body: Any) -> list[dict[str, Any]]:
    return [chat_line(f"r{number}", f"number {number}", **body) for number in range(num_requests)]


def submit(client: openai.OpenAI, lines: Iterable[dict[str, Any] | str], **options: Any) -> Batch:
    """Upload `lines` (objects, or text as it is) and create a batch of them."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    file = client.files.create(file=("input.jsonl", io.BytesIO(text.encode())), purpose="batch")
    return client.batches.create(
        **{
            "input_file_id": file.id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **options,
        }
    )


def wait_for_batch(client: openai.OpenAI, batch_id: str, until: Callable[[Batch], bool], limit: float = 90.0) -> Batch:
    """Poll until `until(batch)`; the gateway may be away for a while."""

    def poll() -> Batch | None:
        try:
            batch = client.batches.retrieve(batch_id)
        except (openai.APIConnectionError, openai.InternalServerError):
            return None
        return batch if until(batch) else None

    return wait_for(poll, f"batch {batch_id}", limit)


def wait_for_end(client: openai.OpenAI, batch_id: str, limit: float = 120.0) -> Batch:
    return wait_for_batch(client, batch_id, lambda batch: batch.status in FINAL, limit)


def wait_until_under_way(client: openai.OpenAI, batch_id: str, num_completed: int = 1) -> Batch:
    """Wait until some of its requests have an outcome, and fail if it is over by then."""

    def is_under_way(batch: Batch) -> bool:
        assert batch.status not in FINAL, f"the batch was {batch.status} before it could be disturbed"
        return batch.request_counts is not None and batch.request_counts.completed >= num_completed

    return wait_for_batch(client, batch_id, is_under_way)


def read_lines(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    # Not `splitlines`, which also ends a line at characters that JSON takes as they are.
    return [json.loads(line) for line in client.files.content(file_id).read().split(b"\n") if line]


def check_complete(
    stack: RunningStack, batch: Batch, lines: list[dict[str, Any]], client: openai.OpenAI | None = None
) -> None:
    """Every request succeeded, is in the output file once, and is billed once. `client` is the batch's tenant's."""
    custom_ids = [line["custom_id"] for line in lines]
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": len(lines), "completed": len(lines), "failed": 0}
    output = read_lines(client or stack.client(), batch.output_file_id)
    assert [line["custom_id"] for line in output] == custom_ids  # no line missing or doubled, in input order
    assert batch.error_file_id is None
    usage = [line["response"]["body"]["usage"] for line in output]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(one["prompt_tokens"] for one in usage)
    assert batch.usage.output_tokens == sum(one["completion_tokens"] for one in usage)
    check_ledger(stack, batch)


def check_ledger(stack: RunningStack, batch: Batch) -> None:
    """Results, usage events, rated lines, ledger and the batch's counters say the same."""
    assert batch.usage is not None
    assert batch.request_counts is not None
    with psycopg.connect(stack.report["database_url"]) as conn:
        one = [batch.id]
        num_results = conn.execute("SELECT count(*) FROM results WHERE batch_id = %s", one).fetchone()
        num_unfinished = conn.execute(
            "SELECT count(*) FROM requests WHERE batch_id = %s AND outcome IS NULL", one
        ).fetchone()
        events = conn.execute(
            "SELECT sum(quantity) FILTER (WHERE meter <> 'output'), sum(quantity) FILTER (WHERE meter = 'output'),"
            " count(DISTINCT request_id) FROM metered_usage WHERE batch_id = %s",
            one,
        ).fetchone()
        unrated = conn.execute(
            "SELECT count(*) FROM rated_usage"
            " WHERE batch_id = %s AND (revision IS NULL OR rated_quantity <> quantity OR revision <> 1)",
            one,
        ).fetchone()
        drift = conn.execute(
            "SELECT (SELECT coalesce(sum(amount), 0) FROM usage_prices) - (SELECT coalesce(sum(e.amount), 0)"
            " FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id WHERE a.kind = 'receivable')"
        ).fetchone()
    completed = batch.request_counts.completed
    assert num_results == (completed,)
    assert num_unfinished == (0,)
    assert events == (batch.usage.input_tokens or None, batch.usage.output_tokens or None, completed)
    assert unrated == (0,)
    assert drift is not None
    assert drift[0] == 0
