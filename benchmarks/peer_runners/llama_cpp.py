"""Runs a job (see `benchmarks/runs.py`) with llama.cpp through its C interface: all requests as sequences of one
context, prompts first, then one token of each per step."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

#: Tokens of one call, as in `llama-batched-bench`.
BATCH_TOKENS = 2_048
MICRO_BATCH_TOKENS = 512


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(job["gguf"].encode(), params)
    assert model, "llama.cpp does not load the model"
    context = llama_cpp.llama_context_default_params()
    context.n_ctx = max(sum(map(length, requests)) for requests in job["runs"])
    context.n_batch = BATCH_TOKENS
    context.n_ubatch = MICRO_BATCH_TOKENS
    context.n_seq_max = len(job["runs"][0])
    context.n_threads = context.n_threads_batch = job["num_threads"]
    context.kv_unified = True
    engine = llama_cpp.llama_init_from_model(model, context)
    assert engine, "llama.cpp makes no context"
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    seconds = [run(llama_cpp, engine, vocab_size, requests) for requests in job["runs"]]
    print(json.dumps({"seconds": seconds[1:], "warm_up_seconds": seconds[0]}))


def length(request: dict[str, Any]) -> int:
    return len(request["prompt_token_ids"]) + int(request["max_tokens"])


def run(library: Any, engine: Any, vocab_size: int, requests: list[dict[str, Any]]) -> float:
    library.llama_memory_clear(library.llama_get_memory(engine), True)
    batch = library.llama_batch_init(BATCH_TOKENS, 0, 1)
    began = time.perf_counter()
    answers: list[list[int]] = [[] for _ in requests]
    prompts = [
        (sequence, position, token, position == len(request["prompt_token_ids"]) - 1)
        for sequence, request in enumerate(requests)
        for position, token in enumerate(request["prompt_token_ids"])
    ]
    for start in range(0, len(prompts), BATCH_TOKENS):
        step(library, engine, batch, vocab_size, prompts[start : start + BATCH_TOKENS], answers)
    while True:
        tokens = [
            (sequence, len(request["prompt_token_ids"]) + len(answer) - 1, answer[-1], True)
            for sequence, (request, answer) in enumerate(zip(requests, answers, strict=True))
            if len(answer) < request["max_tokens"]
        ]
        if not tokens:
            break
        step(library, engine, batch, vocab_size, tokens, answers)
    seconds = time.perf_counter() - began
    library.llama_batch_free(batch)
    return seconds


def step(
    library: Any,
    engine: Any,
    batch: Any,
    vocab_size: int,
    tokens: list[tuple[int, int, int, bool]],
    answers: list[list[int]],
) -> None:
    """Computes (sequence, position, token, whether it is sampled) and appends the likeliest next tokens."""
    batch.n_tokens = len(tokens)
    for index, (sequence, position, token, is_sampled) in enumerate(tokens):
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = is_sampled
    status = library.llama_decode(engine, batch)
    assert status == 0, f"llama_decode returned {status}"
    for index, (sequence, _, _, is_sampled) in enumerate(tokens):
        if is_sampled:
            logits = np.ctypeslib.as_array(library.llama_get_logits_ith(engine, index), shape=(vocab_size,))
            answers[sequence].append(int(logits.argmax()))


if __name__ == "__main__":
    main()
