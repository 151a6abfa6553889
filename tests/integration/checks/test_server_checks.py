"""Real servers with settings that put the promise at risk, and what is said about each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pooling_proxy import dropping_options
from sqlalchemy import Engine, create_engine
from tokenizer_folders import byte_level

from pipeline.checks import disk, starting
from pipeline.checks.findings import Finding, Verdict
from pipeline.checks.postgres import check_postgres
from pipeline.checks.redis_server import check_redis, check_release
from pipeline.embedded import EmbeddedPostgres, EmbeddedRedis, new_password
from pipeline.processes import free_port
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.session import make_engine

#: Durability given away, sessions without limits, and room for very few.
CARELESS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "default_transaction_isolation": "serializable",
    "max_connections": "30",
}


@pytest.fixture(scope="module")
def careless(servers_folder: Path) -> Iterator[EmbeddedPostgres]:
    folder = servers_folder / "careless"
    folder.mkdir()
    server = EmbeddedPostgres(folder / "data", new_password(), folder / "postgres.log", settings=CARELESS)
    server.start()
    yield server
    server.stop()


def by_subject(found: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in found}


def verdicts(engine: Engine) -> dict[str, Verdict]:
    with engine.connect() as conn:
        return {name: finding.verdict for name, finding in by_subject(check_postgres(conn)).items()}


def test_our_sessions_set_right_what_a_session_can(careless: EmbeddedPostgres) -> None:
    engine = make_engine(careless.url, pool_size=1)
    assert verdicts(engine) == {
        "fsync": Verdict.WARNING,
        "full_page_writes": Verdict.WARNING,
        "max_connections": Verdict.WARNING,
    }
    engine.dispose()


def test_a_pooler_that_drops_our_startup_options_is_found_out(careless: EmbeddedPostgres) -> None:
    engine = create_engine(careless.url)  # what such a pooler does to a session of ours
    found = verdicts(engine)
    assert found["synchronous_commit"] == found["default_transaction_isolation"] == Verdict.FAILED
    assert found["statement_timeout"] == found["lock_timeout"] == Verdict.WARNING
    assert found["idle_in_transaction_session_timeout"] == Verdict.WARNING
    engine.dispose()


def test_a_server_as_it_should_be_is_one_finding(postgres_server: EmbeddedPostgres, database: Engine) -> None:
    assert not postgres_server.fsync
    assert verdicts(database) == {"fsync": Verdict.WARNING}, "the servers of tests do without it"


def test_clocks_that_differ_are_said(database: Engine) -> None:
    with database.connect() as conn:
        ahead = by_subject(check_postgres(conn, now=lambda: time.time() + 3600))
        behind = by_subject(check_postgres(conn, now=lambda: time.time() - 3600))
    assert ahead["clock"].detail == "this host is 3600 s ahead of the database"
    assert behind["clock"].detail == "this host is 3600 s behind the database"


def test_more_groups_want_more_connections(database: Engine) -> None:
    with database.connect() as conn:
        conn.exec_driver_sql("INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 8)")
        conn.exec_driver_sql(
            "INSERT INTO groups (id, model, state, pid, rank_pids, info)"
            " SELECT 'group-' || n, 'tiny', 'ready', n, '[]', '{}' FROM generate_series(1, 9) n"
        )
        found = by_subject(check_postgres(conn))
    assert found["max_connections"].detail == "room for 197, and 11 processes may want 230"


@pytest.fixture
def own_redis(servers_folder: Path, settings_env: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A Redis that a test may spoil; the settings name it."""
    folder = servers_folder / "own-redis"
    folder.mkdir(exist_ok=True)
    server = EmbeddedRedis(folder / "data", new_password(), folder / "redis.log")
    server.start()
    settings_env.setenv(PREFIX + "REDIS_URL", server.url)
    get_settings.cache_clear()
    with redis.Redis.from_url(server.url) as client:
        yield client
    server.stop()


