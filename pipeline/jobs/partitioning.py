"""Makes the partitions of the months to come; see `pipeline/tables/partitions.py`.

Control does it every night for some months ahead. A month whose partitions are missing all the same has them made
before anything is planned in it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, text

from pipeline.tables.session import connection

#: Beside the one that runs.
MONTHS_AHEAD: Final = 3

_LACKING: Final = text("""
    SELECT n FROM generate_series(0, :ahead) n
    WHERE to_regclass('partitions.rated_lines_' || to_char(now() AT TIME ZONE 'UTC' + make_interval(months => n),
                                                           'YYYY_MM')) IS NULL
""")
_MAKE: Final = text("SELECT make_request_partitions(request_month(now()) + :n)")


def make_partitions(engine: Engine | None = None, *, months_ahead: int = MONTHS_AHEAD) -> int:
    """Make the partitions that this month and the next ones lack; returns of how many months. Nobody waits for it."""
    with connection(engine) as conn:
        lacking = list(conn.scalars(_LACKING, {"ahead": months_ahead}))
    num_made = 0
    for number in lacking:
        with connection(engine) as conn:
            num_made += bool(conn.scalar(_MAKE, {"n": number}))
    return num_made
