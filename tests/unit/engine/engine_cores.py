"""Engines of one process over a small random model, and what they answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.interface import PLAIN
from models.layers.attention import KVCache
from pipeline.schemas.generation import GenerationParams
from pipeline.tokenization import Tokenizer
from workers.backends.protocol import EngineRequest, Outcome
from workers.engine.block_manager import BlockManager
from workers.engine.engine import EngineCore
from workers.engine.messages import Step
from workers.engine.model_runner import Computed, ModelRunner
from workers.engine.scheduler import Scheduler


@dataclass(frozen=True)
class Model:
    decoder: Decoder
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> Model:
        return cls(load_decoder(folder, ModelConfig.from_pretrained(folder)), Tokenizer.load(folder))


class SpyRunner(ModelRunner):
    """Keeps every step that it ran; `poison` may change the logits of one."""

    def __init__(self, model: Model, num_blocks: int, block_size: int) -> None:
        config = model.decoder.config
        cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=next(model.decoder.parameters()).dtype,
            device="cpu",
        )
        super().__init__(model.decoder, cache, next(model.decoder.parameters()).device)
        self.steps: list[Step] = []
        self.poison: dict[int, int] = {}

    def run(self, step: Step) -> Computed:
        logits = super().run(step).logits.clone()
        if (row := self.poison.get(len(self.steps))) is not None:
            logits[row, 3] = float("nan")
        self.steps.append(step)
        return Computed(logits, lambda: PLAIN.greatest(logits))


def make_core(
    model: Model,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_sequences: int = 16,
    step_tokens: int = 256,
) -> tuple[EngineCore, SpyRunner]:
    runner = SpyRunner(model, num_blocks, block_size)
    core = EngineCore(
        run_model=runner.run,
        scheduler=Scheduler(
            BlockManager(num_blocks, block_size), max_num_sequences=max_num_sequences, step_tokens=step_tokens
        ),
        tokenizer=model.tokenizer,
        eos_token_ids={*model.decoder.config.eos_token_ids, *model.tokenizer.eos_token_ids},
        prefix_salt=model.decoder.config.prefix_salt,
    )
    return core, runner


def make_request(request_id: str, prompt: Iterable[int], seed: int = 0, salt: str = "", **params: Any) -> EngineRequest:
    params = {"max_tokens": 12, "ignore_eos": True, **params}
    return EngineRequest(
        id=request_id,
        prompt_token_ids=list(prompt),
        params=GenerationParams(**params),
        seed=seed,
        cache_salt=salt,
    )


def run_all(core: EngineCore) -> dict[str, Outcome]:
    """Step until nothing is left; the books must balance after every step."""
    outcomes: dict[str, Outcome] = {}
    while not core.is_idle:
        for outcome in core.run(core.plan()):
            assert outcome.id not in outcomes
            outcomes[outcome.id] = outcome
        core.scheduler.check_integrity()
    assert core.scheduler.num_tokens_used == 0
    return outcomes


def answer(model: Model, *requests: EngineRequest, **options: Any) -> dict[str, Outcome]:
    """What a fresh engine answers to these requests, submitted at once."""
    core, _ = make_core(model, **options)
    for request in requests:
        core.submit(request)
    return run_all(core)
