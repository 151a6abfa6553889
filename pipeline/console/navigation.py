"""Where the console leads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

#: Where who has signed in arrives.
HOME: Final = "/console/batches"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the menu."""

    title: str
    path: str
    #: Only keys that have it see the entry; None: all do.
    scope: Scope | None = None
    is_current: bool = False


ENTRIES: Final = (
    Entry(title="Batches", path=HOME, scope=Scope.BATCHES_READ),
    Entry(title="Upload", path="/console/upload", scope=Scope.FILES_WRITE),
    Entry(title="Usage", path="/console/usage", scope=Scope.USAGE_READ),
    Entry(title="Costs", path="/console/costs", scope=Scope.USAGE_READ),
    Entry(title="Budgets", path="/console/budgets", scope=Scope.USAGE_READ),
    Entry(title="Keys", path="/console/keys", scope=Scope.KEYS_READ),
    Entry(title="Groups", path="/console/groups"),
    Entry(title="Queue", path="/console/queue"),
)


def entries_for(viewer: Viewer, path: str) -> list[Entry]:
    """What this viewer may open; the one that `path` is part of is the current one."""
    return [
        Entry(title=entry.title, path=entry.path, is_current=path == entry.path or path.startswith(f"{entry.path}/"))
        for entry in ENTRIES
        if entry.scope is None or viewer.principal.may(entry.scope)
    ]
