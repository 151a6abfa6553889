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


def proof_of(leaves: Sequence[bytes], index: int) -> list[tuple[bool, bytes]]:
    """What, with one leaf, gives the root: from the bottom, whether each partner stands on the left, and its hash."""
    level, proof = list(leaves), []
    while len(level) > 1:
        partner = index ^ 1
        if partner < len(level):
            proof.append((partner < index, level[partner]))
        level, index = _joined(level), index // 2
    return proof


def root_by_proof(leaf: bytes, proof: Iterable[tuple[bool, bytes]]) -> bytes:
    """The root that a leaf and its proof give; it is in the tree if that is the tree's."""
    node = leaf
    for is_left, partner in proof:
        node = _node(partner, node) if is_left else _node(node, partner)
    return node


def _joined(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return pairs if len(level) % 2 == 0 else [*pairs, level[-1]]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
