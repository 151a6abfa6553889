"""Memory for what a step reads whole lies on large pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.kernels.cpu.memory import large_pages

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MIB = 2**20


def bytes_on_large_pages() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages:"))


@pytest.mark.skipif(
    not _SETTING.exists() or "[never]" in _SETTING.read_text(), reason="this system has no transparent large pages"
)
def test_large_pages_are_large() -> None:
    before = bytes_on_large_pages()
    memory = large_pages(9 * _MIB)
    assert (len(memory), memory.data_ptr() % (2 * _MIB), int(memory.count_nonzero())) == (9 * _MIB, 0, 0)
    memory.fill_(1)
    assert bytes_on_large_pages() - before >= 8 * _MIB
