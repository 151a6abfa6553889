from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from submitting import Bench
from webhook_receivers import Receiver, receiver

from pipeline.jobs import outbox
from pipeline.settings import PREFIX, get_settings


@pytest.fixture
def bench(database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path, log_path: Path) -> Bench:
    """A tenant whose webhooks may go to this machine, and who has nothing published by itself."""
    settings_env.setattr(outbox, "publish_soon", lambda *_: None)
    settings_env.setenv(f"{PREFIX}WEBHOOK_HTTP", "true")
    settings_env.setenv(f"{PREFIX}WEBHOOK_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
    settings_env.setenv(f"{PREFIX}SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()
    return Bench.make(database, tmp_path / "model")


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept
