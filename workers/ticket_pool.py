"""The thread pool of a group: one thread per ticket in hand, and no ticket that its group has no room for."""

from __future__ import annotations

from typing import Any

from pipeline.worker_pool import TaskPool
from workers.group import Group


def ticket_pool(group: Group) -> type[TaskPool]:
    """A pool whose size, as Celery sees it, follows the room in the group's engine.

    Without prefetching, a worker takes a message only while it has fewer in hand than its pool has threads. That a
    ticket stays in Redis is what lets another group take it.
    """

    class TicketPool(TaskPool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            group.on_claimed = self.wake

        @property
        def num_processes(self) -> int:
            return group.num_tickets_wanted

    return TicketPool
