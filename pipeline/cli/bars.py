"""Live bars of batches, which fit the terminal however narrow it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.cli.watching import Watched, details_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Narrowest terminals in columns that have room for whole ids, for speed and time left, and for a bar with counts.
_WIDE: Final = 110
_MEDIUM: Final = 80
_NARROW: Final = 60
#: Of an id, the part that is shown where there is little room: enough to tell batches apart.
_ID_CHARACTERS: Final = 14
_STYLES: Final = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}


class Bars:
    """A display of `pipeline.cli.watching`, on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(stderr=True), auto_refresh=False)
        self._live.start()

    def show(self, watched: Sequence[Watched]) -> None:
        self._live.update(bars(watched, self._live.console.width), refresh=True)

    def close(self) -> None:
        self._live.stop()


def bars(watched: Sequence[Watched], width: int) -> RenderableType:
    """A row for each batch, and below it why it waits."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", min_width=min(_ID_CHARACTERS, width // 3))
    table.add_column(no_wrap=True, min_width=9)
    if width >= _NARROW:
        table.add_column(ratio=1, min_width=8)
    table.add_column(no_wrap=True, justify="right")
    if width >= _MEDIUM:
        table.add_column(no_wrap=True, justify="right", overflow="ellipsis")
    for one in watched:
        table.add_row(*_cells(one, width))
    lines = Table.grid(expand=True)
    lines.add_row(table)
    for one in watched:
        if one.why:
            lines.add_row(Text(f"{_name(one, width)}: {one.why}", style="dim", overflow="fold"))
    return lines


def _cells(one: Watched, width: int) -> Iterator[RenderableType]:
    total, done = one.num_requests, one.num_done
    yield Text(_name(one, width))
    yield Text(status_of(one.batch), style=_STYLES.get(one.batch.status, ""))
    percent = f"{done * 100 // total}%" if total else ""
    if width < _NARROW:
        yield Text(percent)
        return
    yield ProgressBar(total=total or None, completed=done, pulse=not total and not one.has_ended)
    yield Text(f"{done}/{total}" if total else "")
    if width < _MEDIUM:
        return
    left_and_speed = [part for part in details_of(one) if part != one.why.rstrip(".")]
    yield Text(", ".join(left_and_speed))


def _name(one: Watched, width: int) -> str:
    return one.batch.id if width >= _WIDE else one.batch.id[:_ID_CHARACTERS]
