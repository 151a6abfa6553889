"""Waiting for a batch: a progress bar on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

#: Seconds between two looks: short at first, for small batches, then twice as long each time.
_FIRST_SECONDS = 0.2
_LONGEST_SECONDS = 2.0


def status_of(batch: Batch) -> str:
    """For people: its status, and whether it is paused."""
    return f"{batch.status} (paused)" if getattr(batch, "pause_reason", None) else batch.status


def wait_for_end(client: OpenAI, batch: Batch) -> Batch:
    """The batch as it is when it has ended."""
    pause = _FIRST_SECONDS
    with _progress() as progress:
        progress.show(batch)
        while batch.status not in ENDED:
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_SECONDS)
            batch = client.batches.retrieve(batch.id)
            progress.show(batch)
    return batch


class _Silent:
    def show(self, batch: Batch) -> None:
        """Nobody watches."""


class _Bar(_Silent):
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self.progress.add_task("validating", total=None, rate="")
        self._started = time.monotonic()
        self._num_tokens: int | None = None

    def show(self, batch: Batch) -> None:
        counts, usage = batch.request_counts, batch.usage
        num_tokens = usage.total_tokens if usage else 0
        if self._num_tokens is None:  # what was done before we came says nothing of the speed
            self._num_tokens = num_tokens
        seconds = time.monotonic() - self._started
        rate = (num_tokens - self._num_tokens) / seconds if seconds else 0.0
        self.progress.update(
            self._task,
            description=status_of(batch),
            total=(counts.total or None) if counts else None,
            completed=counts.completed + counts.failed if counts else 0,
            rate=f"{rate:,.0f} tokens/s" if rate else "",
        )


@contextlib.contextmanager
def _progress() -> Iterator[_Silent]:
    if not sys.stderr.isatty():
        yield _Silent()
        return
    bar = _Bar()
    with bar.progress:
        yield bar
