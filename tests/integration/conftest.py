"""A real gateway on a free port, and the unmodified client of OpenAI."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from running_gateways import Tenant, new_tenant, postgres_processes, serve
from sqlalchemy import Engine

from pipeline.embedded import EmbeddedPostgres, new_password
from pipeline.settings import get_settings
from pipeline.tables.migrating import migrate
from pipeline.tables.session import get_engine


@pytest.fixture
def log_path(tmp_path: Path) -> Iterator[Path]:
    """What is logged goes here. Not to pytest's stdout, which is no place to write to from a thread between tests."""
    path = tmp_path / "log.jsonl"
    with path.open("a", buffering=1) as file:
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
            logger_factory=structlog.WriteLoggerFactory(file=file),
        )
        yield path
        structlog.reset_defaults()


@pytest.fixture
def address(database: Engine, redis_url: str, log_path: Path) -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture
def join(address: str) -> Iterator[Callable[..., Tenant]]:
    """Makes tenants, and keys of them: `join(name, project=…, scopes=…)`."""
    tenants: list[Tenant] = []

    def join(name: str, **options: Any) -> Tenant:
        tenants.append(new_tenant(address, name, **options))
        return tenants[-1]

    yield join
    for tenant in tenants:
        tenant.client.close()
        tenant.http.close()


@pytest.fixture
def acme(join: Callable[..., Tenant]) -> Tenant:
    return join("acme")


@pytest.fixture
def globex(join: Callable[..., Tenant]) -> Tenant:
    return join("globex")


@pytest.fixture
def set_before_start(settings_env: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Sets a setting; takes effect for whatever reads it next."""

    def set_setting(name: str, value: object) -> None:
        settings_env.setenv("RYZANSTEIN_" + name, str(value))
        get_settings.cache_clear()

    return set_setting


@pytest.fixture
def own_postgres(
    servers_folder: Path, settings_env: pytest.MonkeyPatch, redis_url: str, log_path: Path
) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that a test may harm."""
    folder = servers_folder / f"harmed-{new_password()}"
    folder.mkdir()
    server = EmbeddedPostgres(folder / "data", new_password(), folder / "postgres.log", fsync=False)
    server.start()
    migrate(server.url)
    settings_env.setenv("RYZANSTEIN_DATABASE_URL", server.url)
    get_settings.cache_clear()
    get_engine.cache_clear()
    yield server
    get_engine().dispose()
    if server.process is not None and server.process.poll() is None:
        for pid in postgres_processes(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    server.stop()
