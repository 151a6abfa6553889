from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from pipeline.billing.merkle import leaf_of, root_of

#: Of the leaves that implementations of RFC 6962 are tried with, the roots over the first 1, 2 and 8.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def by_definition(leaves: Sequence[bytes]) -> bytes:
    """Section 2.1 of the RFC, word by word."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@pytest.mark.parametrize(("count", "root"), ROOTS.items())
def test_roots_are_those_of_the_rfc(count: int, root: str) -> None:
    assert root_of(map(leaf_of, LEAVES[:count])).hex() == root


def test_roots_of_any_number_of_leaves_are_as_defined() -> None:
    for count in range(70):
        leaves = [leaf_of(number.to_bytes(2, "big")) for number in range(count)]
        assert root_of(leaves) == by_definition(leaves), count
