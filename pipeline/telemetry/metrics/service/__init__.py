"""How the whole service stands, read from SQL and Redis for control's metrics."""

from __future__ import annotations
