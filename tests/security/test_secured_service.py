"""The whole service as an operator would lock it up: TLS to both servers, and users of theirs who may do little."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
import redis
from batch_jobs import chat_line, read_lines, submit, wait_for_end
from certificates import Authority, Certificate
from secure_servers import HOST, SecureServer, postgres_with_tls, redis_with_tls, secure_postgres, secure_redis
from sqlalchemy import text
from stacks import wait_for
from tokenizer_folders import byte_level
from watching import Flower, holding

from pipeline.billing.rate_cards import ensure_rate_card
from pipeline.embedded import new_password
from pipeline.http_probe import http_status
from pipeline.processes import free_port, spawn, stop
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.migrating import migrate
from pipeline.tables.session import connection, get_engine, transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import ensure_tenant

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
#: What processes ask for and do without: CONFIG would show passwords. Before Redis 7, CLIENT is one command, by which
#: redis-py says its version and others would be cut off.
DONE_WITHOUT = {"config|get", "config", "client"}
PASSWORD = new_password()


def documented_user() -> str:
    """The Redis user in docs/security.md, as the one line that redis.conf wants."""
    (block,) = re.findall(r"^```\n(user ryzanstein on .+?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return " ".join(block.split()).replace(">PASSWORD", f">{PASSWORD}")


class Service:
    """Its processes, each with the settings of this test in its environment."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.gateway = f"http://127.0.0.1:{get_settings().gateway_port}"
        self.flower = Flower(f"http://127.0.0.1:{get_settings().flower_port}", "ryzanstein", PASSWORD)
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        for name in ("gateway", "control", "flower"):
            self._start(name, "pipeline.cli", name)
        self._start("group", "workers", str(model), "--engine", "echo", "--model-name", "tiny")

    def _start(self, name: str, *argv: str) -> None:
        log_path = self.folder / f"{name}.log"
        self.processes.append(spawn([sys.executable, "-m", *argv], env=os.environ, log_path=log_path))

    def wait_until_ready(self) -> None:
        for url in (f"{self.gateway}/readyz", f"{self.flower.url}/healthcheck"):
            wait_for(lambda url=url: http_status(url) == 200, url)  # type: ignore[misc]
        wait_for(lambda: scalar("SELECT count(*) FROM groups WHERE state = 'ready'"), "the group")

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        for process in self.processes:
            stop(process)


def scalar(statement: str) -> Any:
    with connection() as conn:
        return conn.scalar(text(statement))


@pytest.fixture(scope="module")
def redis_server_with_users(
    servers_folder: Path, authority: Authority, certificate: Certificate
) -> Iterator[SecureServer]:
    folder, program = servers_folder / "redis-users", redis_with_tls()
    with secure_redis(folder, authority, certificate, program=program, directives=[documented_user()]) as server:
        yield server


@pytest.fixture
def service(
    servers_folder: Path,
    redis_server_with_users: SecureServer,
    authority: Authority,
    certificate: Certificate,
    settings_env: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Service]:
    with secure_postgres(
        servers_folder / "postgres-service", authority, certificate, programs=postgres_with_tls()
    ) as postgres:
        with psycopg.connect(postgres.plain_url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE service LOGIN PASSWORD '{PASSWORD}'")
            admin.execute("CREATE DATABASE service OWNER service")
        settings = {
            "DATABASE_URL": f"postgresql+psycopg://service:{PASSWORD}@{HOST}:{postgres.tls_port}"
            f"/service?sslmode=verify-full&sslrootcert={authority.path}",
            "REDIS_URL": f"rediss://ryzanstein:{PASSWORD}@{HOST}:{redis_server_with_users.tls_port}"
            f"/0?ssl_ca_certs={authority.path}",
            "GATEWAY_PORT": free_port(),
            "FLOWER_PORT": free_port(),
            "FLOWER_PASSWORD": PASSWORD,
            "SWEEP_SECONDS": "1",
        }
        for name, value in settings.items():
            settings_env.setenv(PREFIX + name, str(value))
        get_settings.cache_clear()
        get_engine.cache_clear()
        migrate(get_settings().database_url.get_secret_value())
        service = Service(tmp_path, byte_level(tmp_path / "tiny"))
        try:
            yield service
        finally:
            service.stop()
            get_engine().dispose()


def test_a_batch_runs_over_tls_with_users_who_may_do_little(
    service: Service, redis_server_with_users: SecureServer
) -> None:
    service.wait_until_ready()
    with transaction() as session:
        ensure_rate_card(session, "tiny", get_settings())
        _, key = create_key(session, ensure_tenant(session, "acme").id, "tests")
    client = openai.OpenAI(base_url=f"{service.gateway}/v1", api_key=key)

    flower, tasks = service.flower, {"control.prepare", "generate.slice"}

    def runs_and_is_shown() -> bool:
        """What ran before Flower listened it does not show."""
        batch = wait_for_end(client, submit(client, [chat_line("one"), chat_line("two")]).id)
        assert batch.status == "completed", service.logs()
        assert len(read_lines(client, batch.output_file_id)) == 2
        return tasks <= {task["name"] for task in json.loads(flower.get("/api/tasks")).values()}

    wait_for(runs_and_is_shown, "the tasks")
    queues = [{"name": "control", "messages": 0}, {"name": "generate.tiny", "messages": 0}]
    wait_for(lambda: json.loads(flower.get("/api/queues/length"))["active_queues"] == queues, "the queues")
    if postgres_with_tls() is not None:
        ours = "pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'ryzanstein'"
        assert scalar(f"SELECT bool_and(ssl) FROM {ours}") is True
    with redis.Redis.from_url(redis_server_with_users.plain_url) as admin:
        denied = {entry["object"] for entry in admin.acl_log()}
    assert denied <= DONE_WITHOUT
    shown_and_logged = [*dict(flower.crawl()).values(), service.logs().encode()]
    assert holding([PASSWORD.encode()], shown_and_logged) == []


def test_that_user_reaches_nothing_else(redis_server_with_users: SecureServer) -> None:
    _, _, address = redis_server_with_users.plain_url.rpartition("@")
    with redis.Redis.from_url(f"redis://ryzanstein:{PASSWORD}@{address}") as client:
        assert client.ping()
        client.lpush("ryzanstein:of-a-test", "a message")
        assert client.rpop("ryzanstein:of-a-test") == b"a message"
        for command in (
            ("GET", "another:key"),
            ("LPUSH", "another:queue", "x"),
            ("PUBLISH", "another", "x"),
            ("KEYS", "*"),
            ("SCAN", "0"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "requirepass"),
            ("CONFIG", "SET", "dir", "/"),
            ("ACL", "LIST"),
            ("CLIENT", "LIST"),
            ("MONITOR",),
            ("SHUTDOWN",),
            ("REPLICAOF", "NO", "ONE"),
            ("EVAL", "return 1", "0"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
