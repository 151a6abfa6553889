"""Layers that are repeated call by call, beside layers that Python runs each time: the same bits after all."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import random_llama
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.cpu import repetition
from models.kernels.cpu.kernels import CpuKernels
from models.kernels.cpu.library import library
from models.kernels.interface import Layers
from models.layers.attention import Attention, KVCache, StepMetadata
from workers.engine.messages import Step
from workers.engine.model_runner import ModelRunner

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels were not built: there was no C++ compiler")

CPU = torch.device("cpu")
BLOCK_SIZE = 4
#: Of each of the sequences.
BLOCKS = 8


class RunEachTime(CpuKernels):
    def run_layers(
        self, layers: Layers, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention
    ) -> tuple[Tensor, Tensor]:
        return layers(residual, rotation, attention)


def make_runner(folder: Path, kernels: type[CpuKernels], dtype: str, *, is_quantised: bool) -> ModelRunner:
    native = library()
    assert native is not None
    config = ModelConfig.from_pretrained(folder)
    decoder = load_decoder(folder, config, dtype=dtype, kernels=kernels(native, is_quantised=is_quantised))
    return ModelRunner(decoder, make_cache(config, dtype), CPU)


def make_cache(config: ModelConfig, dtype: str) -> KVCache:
    return KVCache(
        num_layers=config.num_layers,
        num_blocks=16 * BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=getattr(torch, dtype),
        device=CPU,
    )


class Batch:
    """Sequences of random tokens, of which some take part in a step."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = torch.Generator().manual_seed(seed)
        self._lengths = [0] * 16

    def step(self, sequences: range, num_tokens: int = 1) -> Step:
        """So many tokens more of each of these."""
        for sequence in sequences:
            self._lengths[sequence] += num_tokens
        return Step(
            token_ids=torch.randint(3, 250, (len(sequences) * num_tokens,), generator=self._rng).tolist(),
            query_lengths=[num_tokens] * len(sequences),
            context_lengths=[self._lengths[sequence] for sequence in sequences],
            prompt_lengths=[2] * len(sequences),
            block_tables=[list(range(sequence * BLOCKS, (sequence + 1) * BLOCKS)) for sequence in sequences],
            samples=[True] * len(sequences),
        )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each run of a decoder's layers in Python."""
    runs: list[int] = []
    run_layers = Decoder._run_layers

    def run(self: Decoder, residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        runs.append(len(residual))
        return run_layers(self, residual, *arguments)

    monkeypatch.setattr(Decoder, "_run_layers", run)
    return runs


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 5},
    ],
    ids=["llama", "norms-of-heads", "biases", "window"],
)
@pytest.mark.parametrize("is_quantised", [False, True])
def test_repeated_layers_give_the_same_bits(
    tmp_path: Path, runs: list[int], config: dict[str, Any], is_quantised: bool
) -> None:
    folder = random_llama(tmp_path, dtype="bfloat16", **config)
    ours = make_runner(folder, CpuKernels, "bfloat16", is_quantised=is_quantised)
    theirs = make_runner(folder, RunEachTime, "bfloat16", is_quantised=is_quantised)
    batch = Batch()
    #: Some decode, in numbers that change; prompts come in between, whose rows need larger buffers than any before.
    steps = [(range(3), 2), *[(range(3), 1)] * 3, (range(1, 3), 1), *[(range(3), 1)] * 2, (range(3, 9), 4)]
    steps += [(range(9), 1), (range(9), 1), (range(3), 1), (range(3), 1)]
    num_ours = 0
    for sequences, num_tokens in steps:
        step = batch.step(sequences, num_tokens)
        expected = theirs.run(step).logits.clone()
        before = len(runs)
        assert torch.equal(ours.run(step).logits, expected)
        num_ours += len(runs) - before
    # Two prompts; 3 and 2 rows; 9 and 3 rows when buffers had moved, and 9 again, since its first logits moved theirs.
    assert num_ours == 2 + 2 + 3


