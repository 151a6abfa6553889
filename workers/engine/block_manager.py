"""Who holds which block of the KV cache, and which blocks hold a prefix that is worth finding again."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from workers.engine.sequence import Sequence

#: What a full block holds: the content before it (the salt for the first block), and its own tokens.
ContentKey = tuple[int | str, tuple[int, ...]]

#: While memory is fresh, what is cached is given up for as long as there is this part of what is referenced.
_KEPT_SHARE: Final = 1 / 8


@dataclass(slots=True)
class Block:
    """A fixed number of consecutive tokens' keys and values."""

    index: int
    num_references: int = 0
    #: Set while a prefix may find this block.
    key: ContentKey | None = None
    #: The number of its content while it has a key; else 0.
    content_id: int = 0


class BlockManager:
    """Hands out blocks of the KV cache, counts their references, and finds prefixes in them.

    A full block is found again by its content key: the content number of the block before it, and its tokens. The
    number stands for the whole chain back to the salt, so that equal keys mean equal prefixes; the dictionary that
    hashes a key also compares it, so that a collision of hashes is harmless. A content number is never used twice.

        every block is either   referenced    (in the block table of one sequence or more)
                        or      unreferenced  (free to be taken, least recently used first)
        and, in both, it may be  cached       (`key` is set: a prefix finds it)

    Blocks that were never used are taken in their order, and before those that are cached; but where their memory has
    yet to be got from the system, which may take longer than computing anew what they would save, only once little is
    left that is cached and unreferenced.
    """

    def __init__(self, num_blocks: int, block_size: int, num_populated: Callable[[], int] | None = None) -> None:
        """`num_populated` tells how many of the first blocks have their memory; without it all of them do."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"A cache of {num_blocks} blocks of {block_size} tokens holds nothing; both must be >= 1.")
        self.block_size = block_size
        self._blocks = [Block(index) for index in range(num_blocks)]
        self._num_populated = num_populated or (lambda: num_blocks)
        #: Never taken so far.
        self._unused = deque(range(num_blocks))
        #: Of the others, least recently used first; what is not cached comes before it all.
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        #: Content key to (its block, its content number).
        self._cached: dict[ContentKey, tuple[int, int]] = {}
        self._last_content_id = 0

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_tokens(self) -> int:
        """Tokens that all blocks together hold."""
        return len(self._blocks) * self.block_size

    @property
    def num_referenced_blocks(self) -> int:
        return len(self._blocks) - self.num_unreferenced_blocks

    @property
    def num_unreferenced_blocks(self) -> int:
        return len(self._unused) + len(self._unreferenced)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # --- a sequence and its prefix

    def find_prefix(self, sequence: Sequence) -> list[tuple[int, int]]:
        """The longest cached prefix as (block, content number) pairs.

        It never covers the last token: that one is always computed, since its logits are wanted. A sequence that
        asks at every step until it is admitted has its tokens hashed once: what it found last is there as long as
        the blocks hold the same contents, and the search goes on from there.
        """
        found, blocks = sequence.found_prefix, self._blocks
        for position, (block, content_id) in enumerate(found):
            if blocks[block].content_id != content_id:
                del found[position:]
                break
        parent: int | str = found[-1][1] if found else sequence.cache_salt
        size = self.block_size
        for start in range(len(found) * size, (sequence.num_tokens - 1) // size * size, size):
            hit = self._cached.get((parent, tuple(sequence.token_ids[start : start + size])))
            if hit is None:
                break
            found.append(hit)
            parent = hit[1]
        return found

    def can_admit(self, sequence: Sequence, prefix: list[tuple[int, int]], num_reserved_blocks: int) -> bool:
        """Whether all tokens of a sequence without blocks fit, sharing `prefix`, and leave the reserve untouched."""
        num_left = self.num_unreferenced_blocks - num_reserved_blocks
        num_needed = self.num_blocks_for(sequence.num_tokens)
        if num_needed - len(prefix) > num_left:
            return False
        return num_needed - sum(self._blocks[block].num_references > 0 for block, _ in prefix) <= num_left

    def admit(self, sequence: Sequence, prefix: list[tuple[int, int]]) -> None:
        """Let a sequence without blocks start after `prefix`, which counts as computed."""
        assert not sequence.block_table
        for block, content_id in prefix:
            self._reference(block)
            sequence.block_table.append(block)
            sequence.content_ids.append(content_id)
        sequence.num_computed_tokens = len(prefix) * self.block_size
        sequence.found_prefix = []

    # --- growth

    def can_allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether blocks are left to hold the first `num_tokens` of the sequence."""
        num_held = len(sequence.block_table)
        return num_tokens <= num_held * self.block_size or (
            self.num_blocks_for(num_tokens) - num_held <= self.num_unreferenced_blocks
        )

    def reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Add the blocks that the first `num_tokens` need, of which not all need be known."""
        while len(sequence.block_table) * self.block_size < num_tokens:
            sequence.block_table.append(self._take())

    def allocate(self, sequence: Sequence, num_tokens: int) -> None:
        """Add the blocks that the first `num_tokens` need, and cache each that these tokens fill.

        The tokens must be known and be computed in the coming step. Caching them now, before they are, lets sequences
        admitted to the same step share them: every layer writes all of a full block before it reads any of it.
        """
        self.reserve(sequence, num_tokens)
        while (len(sequence.content_ids) + 1) * self.block_size <= num_tokens:
            self._cache(sequence)

    def deallocate(self, sequence: Sequence) -> None:
        """Take all blocks from the sequence; what is cached stays findable until the block is needed."""
        # Tails first, so that they are evicted before the prefixes without which nothing finds them.
        for index in reversed(sequence.block_table):
            self._release(index)
        sequence.block_table.clear()
        sequence.content_ids.clear()
        sequence.num_computed_tokens = 0

    def forget(self, sequence: Sequence) -> None:
        """Let nothing find the blocks of this sequence again: what they hold is not to be trusted."""
        for index in sequence.block_table:
            self._uncache(self._blocks[index])

    # --- blocks

    def _take(self) -> int:
        if self._is_unused_wanted():
            index = self._unused.popleft()
        else:
            index, _ = self._unreferenced.popitem(last=False)
        block = self._blocks[index]
        self._uncache(block)
        block.num_references = 1
        return index

    def _is_unused_wanted(self) -> bool:
        if not self._unused or not self._unreferenced:
            return bool(self._unused)
        if self._blocks[next(iter(self._unreferenced))].key is None:
            return False  # nothing is lost with that one
        if self._unused[0] < self._num_populated():
            return True
        return len(self._unreferenced) < self.num_referenced_blocks * _KEPT_SHARE

    def _reference(self, index: int) -> None:
        block = self._blocks[index]
        if block.num_references == 0:
            del self._unreferenced[index]
        block.num_references += 1

    def _release(self, index: int) -> None:
        block = self._blocks[index]
        block.num_references -= 1
        if block.num_references == 0:
            self._unreferenced[index] = None
            if block.key is None:
                self._unreferenced.move_to_end(index, last=False)

    def _cache(self, sequence: Sequence) -> None:
        """Make the sequence's first full block that is not known yet findable."""
        position = len(sequence.content_ids)
        start = position * self.block_size
        parent = sequence.content_ids[-1] if sequence.content_ids else sequence.cache_salt
        key = (parent, tuple(sequence.token_ids[start : start + self.block_size]))
        hit = self._cached.get(key)
        if hit is None:
            self._last_content_id += 1
            hit = (sequence.block_table[position], self._last_content_id)
            self._cached[key] = hit
            block = self._blocks[hit[0]]
            block.key, block.content_id = key, hit[1]
        # Where another block holds the same, this one stays private, and what follows it continues the other's chain.
        sequence.content_ids.append(hit[1])

    def _uncache(self, block: Block) -> None:
        if block.key is not None:
            del self._cached[block.key]
            block.key, block.content_id = None, 0

    def check_integrity(self, sequences: Collection[Sequence]) -> None:
        """Assert that the books balance, given every sequence that may hold blocks. For tests."""
        references = Counter(index for sequence in sequences for index in sequence.block_table)
        unused = set(self._unused)
        for block in self._blocks:
            assert block.num_references == references[block.index], f"{block}: {references[block.index]} tables hold it"
            is_unreferenced = (block.index in self._unreferenced) + (block.index in unused)
            assert (block.num_references == 0) == is_unreferenced, f"{block} is in the wrong place"
            assert block.key is None or block.index not in unused, f"{block} was never used, and is cached"
            found = (block.index, block.content_id) if block.key is None else self._cached[block.key]
            assert found == (block.index, block.content_id), f"{block}: its key finds another"
            assert (block.key is None) == (block.content_id == 0), f"{block}: half of its content is known"
        assert sum(block.key is not None for block in self._blocks) == len(self._cached), "a key without its block"
        for sequence in sequences:
            assert len(set(sequence.block_table)) == len(sequence.block_table), "a block twice in one table"
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size, "tokens without a block"
            assert sequence.num_computed_tokens <= sequence.num_tokens, "more computed than known"
