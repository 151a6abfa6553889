"""Runs a job (see `benchmarks/runs.py`) with transformers' continuous batching, on the GPU where there is one."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

#: How long one answer may take, in seconds.
MAX_SECONDS = 900.0
#: A token that is never generated: the end of a sequence is ignored.
_NO_END = -1


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(job["num_threads"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model = model.eval().to(device)
    requests = [request for run in job["runs"] for request in run]
    hints = WorkloadHints(
        max_prompt_length=max(len(request["prompt_token_ids"]) for request in requests),
        max_generated_length=max(request["max_tokens"] for request in requests),
        num_requests=max(map(len, job["runs"])),
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=_NO_END, pad_token_id=0)  # type: ignore[no-untyped-call]
    with model.continuous_batching_context_manager(
        generation_config=greedy,
        workload_hints=hints,
    ) as manager:
        seconds = [run(manager, number, each) for number, each in enumerate(job["runs"])]
    # It chooses by itself what attends: flash attention where that can be had.
    attention = str(model.config._attn_implementation)
    print(json.dumps({"seconds": seconds[1:], "warm_up_seconds": seconds[0], "attention": attention}))


def run(manager: Any, number: int, requests: list[dict[str, Any]]) -> float:
    lengths = {f"{number}-{index}": request["max_tokens"] for index, request in enumerate(requests)}
    began = time.perf_counter()
    for name, request in zip(lengths, requests, strict=True):
        manager.add_request(
            request["prompt_token_ids"], request_id=name, max_new_tokens=request["max_tokens"], eos_token_id=_NO_END
        )
    num_left = len(requests)
    while num_left:
        result = manager.get_result(timeout=1)
        if result is None:
            assert manager.is_running(), "its thread ended"
            assert time.perf_counter() - began < MAX_SECONDS, f"not ended within {MAX_SECONDS:g} s"
        elif result.is_finished():
            assert result.error is None, result.error
            assert len(result.generated_tokens) == lengths[result.request_id], "an answer has another length"
            num_left -= 1
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
