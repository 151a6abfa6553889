"""Real PostgreSQL and Redis for every test that asks: one server of each per run, a fresh database per test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import Engine

from pipeline.embedded import EmbeddedPostgres, EmbeddedRedis, new_password
from pipeline.ids import new_id
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.migrating import migrate
from pipeline.tables.session import get_engine

for name in [name for name in os.environ if name.startswith(PREFIX)]:
    del os.environ[name]

# Read when Triton is imported, which any library may do first. With TRITON_INTERPRET=0 its kernels' tests run on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")


#: What the servers of one run come to at most, with room to spare: PostgreSQL keeps a log of up to 1 GiB.
MEMORY_BYTES = 4 * 1024**3


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """Not below pytest's own folder: each run that starts takes the others' right to enter that one away, and as root
    PostgreSQL runs as another user."""
    with tempfile.TemporaryDirectory(prefix="ryzanstein-tests-", dir=_memory_folder()) as folder:
        yield Path(folder)


def _memory_folder() -> Path | None:
    """A file system in memory, if there is room: a database, which is some 700 files, is copied ten times as fast."""
    folder = Path("/dev/shm")
    has_room = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= MEMORY_BYTES
    return folder if has_room else None


@pytest.fixture(scope="session")
def postgres_server(servers_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for the whole run, with a migrated database `template` to copy from."""
    folder = servers_folder / "postgres"
    folder.mkdir()
    server = EmbeddedPostgres(folder / "data", new_password(), folder / "postgres.log", fsync=False)
    server.start()
    migrate(server.create_database("template"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(servers_folder: Path) -> Iterator[EmbeddedRedis]:
    folder = servers_folder / "redis"
    folder.mkdir()
    server = EmbeddedRedis(folder / "data", new_password(), folder / "redis.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test set `RYZANSTEIN_` variables; whatever was read from them before is forgotten."""
    monkeypatch.setenv(PREFIX + "STORAGE_URL", f"file://{tmp_path}/blobs")
    get_settings.cache_clear()
    get_engine.cache_clear()
    yield monkeypatch
    get_settings.cache_clear()
    get_engine.cache_clear()


@pytest.fixture
def database(postgres_server: EmbeddedPostgres, settings_env: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A migrated database of the test's own, which is also the one that the settings name."""
    name = new_id("test")
    admin = postgres_server.url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template STRATEGY file_copy")  # twice as fast as the default
    settings_env.setenv(PREFIX + "DATABASE_URL", postgres_server.url.rsplit("/", 1)[0] + "/" + name)
    get_settings.cache_clear()
    engine = get_engine()
    yield engine
    engine.dispose()
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis, settings_env: pytest.MonkeyPatch) -> str:
    """An empty Redis, which is also the one that the settings name."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    settings_env.setenv(PREFIX + "REDIS_URL", redis_server.url)
    get_settings.cache_clear()
    return redis_server.url
