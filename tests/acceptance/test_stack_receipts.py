"""What a client does who wants to know that the bill is right."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import openai
from batch_jobs import chat_line, submit, wait_for_end
from stacks import CLI, RunningStack


def test_a_client_proves_what_it_was_billed(
    stack: RunningStack, client: openai.OpenAI, tiny_model: Path, tmp_path: Path
) -> None:
    lines = [chat_line("one"), chat_line("two", "Ünïcode 🦊", n=2), chat_line("three", max_tokens=3)]
    batch = wait_for_end(client, submit(client, lines, extra_body={"receipts": True}).id)
    output, given, key = tmp_path / "out.jsonl", tmp_path / "in.jsonl", tmp_path / "key.json"
    output.write_bytes(client.files.content(batch.output_file_id or "").read())
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    key.write_text(json.dumps(client.get("/receipts/key", cast_to=object)))

    options = ("--key", str(key), "--input", str(given), "--model-folder", str(tiny_model), "--json")
    found = verify(output, *options)

    assert (found["lines"], found["proved"], found["faults"]) == (3, 3, [])
    (bill, *_) = json.loads(stack.run("bill", "--by", "batch", "--json").stdout)
    billed = [line["amount"] for line in bill["lines"] if line["batch_id"] == batch.id]
    assert billed == list(found["amounts"].values())
    output.write_text(output.read_text().replace('"completion_tokens":3', '"completion_tokens":4'))
    changed = verify(output, *options)
    assert [(fault["line"], fault["code"]) for fault in changed["faults"]] == [(3, "wrong_count")]


def verify(output: Path, *options: str) -> Any:
    """Away from the stack, of which it needs nothing."""
    return json.loads(subprocess.run([*CLI, "verify", str(output), *options], capture_output=True, text=True).stdout)
