"""The Merkle tree of receipts, hashed as RFC 6962 has it: one root stands for all of them, in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

#: In front of what is hashed, so that no leaf can pass for a node.
_LEAF = b"\x00"
_NODE = b"\x01"


def leaf_of(data: bytes) -> bytes:
    """The hash of one leaf, 32 bytes."""
    return hashlib.sha256(_LEAF + data).digest()


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over hashes of leaves; of none, the hash of nothing.

    A left subtree is the largest full one that leaves something for the right, so levels can be joined pair by pair,
    and a last one without a partner goes up as it is.
    """
    level = list(leaves)
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        level = _joined(level)
    return level[0]


def _joined(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return pairs if len(level) % 2 == 0 else [*pairs, level[-1]]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
