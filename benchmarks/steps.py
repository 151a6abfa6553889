"""What a workload asks of a machine: its steps when all requests are there at once, their arithmetic, their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.workloads import Workload
from models.config import ModelConfig
from pipeline.schemas.generation import GenerationParams
from workers.engine.block_manager import BlockManager
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence

#: Bytes of a weight, and of a number in the KV cache.
_BF16_BYTES = 2


@dataclass(frozen=True)
class WorkStep:
    """One step of the engine."""

    num_tokens: int
    num_sampled: int
    #: Summed over its tokens: how many keys each attends to.
    num_attended: int
    #: Summed over its sequences: how many tokens' keys and values are read.
    num_context_tokens: int


@dataclass(frozen=True)
class Matrix:
    """One of a decoder's weights, [outputs, inputs], of which there are `count`."""

    name: str
    inputs: int
    outputs: int
    count: int
    #: Whether only tokens that are sampled pass through it.
    is_head: bool = False

    @property
    def num_weights(self) -> int:
        return self.inputs * self.outputs * self.count

    def num_rows(self, step: WorkStep) -> int:
        return step.num_sampled if self.is_head else step.num_tokens


def work_steps(
    workload: Workload, *, step_tokens: int, max_num_sequences: int = 256, block_size: int = 16
) -> list[WorkStep]:
    """The scheduler's own plans for the workload, with room for everything in the KV cache."""
    num_blocks = sum(-(-(len(r.prompt_token_ids) + r.max_tokens) // block_size) + 1 for r in workload.requests)
    scheduler = Scheduler(
        BlockManager(num_blocks, block_size), max_num_sequences=max_num_sequences, step_tokens=step_tokens
    )
    for sequence in _sequences(workload):
        scheduler.add(sequence)
    steps = []
    while (plan := scheduler.schedule()).scheduled:
        spans = [(entry.sequence.num_computed_tokens, entry.num_tokens) for entry in plan.scheduled]
        steps.append(
            WorkStep(
                num_tokens=plan.num_tokens,
                num_sampled=sum(entry.samples for entry in plan.scheduled),
                num_attended=sum(start * num + num * (num + 1) // 2 for start, num in spans),
                num_context_tokens=sum(start + num for start, num in spans),
            )
        )
        sampling = [entry.sequence for entry in plan.scheduled if entry.samples]
        scheduler.commit(plan)
        for sequence in sampling:
            sequence.append(0)
            if sequence.num_generated_tokens == sequence.params.max_tokens:
                scheduler.remove(sequence)
    return steps


def matrices(config: ModelConfig) -> list[Matrix]:
    """Those that a token is multiplied with."""
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_layers
    return [
        Matrix("qkv", hidden, query + 2 * kv, layers),
        Matrix("output", query, hidden, layers),
        Matrix("gate_up", hidden, 2 * wide, layers),
        Matrix("down", wide, hidden, layers),
        Matrix("head", hidden, config.vocab_size, 1, is_head=True),
    ]


def num_operations(config: ModelConfig, steps: list[WorkStep]) -> int:
    """Floating point operations, a multiplication and an addition counted as two; of matrices and attention."""
    linear = sum(2 * matrix.num_weights * matrix.num_rows(step) for step in steps for matrix in matrices(config))
    attended = sum(step.num_attended for step in steps)
    return linear + 4 * attended * config.num_heads * config.head_dim * config.num_layers


def num_bytes(config: ModelConfig, steps: list[WorkStep]) -> int:
    """Bytes that must be read at least: in bfloat16, every weight once per step, and the KV cache."""
    weights = sum(matrix.num_weights for step in steps for matrix in matrices(config) if matrix.num_rows(step))
    context = sum(step.num_context_tokens for step in steps)
    return _BF16_BYTES * (weights + 2 * context * config.num_kv_heads * config.head_dim * config.num_layers)


def _sequences(workload: Workload) -> Iterator[Sequence]:
    for number, request in enumerate(workload.requests):
        yield Sequence(
            request_id=str(number),
            index=0,
            params=GenerationParams(max_tokens=request.max_tokens, temperature=0.0, ignore_eos=True),
            seed=0,
            cache_salt="",
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
        )
