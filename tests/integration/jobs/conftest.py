from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine
from submitting import Bench

from pipeline.jobs import outbox


@pytest.fixture
def bench(database: Engine, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """What is written to the outbox stays there until the test publishes it."""
    monkeypatch.setattr(outbox, "publish_soon", lambda *_: None)
    return Bench.make(database, tmp_path / "model")
