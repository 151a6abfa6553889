"""Runs a job (see `benchmarks/runs.py`) with our own engine, as a group does: this process, and one per rank."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import peak_bytes
from pipeline.schemas.generation import GenerationParams
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineRequest, Outcome, OutcomeStatus

#: How long one outcome may take, in seconds.
MAX_SECONDS = 900.0


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    options: dict[str, Any] = {"model_path": job["model"], "tp": job["tp"], "dtype": job["dtype"]}
    if job["quantize"]:
        options["quantize"] = job["quantize"]
    engine = NativeEngine(EngineOptions(**options, **(job["engine_options"] or {})))
    began = time.perf_counter()
    engine.start()
    start_seconds = time.perf_counter() - began
    try:
        runs = [run(engine, number, requests) for number, requests in enumerate(job["runs"])]
        peaks = [peak_bytes(pid) for pid in engine.health().rank_pids]
        num_kv_tokens = engine.load().num_kv_tokens
    finally:
        engine.stop()
    print(
        json.dumps(
            {
                "seconds": [entry["seconds"] for entry in runs[1:]],
                "warm_up_seconds": runs[0]["seconds"],
                "start_seconds": start_seconds,
                "num_steps": [entry["num_steps"] for entry in runs[1:]],
                "num_computed_prompt_tokens": [entry["num_computed_prompt_tokens"] for entry in runs[1:]],
                "num_kv_tokens": num_kv_tokens,
                "peak_bytes": peaks,
            }
        )
    )


def run(engine: NativeEngine, number: int, requests: list[dict[str, Any]]) -> dict[str, Any]:
    asked = [
        EngineRequest(
            id=f"{number}-{index}",
            prompt_token_ids=request["prompt_token_ids"],
            params=GenerationParams(max_tokens=request["max_tokens"], temperature=0.0, ignore_eos=True),
            seed=0,
        )
        for index, request in enumerate(requests)
    ]
    steps_before = engine.health().num_steps
    began = time.perf_counter()
    for request in asked:
        engine.submit(request)
    outcomes: list[Outcome] = []
    while len(outcomes) < len(asked):
        taken = engine.take_outcomes(len(asked), MAX_SECONDS)
        assert taken, f"no outcome within {MAX_SECONDS:g} s"
        outcomes += taken
    seconds = time.perf_counter() - began
    for outcome in outcomes:
        assert outcome.status is OutcomeStatus.FINISHED, f"a request {outcome.status}: {outcome.error_message}"
    num_asked = sum(request.params.max_tokens for request in asked)
    assert sum(outcome.num_completion_tokens for outcome in outcomes) == num_asked, "an answer has another length"
    return {
        "seconds": seconds,
        "num_steps": engine.health().num_steps - steps_before,
        "num_computed_prompt_tokens": sum(
            outcome.num_prompt_tokens - outcome.num_cached_tokens for outcome in outcomes
        ),
    }


if __name__ == "__main__":
    main()
