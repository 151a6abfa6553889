"""What the demo shows: a live bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

#: Where nobody watches a bar, a line this often, in seconds.
PLAIN_SECONDS = 5.0
#: What a bill's line charges for, with the beginnings of its fields' names.
METERS = (
    ("input", "input_uncached", "input"),
    ("cached input", "input_cached", "cached_input"),
    ("output", "output", "output"),
)


class BatchProgress:
    """Requests done, tokens per second and the time left of one batch."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("validating", total=None, rate="", left="") if bar else None
        self._started: float | None = None
        self._next_line = 0.0

    def update(self, batch: Batch) -> None:
        """Show what a batch has come to."""
        counts, now = batch.request_counts, time.monotonic()
        num_requests, num_done = (counts.total, counts.completed + counts.failed) if counts else (0, 0)
        if self._started is None and batch.status != "validating":
            self._started = now
        seconds = max(now - (self._started or now), 1e-3)
        rate = f"{batch.usage.total_tokens / seconds:,.0f} tokens/s" if batch.usage and num_done else ""
        left = f"{(num_requests - num_done) * seconds / num_done:.0f} s left" if num_done else ""
        if self._bar and self._task is not None:
            self._bar.update(
                self._task,
                description=batch.status,
                total=num_requests or None,
                completed=num_done,
                rate=rate,
                left=left,
            )
        elif now >= self._next_line or batch.status == "completed":
            self._next_line = now + PLAIN_SECONDS
            figures = ", ".join(part for part in (f"{num_done} of {num_requests} requests", rate, left) if part)
            self._console.print(f"{batch.status}: {figures}", highlight=False)


class Display:
    """Prints on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        if not self._console.is_terminal:
            self._console.width = max(self._console.width, 160)

    def heading(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def processes(self, pids: Mapping[str, int]) -> None:
        """Name the processes that run."""
        self.note("Running: " + ", ".join(sorted(pids)))

    def quote(self, quote: Mapping[str, Any]) -> None:
        """What `POST /v1/batches/quote` says."""
        cost, output = quote["cost"], quote["output_tokens"]
        shared, prompt = quote["shared_prompt_tokens"], quote["prompt_tokens"]
        self.note(
            f"{prompt:,} prompt tokens, of which {shared:,} are beginnings that prompts share; "
            f"at most {output['worst_case']:,} output tokens.\n"
            f"At most {cost['worst_case']} {cost['currency']}; the price holds for a day."
        )

    @contextmanager
    def progress(self) -> Iterator[BatchProgress]:
        """A bar on a terminal, and lines elsewhere."""
        if not self._console.is_terminal:
            yield BatchProgress(self._console, None)
            return
        columns = (
            TextColumn("{task.description:12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=self._console) as bar:
            yield BatchProgress(self._console, bar)

    def answers(self, rows: Sequence[tuple[str, str, bool]]) -> None:
        """Sentences beside their answers, and whether they are right."""
        table = Table(title=f"The first {len(rows)} answers", show_lines=True)
        for name in ("sentence", "answer", ""):
            table.add_column(name, overflow="fold")
        for sentence, content, is_right in rows:
            table.add_row(_plain(sentence), _plain(content), "[green]right" if is_right else "[red]wrong")
        self._console.print(table)

    def accuracy(self, accuracy: float, wrong: Sequence[tuple[str, str]]) -> None:
        """The part of the answers that are right, and some that are not."""
        self.heading(f"Accuracy, from the downloaded output file: {accuracy:.2%} of the answers are exactly right")
        for expected, content in wrong[:5]:
            self.note(f"  expected {expected}\n  came     {content}")

    def usage(self, records: Sequence[Mapping[str, Any]]) -> None:
        """What `ryzanstein usage --json` says."""
        table = Table("tenant", "model", title="Usage")
        for name in ("requests", "input tokens", "cached", "output tokens", "engine s"):
            table.add_column(name, justify="right")
        for record in records:
            figures = (record[name] for name in ("input_uncached_tokens", "input_cached_tokens", "output_tokens"))
            table.add_row(
                _plain(record["tenant"]),
                _plain(record["model"]),
                str(record["requests"]),
                *(f"{figure:,}" for figure in figures),
                f"{record['engine_ms'] / 1000:.1f}",
            )
        self._console.print(table)

    def bill(self, bills: Sequence[Mapping[str, Any]]) -> None:
        """What `ryzanstein bill --json` says: amounts are strings and stay as they are."""
        for bill in bills:
            table = Table(title=f"Bill of {bill['tenant']} for {bill['month']}, in {bill['currency']}")
            for name in ("", "tokens", "price of 1,000,000", "discount", "amount"):
                table.add_column(name, justify="right" if name else "left")
            for line in bill["lines"]:
                for what, meter, price in METERS:
                    table.add_row(
                        _plain(f"{line['model']}: {what}"),
                        f"{line[f'{meter}_tokens']:,}",
                        line[f"{price}_price"],
                        line["batch_discount"],
                        line[f"{meter}_amount"],
                    )
            for name in ("exact", "rounding", "total"):
                table.add_row(name, "", "", "", bill[name], style="bold" if name == "total" else None)
            self._console.print(table)


def _plain(text: str) -> Text:
    """Text in which brackets are no markup."""
    return Text(text)