def test_a_redis_that_evicts_or_is_full_is_said(own_redis: redis.Redis) -> None:
    assert not {"redis maxmemory-policy", "redis memory"} & set(by_subject(check_redis()))
    own_redis.config_set("maxmemory-policy", "allkeys-lru")
    own_redis.config_set("maxmemory", own_redis.info("memory")["used_memory"] + 1024)
    found = by_subject(check_redis())
    assert found["redis"].verdict is Verdict.OK
    assert found["redis maxmemory-policy"].detail == "evicts by allkeys-lru"
    assert "bytes are used" in found["redis memory"].detail


def test_a_redis_that_is_slow_is_said(own_redis: redis.Redis) -> None:
    own_redis.config_set("maxmemory-policy", "noeviction")
    assert "redis latency" in by_subject(check_redis(ping_seconds=0.0))
    assert "redis latency" not in by_subject(check_redis(ping_seconds=60.0))


def test_the_release_matters_only_where_others_reach_the_server(own_redis: redis.Redis) -> None:
    assert "redis version" not in by_subject(check_redis())
    own_redis.config_set("bind", "127.0.0.1 127.0.0.2")  # not one of those that are known to be local
    found = by_subject(check_redis())
    own_redis.config_set("bind", "127.0.0.1 -::1")
    assert ("redis version" in found) == bool(list(check_release(own_redis.info("server"))))
    assert "redis version" not in by_subject(check_redis())


def test_a_redis_that_hides_its_settings_is_no_failure(own_redis: redis.Redis) -> None:
    own_redis.execute_command("ACL", "SETUSER", "default", "-config")
    assert by_subject(check_redis())["redis"].verdict is Verdict.OK


@pytest.mark.parametrize(
    ("server", "is_sound"),
    [
        ({"redis_version": "6.2.14"}, False),
        ({"redis_version": "6.2.20"}, True),
        ({"redis_version": "7.2.11"}, False),  # no release of the line is known that has both corrections
        ({"redis_version": "8.6.2"}, False),
        ({"redis_version": "8.6.3"}, True),
        ({"redis_version": "8.8.0"}, True),
        ({"redis_version": "255.255.255"}, True),  # built from source
        ({"redis_version": "7.2.4", "valkey_version": "8.1.3"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.4"}, True),
    ],
)
def test_releases_with_known_faults_are_said(server: dict[str, str], is_sound: bool) -> None:
    found = list(check_release(server))
    assert (not found) == is_sound
    assert all("CVE-2025-49844" in finding.advice for finding in found)


def test_a_disk_that_fills_up_is_said(
    settings_env: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_env.setenv(PREFIX + "STORAGE_URL", tmp_path.as_uri())
    get_settings.cache_clear()
    monkeypatch.setattr(disk, "FREE_BYTES", 0)
    assert not list(disk.check_disk(get_settings()))
    monkeypatch.setattr(disk, "FREE_BYTES", 2**80)
    (finding,) = disk.check_disk(get_settings())
    assert str(tmp_path) in finding.detail


# --- what a process makes of it


def test_a_process_starts_with_servers_that_are_away(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "DATABASE_URL", f"postgresql+psycopg://user:hunter2@127.0.0.1:{free_port()}/none")
    settings_env.setenv(PREFIX + "REDIS_URL", f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    get_settings.cache_clear()
    starting.check_at_start()


@pytest.mark.parametrize(
    "command",
    [
        ("pipeline.cli", "gateway", "--port", "0"),
        ("pipeline.cli", "control"),
        ("workers", "TOKENIZER", "--engine", "echo"),
    ],
)
def test_a_process_refuses_servers_that_lose_what_was_answered(
    careless: EmbeddedPostgres,
    redis_url: str,
    settings_env: pytest.MonkeyPatch,
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    with dropping_options(careless.port) as port:
        settings_env.setenv(PREFIX + "DATABASE_URL", careless.url.replace(f":{careless.port}/", f":{port}/"))
        folder = str(byte_level(tmp_path / "tiny"))
        argv = [sys.executable, "-m", *(folder if part == "TOKENIZER" else part for part in command)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].lower().startswith("error: synchronous_commit: off")
    assert "fsync" in done.stderr  # what is only warned of is in the log
    assert "Traceback" not in done.stderr
    assert careless.password not in done.stderr
