"""Groups as the processes that `ryzanstein worker` runs, with the echo engine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from running_groups import wait_for
from seeds import sql
from sqlalchemy import Engine

from pipeline.jobs import outbox

#: Starts `python -m workers MODEL`; keyword arguments are settings.
Start = Callable[..., subprocess.Popen[str]]


def wait_until_ready(database: Engine) -> None:
    wait_for(lambda: sql(database, "SELECT 1 FROM groups WHERE state = 'ready'"), timeout=60)


def health_port(database: Engine) -> int:
    """Of the only group, once it is ready: where it answers probes and Prometheus."""
    wait_until_ready(database)
    ((port,),) = sql(database, "SELECT (info->>'health_port')::int FROM groups")
    return int(port)


def ring(database: Engine, num_tickets: int = 1) -> None:
    """Publish tickets."""
    with database.begin() as conn:
        outbox.add_tickets(conn, "tiny", num_tickets)
    outbox.publish(database)


def num_results(database: Engine) -> int:
    return int(sql(database, "SELECT count(*) FROM results")[0][0])
