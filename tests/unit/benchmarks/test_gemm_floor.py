from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.gemm_times import GRID, GemmTimes, rows_to_measure
from benchmarks.make_model import SHAPES
from benchmarks.steps import Matrix, WorkStep, matrices, num_bytes, num_operations, work_steps
from benchmarks.workloads import Workload, WorkloadRequest, make_workload
from models.config import ModelConfig


def step(num_tokens: int, num_sampled: int = 0) -> WorkStep:
    return WorkStep(num_tokens=num_tokens, num_sampled=num_sampled, num_attended=0, num_context_tokens=0)


def test_the_floor_sums_every_matrix_of_every_step() -> None:
    times = GemmTimes({"only": {"body": {8: 2.0, 32: 5.0}, "head": {1: 0.5}}})
    shapes = [Matrix("body", 1, 1, 3), Matrix("head", 1, 1, 1, is_head=True)]
    assert times.floor(shapes, [step(32), step(8, 1)]) == pytest.approx(3 * 5.0 + 3 * 2.0 + 0.5)


def test_the_best_method_counts_for_each_matrix_and_number_of_rows() -> None:
    times = GemmTimes({"first": {"body": {1: 1.0, 64: 9.0}}, "second": {"body": {1: 2.0, 64: 4.0}}})
    assert times.seconds("body", 1) == 1.0
    assert times.seconds("body", 64) == 4.0


def test_between_measured_rows_the_time_is_interpolated_and_beyond_them_it_grows() -> None:
    times = GemmTimes({"only": {"body": {16: 1.0, 32: 3.0}}})
    assert times.seconds("body", 24) == pytest.approx(2.0)
    assert times.seconds("body", 64) == pytest.approx(6.0)
    assert times.seconds("body", 4) == 1.0
    assert times.seconds("body", 0) == 0.0


def test_fewer_rows_never_take_longer_than_more() -> None:
    times = GemmTimes({"only": {"body": {16: 4.0, 32: 3.0}}})
    assert times.seconds("body", 16) == 3.0


def test_a_method_counts_neither_where_it_was_given_up_nor_next_to_that() -> None:
    times = GemmTimes({"slow": {"body": {1: 1.0, 64: math.inf}}, "other": {"body": {1: 2.0, 64: 90.0}}})
    assert times.seconds("body", 1) == 1.0
    assert times.seconds("body", 64) == 90.0
    assert times.seconds("body", 32) == pytest.approx(2.0 + 88.0 * 31 / 63)
    assert times.seconds("body", 128) == 180.0


def test_few_numbers_of_rows_are_measured_as_they_are_and_many_by_a_grid_around_them() -> None:
    assert rows_to_measure([32, 0, 32, 2047]) == [32, 2047]
    assert rows_to_measure(range(3, 60)) == [row for row in GRID if 2 <= row <= 64]
    assert rows_to_measure([]) == []


def config(name: str, folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(SHAPES[name]))
    return ModelConfig.from_pretrained(folder)


def test_the_steps_of_a_workload_compute_every_token_once() -> None:
    workload = make_workload("W1")
    steps = work_steps(workload, step_tokens=2048)
    # The last token of an answer is never computed.
    assert sum(each.num_tokens for each in steps) == workload.num_tokens - 32
    assert sum(each.num_sampled for each in steps) == workload.num_output_tokens
    assert max(each.num_tokens for each in steps) == 2048


def test_every_token_attends_to_itself_and_to_all_before_it() -> None:
    workload = Workload("own", "llama-110m", (WorkloadRequest((1, 2, 3), 2),))
    steps = work_steps(workload, step_tokens=2)
    assert [each.num_tokens for each in steps] == [2, 1, 1]
    assert [each.num_attended for each in steps] == [1 + 2, 3, 4]
    assert [each.num_context_tokens for each in steps] == [2, 3, 4]


def test_operations_and_bytes_are_those_of_the_shapes(tmp_path: Path) -> None:
    llama = config("llama-110m", tmp_path)
    body = 12 * (4 * 768 * 768 + 3 * 768 * 2048)
    head = 768 * 32_000
    one = WorkStep(num_tokens=10, num_sampled=1, num_attended=55, num_context_tokens=10)
    assert num_operations(llama, [one]) == 2 * (10 * body + head) + 4 * 55 * 768 * 12
    assert num_bytes(llama, [one]) == 2 * (body + head + 2 * 10 * 768 * 12)


def test_the_matrices_of_the_larger_model_are_those_of_qwen3(tmp_path: Path) -> None:
    found = matrices(config("qwen3-0.6b", tmp_path))
    sizes = {matrix.name: (matrix.inputs, matrix.outputs, matrix.count) for matrix in found}
    assert sizes == {
        "qkv": (1024, 4096, 28),
        "output": (2048, 1024, 28),
        "gate_up": (1024, 6144, 28),
        "down": (3072, 1024, 28),
        "head": (1024, 151_936, 1),
    }
