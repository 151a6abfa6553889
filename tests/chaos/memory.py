"""Memory of a stack's processes over time: it must be flat once everything has been used a few times."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from pathlib import Path

import psutil
from stacks import RunningStack

_WARM_UP_SECONDS = 120.0
_LOOK_SECONDS = 5.0
#: Largest growth after the warm-up, as a part of what was used then.
_MAX_GROWTH = 0.05
#: Readings that are compared at either end: their medians, since what one batch needs comes and goes.
_NUM_COMPARED = 12


#: Columns of the table.
_COLUMN_SECONDS = 120.0


class MemoryWatch:
    """Anonymous memory of each service, its children included; the buffers that PostgreSQL shares are not in it."""

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
            children = name != "supervisor" and not name.startswith("group-")  # whose children have their own names
            if size := _anonymous_mb(pid, with_children=children):
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
        """A table, in MB; growth is from the first minute after the warm-up to the last one."""
        growth = self.growth()
        if not growth:
            return f"Memory was not compared: that takes {_WARM_UP_SECONDS + 2 * _NUM_COMPARED * _LOOK_SECONDS:g} s."
        end = max(readings[-1][0] for readings in self._readings.values())
        moments = [_WARM_UP_SECONDS + _COLUMN_SECONDS * index for index in range(int(end / _COLUMN_SECONDS))]
        lines = [
            f"| process | {' | '.join(f'{moment / 60:g} min' for moment in moments)} | growth |",
            "| --- " * (len(moments) + 2) + "|",
        ]
        for name, (before, after) in growth.items():
            sizes = " | ".join(f"{self._at(name, moment):.1f}" for moment in moments)
            lines.append(f"| {name} | {sizes} | {after / before - 1:+.1%} |")
        return "\n".join(lines)

    def _at(self, name: str, moment: float) -> float:
        """The reading nearest to this moment."""
        return min(self._readings[name], key=lambda reading: abs(reading[0] - moment))[1]


def _anonymous_mb(pid: int, *, with_children: bool) -> float:
    """0 for a process that is gone."""
    pids = [pid]
    if with_children:
        with contextlib.suppress(psutil.NoSuchProcess):
            pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    total_kb = 0
    for one in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total_kb += int(line.split()[1])
    return total_kb / 1024


def _median(sizes: list[float]) -> float:
    return sorted(sizes)[len(sizes) // 2]
