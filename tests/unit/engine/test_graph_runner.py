"""Recorded steps without a GPU: what is recorded is computed anew each time, from the same memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cores import Model, answer, make_request, run_all
from model_folders import random_llama

pytest.importorskip("triton", reason="Triton is not installed: there is none for this system")

from models.config import ModelConfig
from models.kernels.gpu.kernels import TritonKernels
from models.layers.attention import KVCache
from models.rope import Rope, RopeType
from workers.engine.block_manager import BlockManager
from workers.engine.decode_inputs import DecodeInputs
from workers.engine.engine import EngineCore
from workers.engine.graph_runner import Decoded, GraphRunner, can_record, padded_sizes
from workers.engine.messages import Step
from workers.engine.model_runner import Computed
from workers.engine.scheduler import Scheduler

CPU = torch.device("cpu")


class Repeater:
    """A recorder that computes again what it was given, into the memory that it first came in, and counts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.replayed: list[int] = []

    def record(self, work: Callable[[], Decoded]) -> Callable[[], Decoded]:
        first = work()
        size = len(first[1])
        self.sizes.append(size)

        def replay() -> Decoded:
            self.replayed.append(size)
            for kept, computed in zip(first, work(), strict=True):
                kept.copy_(computed)
            return first

        return replay


def make_graph_core(
    model: Model, max_num_sequences: int, num_blocks: int = 64, eos_token_ids: Collection[int] = ()
) -> tuple[EngineCore, KVCache, Repeater]:
    config = model.decoder.config
    model.decoder.requires_grad_(False).use(TritonKernels())
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=4,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    for cached in (*cache.keys, *cache.values):
        cached.fill_(float("nan"))  # padding must neither read nor write
    recorder = Repeater()
    runner = GraphRunner(model.decoder, cache, CPU, max_num_sequences=max_num_sequences, recorder=recorder)
    assert all(cached.isnan().all() for cached in (*cache.keys, *cache.values)), "recording wrote into the cache"
    core = EngineCore(
        run_model=runner.run,
        scheduler=Scheduler(BlockManager(num_blocks, 4), max_num_sequences=max_num_sequences, step_tokens=24),
        tokenizer=model.tokenizer,
        eos_token_ids=eos_token_ids,
        with_draws=True,
    )
    return core, cache, recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), context_length=48)


def test_answers_are_those_of_steps_that_are_not_recorded(folder: Path) -> None:
    """Drawn, greedy and neither of both alone, chunks beside decoding, and sequences that end one by one."""
    asked: list[dict[str, Any]] = [
        {"max_tokens": 3, "frequency_penalty": 1.5},
        {"max_tokens": 4, "temperature": 0.8, "logprobs": 2, "seed": 5},
        {"max_tokens": 5, "top_p": 0.4},
        {"max_tokens": 10, "temperature": 0.0},
        {"max_tokens": 11, "seed": 7},
    ]
    requests = [make_request(str(i), range(i, 3 + 5 * i), **params) for i, params in enumerate(asked)]
    expected = answer(Model.load(folder), *requests)
    core, _, recorder = make_graph_core(Model.load(folder), max_num_sequences=5)
    for request in requests:
        core.submit(request)
    answers = run_all(core)
    assert recorder.sizes == [5, 4, 2, 1]
    assert {1, 2, 4} <= set(recorder.replayed)
    for request in requests:
        ours, theirs = answers[request.id].choices[0], expected[request.id].choices[0]
        assert ours.token_ids == theirs.token_ids
        assert len(ours.token_ids) == request.params.max_tokens
        assert (ours.logprobs is None) == (request.params.logprobs is None)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_step_is_started_before_anybody_looked_at_the_one_before(folder: Path, temperature: float) -> None:
    core, _, _ = make_graph_core(Model.load(folder), max_num_sequences=2)
    run_model = core._run_model
    events: list[str] = []

    def run(step: Step) -> Computed:
        events.append(f"run {step.context_lengths}" + (" ahead" if min(step.token_ids) < 0 else ""))
        computed = run_model(step)
        return replace(computed, token_ids=lambda: events.append("look") or computed.token_ids())

    core._run_model = run
    core.submit(make_request("a", range(6), max_tokens=4, temperature=temperature))
    core.submit(make_request("b", range(7, 10), max_tokens=3, temperature=temperature, seed=3))
    run_all(core)
    assert events == [
        *("run [6, 3]", "look"),
        *("run [7, 4]", "run [8, 5] ahead", "look"),
        *("run [9] ahead", "look", "look"),
    ]


