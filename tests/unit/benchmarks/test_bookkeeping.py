from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.bookkeeping import measure
from benchmarks.make_model import SHAPES, write_model
from benchmarks.workloads import Workload, WorkloadRequest


def test_what_is_outside_of_the_model_is_a_share_of_the_whole(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    small = {"vocab_size": 1_000, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    write_model(tmp_path, {**SHAPES["llama-110m"], **small, **heads})
    workload = Workload("tiny", "tiny", (WorkloadRequest((1, 2, 3), 4), WorkloadRequest((4, 5), 2)))
    results = measure(tmp_path, "float32", [workload, workload])
    assert len(results.whole) == len(results.model) == 1
    assert 0 < results.model[0] < results.whole[0]
    assert 0 < results.share < 1
    assert results.num_steps == 4