def test_another_cache_and_another_decoder_are_run_anew(tmp_path: Path, runs: list[int]) -> None:
    folder = random_llama(tmp_path, dtype="bfloat16")
    runner = make_runner(folder, CpuKernels, "bfloat16", is_quantised=False)
    decoder = runner._decoder
    other = load_decoder(
        random_llama(tmp_path / "other", seed=1), decoder.config, dtype="bfloat16", kernels=decoder.kernels
    )
    caches = [make_cache(decoder.config, "bfloat16") for _ in range(2)]
    for _ in range(2):
        # Each differs from the one before in one of the two alone.
        results = [
            ModelRunner(one, caches[cache], CPU).run(Batch().step(range(2))).logits.clone()
            for one, cache in ((decoder, 0), (decoder, 1), (other, 1), (other, 0))
        ]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[2], results[3])
        assert not torch.equal(results[0], results[2])
    assert len(runs) == 8
    assert all(keys.any() for cache in caches for keys in cache.keys), "each wrote into its own"


def test_calls_of_few_numbers_of_rows_are_kept(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repetition, "_MAX_KEPT", 2)
    runner = make_runner(random_llama(tmp_path, dtype="bfloat16"), CpuKernels, "bfloat16", is_quantised=False)
    batch = Batch()
    runner.run(batch.step(range(4)))  # its buffers move once more while it runs
    for num in (4, 3, 4, 2, 4, 3):
        runner.run(batch.step(range(num)))
    assert runs == [4, 4, 3, 2, 3]


class OnlyViews(TorchDispatchMode):
    """Fails where torch computes or copies: whoever makes calls again would not do that again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert func.is_view or name in ("_unsafe_view", "_reshape_alias", "empty"), f"torch's {name} between the calls"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_quantised", [False, True])
def test_nothing_but_native_calls_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quantised: bool) -> None:
    folder = random_llama(tmp_path, dtype="bfloat16", attention_bias=True)
    runner = make_runner(folder, CpuKernels, "bfloat16", is_quantised=is_quantised)
    batch = Batch()
    runner.run(batch.step(range(3)))  # takes the buffers
    run_layers = Decoder._run_layers
    runs: list[int] = []

    def run(self: Decoder, *arguments: Any) -> tuple[Tensor, Tensor]:
        runs.append(1)
        with OnlyViews():
            return run_layers(self, *arguments)

    monkeypatch.setattr(Decoder, "_run_layers", run)
    runner.run(batch.step(range(3)))
    assert runs


def test_decoder_and_cache_are_freed_with_their_runner(tmp_path: Path) -> None:
    runner = make_runner(random_llama(tmp_path, dtype="bfloat16"), CpuKernels, "bfloat16", is_quantised=False)
    batch = Batch()
    for _ in range(3):
        runner.run(batch.step(range(2)))
    left = weakref.ref(runner._decoder), weakref.ref(runner._cache)
    gc.collect()
    gc.disable()
    try:
        del runner
        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()


def test_a_decoder_may_be_called_in_and_outside_of_inference_mode(tmp_path: Path) -> None:
    runner = make_runner(random_llama(tmp_path, dtype="bfloat16"), CpuKernels, "bfloat16", is_quantised=False)
    runner.run(Batch().step(range(2)))
    decoder, cache = runner._decoder, runner._cache
    step = StepMetadata.of([1, 1], [2, 2], [[0], [1]], block_size=BLOCK_SIZE, device=CPU)
    with torch.no_grad():
        hidden = decoder(torch.tensor([3, 4]), torch.tensor([1, 1]), decoder.kernels.attention(cache, step))
    assert hidden.isfinite().all()


def test_float32_is_multiplied_by_torch_and_run_each_time(tmp_path: Path, runs: list[int]) -> None:
    runner = make_runner(random_llama(tmp_path), CpuKernels, "float32", is_quantised=False)
    batch = Batch()
    for _ in range(3):
        runner.run(batch.step(range(2)))
    assert len(runs) == 3
