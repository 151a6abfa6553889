"""Quotes and budgets through a whole stack, with a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from batch_jobs import wait_for_end
from stacks import RunningStack, wait_for


@pytest.fixture(scope="module")
def stack(stack_folder: Path, tiny_model: Path) -> Iterator[RunningStack]:
    own = RunningStack(stack_folder / "money", tiny_model)
    try:
        own.up()
        yield own
    finally:
        own.end()


def write_lines(file: Path, count: int, **body: Any) -> Path:
    """Requests of which groups of four begin alike, in an order that hides it."""
    with file.open("w") as out:
        for number in range(count):
            prompt = [*(5 + (number % (count // 4) * 7 + place) % 90 for place in range(100)), 3, 5 + number]
            request = {"model": "tiny", "prompt": prompt, "max_tokens": 6, **body}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": request}
            out.write(json.dumps(line) + "\n")
    return file


def bill_of(stack: RunningStack) -> Decimal:
    return sum((Decimal(bill["exact"]) for bill in json.loads(stack.run("bill", "--json").stdout)), Decimal(0))


def test_a_batch_costs_what_its_quote_said(stack: RunningStack, client: openai.OpenAI, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl", 40, ignore_eos=True)
    before = bill_of(stack)

    quoted = json.loads(stack.run("quote", str(file), "--json").stdout)
    shown = stack.run("quote", str(file)).stdout
    submitted = json.loads(stack.run("submit", "--quote", quoted["id"], "--wait", "--json").stdout)

    assert submitted["status"] == "completed"
    # One group, and no answer ends before max_tokens: nothing is left to chance.
    assert quoted["prompt_tokens"] == submitted["usage"]["input_tokens"] == 40 * 102
    assert quoted["shared_prompt_tokens"] == submitted["usage"]["input_tokens_details"]["cached_tokens"] == 30 * 96
    assert quoted["output_tokens"]["worst_case"] == submitted["usage"]["output_tokens"] == 240
    assert bill_of(stack) - before == Decimal(quoted["cost"]["p50"]) < Decimal(quoted["cost"]["worst_case"])
    assert quoted["cost"]["worst_case"] in shown
    assert client.batches.retrieve(submitted["id"]).to_dict()["quote_id"] == quoted["id"]


def test_a_batch_pauses_at_the_limit_of_its_tenant_and_goes_on_when_it_is_raised(
    stack: RunningStack, client: openai.OpenAI, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "in.jsonl", 40, temperature=0.5)
    most = Decimal(json.loads(stack.run("quote", str(file), "--json").stdout)["cost"]["worst_case"])
    spent = bill_of(stack)
    limit = spent + most / 2
    stack.run("budgets", "set", "default", f"{limit:f}")
    batch_id = json.loads(stack.run("submit", str(file), "--json").stdout)["id"]

    def paused() -> bool:
        batch = client.batches.retrieve(batch_id)
        counts = batch.request_counts
        return batch.to_dict()["pause_reason"] is not None and counts is not None and counts.completed >= 20

    wait_for(paused, "the batch pauses")
    assert client.batches.retrieve(batch_id).status == "in_progress"
    # Whenever a slice needed less than it held, the batch goes on for a moment.
    wait_for(lambda: "in_progress (paused)" in stack.run("batches").stdout, "the list shows it")
    assert spent < bill_of(stack) <= limit
    wait_for(lambda: "budget" in stack.run("explain", batch_id).stdout, "the explanation names it")
    [budget] = json.loads(stack.run("budgets", "list", "--json").stdout)
    assert Decimal(budget["spent"]) == bill_of(stack)

    stack.run("budgets", "set", "default", "100")

    ended = wait_for_end(client, batch_id)
    assert ended.status == "completed"
    assert ended.request_counts is not None
    assert ended.request_counts.completed == 40
    assert stack.run("audit", "--at-rest").returncode == 0
