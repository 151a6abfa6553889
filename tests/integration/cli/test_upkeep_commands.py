"""`ryzanstein usage rebuild-rollups`, against a real database."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from recorded_usage import make_batch, make_key, use
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.tables.session import transaction

DURING = datetime(2026, 11, 15, tzinfo=UTC)


def test_roll_ups_are_rebuilt_by_one_command(database: Engine) -> None:
    with transaction() as session:
        for tenant in ("acme", "globex"):
            use(session, make_batch(session, make_key(session, tenant)), "tiny", (10, 0, 1), at=DURING, card=None)

    def rebuild(*options: str) -> str:
        result = CliRunner().invoke(app, ["usage", "rebuild-rollups", *options])
        assert result.exit_code == 0, result.exception
        return result.stdout

    assert json.loads(rebuild("--tenant", "acme", "--json")) == {"months": 1, "corrected": 4}
    assert "4 roll-ups were wrong, and are right now, of 2 months" in rebuild()
    assert "were right" in rebuild()
