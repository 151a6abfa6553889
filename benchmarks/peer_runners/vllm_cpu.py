"""Runs a job (see `benchmarks/runs.py`) with vLLM's CPU engine, offline; its own environment's Python runs this."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    from vllm import LLM

    engine = LLM(
        model=job["model"],
        dtype=job["dtype"],
        # Shared prefixes are what it would find; elsewhere looking for them only costs.
        enable_prefix_caching=job["shares_prefixes"],
        max_model_len=job["max_length"],
        max_num_seqs=min(256, len(job["runs"][0])),
        max_num_batched_tokens=int(os.environ["BENCHMARK_BATCHED_TOKENS"]),
        tensor_parallel_size=job["tp"],
        disable_log_stats=True,
        seed=0,
    )
    seconds = [run(engine, requests) for requests in job["runs"]]
    print(json.dumps({"seconds": seconds[1:], "warm_up_seconds": seconds[0]}))


def run(engine: Any, requests: list[dict[str, Any]]) -> float:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": request["prompt_token_ids"]} for request in requests]
    params = [
        SamplingParams(temperature=0.0, max_tokens=request["max_tokens"], ignore_eos=True, detokenize=False)
        for request in requests
    ]
    began = time.perf_counter()
    answers = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    for request, answer in zip(requests, answers, strict=True):
        assert len(answer.outputs[0].token_ids) == request["max_tokens"], "an answer has another length"
    return seconds


if __name__ == "__main__":
    main()
