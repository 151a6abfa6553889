from __future__ import annotations

from benchmarks.report import engine_table


def test_a_result_is_a_row_with_medians_and_what_was_not_measured_is_empty() -> None:
    result = {
        "workload": "W1",
        "num_prompt_tokens": 4096,
        "num_output_tokens": 2048,
        "settings": {"peer": "vllm-cpu", "quantize": "int8", "dtype": "bfloat16", "tp": 2, "threads": 2},
        "own": [2.0, 1.0, 9.0],
        "peer": [3.0],
        "ratio": 1.5,
        "share_of_ceiling": None,
    }
    row = engine_table([result]).splitlines()[-1]
    assert row == "| W1 | int8, tp 2, 2 threads | 2.00 | 3,072 | vllm-cpu | 3.00 | 2,048 | 1.50 |  |"