def test_what_ends_while_the_next_step_runs_is_left_out_of_it(folder: Path) -> None:
    """By a token that nobody could know, by an abort, and by neither."""
    requests = [
        make_request(str(i), range(i, i + 3), max_tokens=6, temperature=0.0, ignore_eos=False) for i in range(4)
    ]
    unending = {i: outcome.choices[0].token_ids for i, outcome in answer(Model.load(folder), *requests).items()}
    ending = unending["1"][3]
    expected = {
        i: token_ids[: token_ids.index(ending) + 1 if ending in token_ids else None]
        for i, token_ids in unending.items()
        if i != "2"
    }
    core, _, _ = make_graph_core(Model.load(folder), max_num_sequences=4, eos_token_ids=[ending])
    for request in requests:
        core.submit(request)
    for _ in range(2):
        assert core.run(core.plan()) == []
    assert [outcome.id for outcome in core.abort(["2"])] == ["2"]
    late = make_request("late", range(40, 43), max_tokens=3, temperature=0.0)
    core.submit(late)
    answers = run_all(core)
    assert core.num_steps < 6 + 3, "the late one ran beside the others"
    assert {i: answers[i].choices[0].token_ids for i in expected} == expected
    alone = answer(Model.load(folder), late)
    assert answers["late"].choices[0].token_ids == alone["late"].choices[0].token_ids


def test_a_row_that_is_not_finite_fails_its_own_request_alone(folder: Path) -> None:
    core, cache, _ = make_graph_core(Model.load(folder), max_num_sequences=4)
    requests = [make_request(str(i), range(i, i + 5), max_tokens=6) for i in range(3)]
    for request in requests:
        core.submit(request)
    core.run(core.plan())
    cache.values[0][next(iter(core.scheduler._running)).block_table[0]] = float("nan")
    outcomes = run_all(core)
    assert [outcomes[str(i)].error_code for i in range(3)] == ["invalid_logits", None, None]


def test_inputs_are_padded_and_tables_written_where_they_changed() -> None:
    inputs = DecodeInputs(max_num_sequences=4, max_num_blocks=3, block_size=4, device=CPU)

    def fill(context_lengths: list[int], tables: list[list[int]], size: int) -> None:
        num = len(tables)
        inputs.fill(
            Step(
                token_ids=list(range(10, 10 + num)),
                query_lengths=[1] * num,
                context_lengths=context_lengths,
                prompt_lengths=[1] * num,
                block_tables=tables,
                samples=[True] * num,
            ),
            size,
        )

    tables = [[7], [3, 5], [6]]
    fill([1, 8, 4], tables, 4)
    metadata = inputs.metadata(4)
    assert inputs.token_ids(4).tolist()[:3] == [10, 11, 12]
    assert inputs.positions(4).tolist() == [0, 7, 3, -1]
    assert metadata.slots.tolist() == [28, 23, 27, -1]
    assert metadata.context_lengths.tolist() == [1, 8, 4, 0]
    assert metadata.query_starts.tolist() == [0, 1, 2, 3, 4]
    tables[1].append(2)  # the scheduler's own list, which grows
    fill([9, 5], [tables[1], tables[2] + [1]], 2)
    assert inputs.metadata(2).slots.tolist() == [8, 4]
    assert inputs.metadata(2).block_tables[0].tolist() == [3, 5, 2]
    assert inputs.metadata(2).block_tables[1, :2].tolist() == [6, 1]
    fill([2], [[7]], 2)
    assert inputs.metadata(2).slots.tolist() == [29, -1]


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20]), (24, [1, 2, 4, 8, 16, 24])],
)
def test_steps_are_recorded_for_a_few_sizes_up_to_the_limit(limit: int, sizes: list[int]) -> None:
    assert padded_sizes(limit) == sizes


def test_a_dynamic_rope_is_not_recorded(folder: Path) -> None:
    config = ModelConfig.from_pretrained(folder)
    assert can_record(config)
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    assert not can_record(ModelConfig(**{**fields, "rope": Rope(type=RopeType.DYNAMIC, factor=2.0)}))
