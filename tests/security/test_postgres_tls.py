"""PostgreSQL over TLS: `sslmode=verify-full` in the address is all that it takes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from secure_servers import HOST, SecureServer, postgres_with_tls, secure_postgres
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from pipeline.processes import wait_until
from pipeline.tables.migrating import describe_lack, migrate, revisions
from pipeline.tables.session import make_engine

_IS_ENCRYPTED = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


def address(server: SecureServer, parameters: str, host: str = HOST) -> str:
    return f"postgresql+psycopg://ryzanstein:{server.password}@{host}:{server.tls_port}/ryzanstein?{parameters}"


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as conn:
            yield conn
    finally:
        engine.dispose()


def refusal(url: str) -> str:
    with pytest.raises(OperationalError) as caught, connected(url):
        pass
    return str(caught.value)


def test_only_a_server_whose_certificate_holds_is_talked_to(
    postgres_over_tls: SecureServer, authority: Authority, stranger: Authority
) -> None:
    server, verified = postgres_over_tls, f"sslmode=verify-full&sslrootcert={authority.path}"

    migrate(address(server, verified))
    assert describe_lack(*revisions(address(server, verified))) is None
    others = [
        address(server, f"sslmode=verify-full&sslrootcert={stranger.path}"),
        address(server, verified, host="127.0.0.1"),
    ]
    for url in others:
        reason = refusal(url)
        assert "certificate" in reason
        assert server.password not in reason


def test_the_server_says_that_our_sessions_are_encrypted(postgres_over_tls: SecureServer, authority: Authority) -> None:
    if postgres_over_tls.tls_port != postgres_over_tls.plain_port:
        pytest.skip("behind a front, PostgreSQL knows nothing of it")
    with connected(address(postgres_over_tls, f"sslmode=verify-full&sslrootcert={authority.path}")) as conn:
        assert conn.scalar(_IS_ENCRYPTED) is True
    with connected(address(postgres_over_tls, "sslmode=disable")) as conn:
        assert conn.scalar(_IS_ENCRYPTED) is False


def test_a_server_may_take_none_but_tls_and_clients_with_a_certificate(
    servers_folder: Path, authority: Authority, certificate: Certificate
) -> None:
    programs = postgres_with_tls()
    if programs is None:
        pytest.skip("no PostgreSQL on the PATH or in /usr/lib/postgresql was built with TLS")
    mine, folder = authority.issue("client"), servers_folder / "postgres-clients"
    with secure_postgres(folder, authority, certificate, programs=programs) as server:
        (folder / "data" / "pg_hba.conf").write_text("hostssl all all all scram-sha-256 clientcert=verify-ca\n")
        os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)
        verified = f"sslmode=verify-full&sslrootcert={authority.path}"

        def is_in_force() -> bool:
            try:
                with connected(address(server, "sslmode=disable")):
                    return False
            except OperationalError:
                return True

        wait_until(is_in_force, what="pg_hba.conf", timeout=10, process=None)
        assert "certificate" in refusal(address(server, verified))
        with connected(address(server, f"{verified}&sslcert={mine.path}&sslkey={mine.key}")) as conn:
            assert conn.scalar(_IS_ENCRYPTED) is True
