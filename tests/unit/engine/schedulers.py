"""Schedulers without a model, and steps of them."""

from __future__ import annotations

from pipeline.schemas.generation import GenerationParams
from workers.engine.block_manager import BlockManager
from workers.engine.scheduler import Plan, Scheduler
from workers.engine.sequence import Sequence


def make_scheduler(
    num_blocks: int = 64, block_size: int = 4, max_num_sequences: int = 8, step_tokens: int = 16
) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, block_size), max_num_sequences=max_num_sequences, step_tokens=step_tokens)


def make_sequence(num_tokens: int, name: str = "r", first_token: int = 0) -> Sequence:
    return Sequence(
        request_id=name,
        index=0,
        params=GenerationParams(max_tokens=8),
        seed=0,
        cache_salt="",
        token_ids=list(range(first_token, first_token + num_tokens)),
        num_prompt_tokens=num_tokens,
    )


def step(scheduler: Scheduler) -> Plan:
    """Run one step of a model that always says 7."""
    plan = scheduler.schedule()
    sampling = [entry.sequence for entry in plan.scheduled if entry.samples]
    scheduler.commit(plan)
    for sequence in sampling:
        sequence.append(7)
    scheduler.check_integrity()
    return plan


def shape(plan: Plan) -> list[tuple[str, int]]:
    return [(entry.sequence.request_id, entry.num_tokens) for entry in plan.scheduled]
