"""Memory of a stack's processes over time: it must be flat once everything has been used a few times."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict

import psutil
from stacks import RunningStack

_WARM_UP_SECONDS = 120.0
_LOOK_SECONDS = 5.0
#: Largest growth after the warm-up, as a part of what was used then.
_MAX_GROWTH = 0.05
#: Readings that are compared at either end: their medians, since what one batch needs comes and goes.
_NUM_COMPARED = 12


class MemoryWatch:
    """Private memory of each service, its children included; shared buffers of PostgreSQL are nobody's own."""

    def __init__(self) -> None:
        self._readings: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._stack: RunningStack | None = None
        self._began_at = self._looked_at = 0.0

    def watch(self, stack: RunningStack) -> None:
        self._stack, self._began_at = stack, time.monotonic()
        self._readings.clear()

    def look(self) -> None:
        """Take a reading if the last one is some seconds old."""
        now = time.monotonic()
        if self._stack is None or now < self._looked_at + _LOOK_SECONDS:
            return
        self._looked_at = now
        for name, pid in self._stack.status()["pids"].items():
            children = name not in ("supervisor",) and not name.startswith("group-")
            if (size := _private_mb(pid, with_children=children)) is not None:
                self._readings[name].append((now - self._began_at, size))

    def growth(self) -> dict[str, tuple[float, float]]:
        """MB of each service after the warm-up, and at the end. Empty for a run that was not longer."""
        compared = {}
        for name, readings in self._readings.items():
            sizes = [size for at, size in readings if at >= _WARM_UP_SECONDS]
            if len(sizes) >= 2 * _NUM_COMPARED:
                compared[name] = (_median(sizes[:_NUM_COMPARED]), _median(sizes[-_NUM_COMPARED:]))
        return compared

    def grown(self) -> list[str]:
        """Services that need more than 5% more at the end than after the warm-up."""
        return [name for name, (before, after) in self.growth().items() if after > before * (1 + _MAX_GROWTH)]

    def summary(self) -> str:
        """A table, in MB."""
        growth = self.growth()
        if not growth:
            return f"Memory was not compared: that takes {_WARM_UP_SECONDS + 2 * _NUM_COMPARED * _LOOK_SECONDS:g} s."
        lines = ["| process | MB after 2 minutes | MB at the end | growth |", "| --- | --- | --- | --- |"]
        for name, (before, after) in growth.items():
            lines.append(f"| {name} | {before:.1f} | {after:.1f} | {after / before - 1:+.1%} |")
        return "\n".join(lines)


def _private_mb(pid: int, *, with_children: bool) -> float | None:
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *(process.children(recursive=True) if with_children else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().uss / 1024**2
        return total
    return None


def _median(sizes: list[float]) -> float:
    return sorted(sizes)[len(sizes) // 2]
