"""One choice of a request on its way through the engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.schemas.generation import GenerationParams


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one choice, and how far the model has come with them.

    `token_ids` is the prompt and what was generated so far. Every step lets `num_computed_tokens`, whose keys and
    values lie in the blocks of `block_table`, catch up with `num_tokens`; where it has caught up, one more token is
    sampled. Identity is by object: two choices of one request differ by `index` alone.

        |<------------------------- token_ids ------------------------->|
        |<-- prompt: num_prompt_tokens -->|<------- generated --------->|
        |<------- computed: in the blocks -------->|<--- to compute --->|
    """

    request_id: str
    index: int
    params: GenerationParams
    seed: int
    cache_salt: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int = 0
    #: Whether it has run at all. One that goes on from an earlier attempt has not, though it has `num_cached_tokens`.
    was_admitted: bool = False
    #: Prompt tokens that the first admission found in the prefix cache; None until then.
    num_cached_tokens: int | None = None
    #: Blocks in the order of the tokens that they hold.
    block_table: list[int] = field(default_factory=list)
    #: For each full block: the number under which its content, and all before it, is known to the block manager.
    content_ids: list[int] = field(default_factory=list)
    #: While it waits: the cached prefix that the block manager found last, as (block, content number) pairs.
    found_prefix: list[tuple[int, int]] = field(default_factory=list)
    #: How often each token was generated; kept only where a penalty needs it.
    generated_counts: Counter[int] = field(default_factory=Counter)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_left(self) -> int:
        """How many more tokens may be generated."""
        return self.params.max_tokens - self.num_generated_tokens

    @property
    def has_penalties(self) -> bool:
        return self.params.presence_penalty != 0 or self.params.frequency_penalty != 0

    def append(self, token_id: int) -> None:
        """Add the token that was sampled after the last one."""
        self.token_ids.append(token_id)
        if self.has_penalties:
            self.generated_counts[token_id] += 1
