"""The boards that Grafana shows, written here and kept as the files that it reads.

`python -m deploy.grafana.boards` writes these files anew; a test holds them to what is said here.
"""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.edge import EDGE
from deploy.grafana.boards.money import MONEY
from deploy.grafana.boards.operators import OPERATORS
from deploy.grafana.boards.panels import Board
from deploy.grafana.boards.queue_and_sql import QUEUE_AND_SQL
from deploy.grafana.boards.service_levels import SERVICE_LEVELS
from deploy.grafana.boards.tenants import TENANTS

BOARDS: Final[tuple[Board, ...]] = (OPERATORS, SERVICE_LEVELS, TENANTS, MONEY, QUEUE_AND_SQL, EDGE)
