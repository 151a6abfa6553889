"""What the engines are measured with: prompts as random token ids, so that every engine computes exactly the same.

Lengths are fixed by the workload's name; `seed` only draws the tokens. So a warm-up has the shapes of what is
measured, and no prefix in common with it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

#: The workloads' order of arrival and lengths are drawn with it.
_SHAPE_SEED = 0
#: Ids from here to the end of a vocabulary are special tokens, which no prompt holds.
NUM_SPECIAL_TOKENS = 16


@dataclass(frozen=True)
class WorkloadRequest:
    prompt_token_ids: tuple[int, ...]
    #: Exactly so many are generated: the end of a sequence is ignored.
    max_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests that are all there from the beginning, in their order of arrival; greedy."""

    name: str
    #: The model's name in `make_model.SHAPES`.
    model: str
    requests: tuple[WorkloadRequest, ...]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        return sum(request.max_tokens for request in self.requests)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(len(request.prompt_token_ids) + request.max_tokens for request in self.requests)

    @property
    def fewest_prompt_tokens(self) -> int:
        """Prompt tokens that are left to compute if every shared prefix is computed once."""
        return fewest_prompt_tokens([request.prompt_token_ids for request in self.requests])


@dataclass(frozen=True)
class _Kind:
    model: str
    vocab_size: int
    num_requests: int
    #: (least, most), both of them possible.
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    num_families: int = 0
    #: Tokens that all prompts of a family begin with; `prompt_tokens` come after them.
    shared_tokens: int = 0


_KINDS = {
    "W1": _Kind("llama-110m", 32_000, 32, (128, 128), (64, 64)),
    "W2": _Kind("qwen3-0.6b", 151_936, 32, (128, 128), (32, 32)),
    "W3": _Kind("qwen3-0.6b", 151_936, 64, (32, 256), (16, 96)),
    "W4": _Kind("llama-110m", 32_000, 256, (32, 32), (16, 16), num_families=8, shared_tokens=384),
    "W5": _Kind("qwen3-0.6b", 151_936, 1, (128, 128), (64, 64)),
    # The benchmark that nano-vllm publishes; for GPUs.
    "nano": _Kind("qwen3-0.6b", 151_936, 256, (100, 1024), (100, 1024)),
}
NAMES = tuple(_KINDS)


def make_workload(name: str, *, seed: int = 0, repeat: int = 1) -> Workload:
    """The workload of that name, `repeat` times as many requests; `seed` draws its tokens.

    Raises ValueError for a name that is none of NAMES.
    """
    if name not in _KINDS:
        raise ValueError(f"The workload is {name!r}; it must be one of {', '.join(NAMES)}.")
    kind = _KINDS[name]
    shapes = random.Random(_SHAPE_SEED)
    tokens = random.Random(f"{name} {seed}")
    families = [_draw(tokens, kind, kind.shared_tokens) for _ in range(kind.num_families)] or [()]
    requests = []
    for number in range(kind.num_requests * repeat):
        num_prompt_tokens = shapes.randint(*kind.prompt_tokens)
        max_tokens = shapes.randint(*kind.output_tokens)
        prompt = families[number % len(families)] + _draw(tokens, kind, num_prompt_tokens)
        requests.append(WorkloadRequest(prompt, max_tokens))
    if kind.num_families:
        shapes.shuffle(requests)
    return Workload(name=name, model=kind.model, requests=tuple(requests))


def fewest_prompt_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """The number of different prefixes: in their sorted order, what each has not in common with the one before."""
    ordered = sorted(tuple(prompt) for prompt in prompts)
    shared = sum(_num_shared(before, after) for before, after in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _draw(source: random.Random, kind: _Kind, num_tokens: int) -> tuple[int, ...]:
    return tuple(source.randrange(kind.vocab_size - NUM_SPECIAL_TOKENS) for _ in range(num_tokens))
