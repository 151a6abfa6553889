"""Runs a job (see `benchmarks/runs.py`) with transformers' `generate`: one static batch, padded on the left."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["num_threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    seconds = [run(model, requests) for requests in job["runs"]]
    print(json.dumps({"seconds": seconds[1:], "warm_up_seconds": seconds[0]}))


def run(model: Any, requests: list[dict[str, Any]]) -> float:
    """All of them generate as long as the longest: a static batch ends together."""
    import torch

    longest = max(len(request["prompt_token_ids"]) for request in requests)
    num_new = max(request["max_tokens"] for request in requests)
    ids = torch.zeros(len(requests), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        prompt = request["prompt_token_ids"]
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    began = time.perf_counter()
    with torch.inference_mode():
        answers = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=num_new, min_new_tokens=num_new
        )
    seconds = time.perf_counter() - began
    assert answers.shape[1] == longest + num_new, "the answers have another length"
    return seconds


if __name__ == "__main__":
    main()
