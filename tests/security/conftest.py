"""An authority that signs certificates, servers with TLS, and whole stacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from secure_servers import HOST, SecureServer, postgres_with_tls, redis_with_tls, secure_postgres, secure_redis
from stack_fixtures import make_stack, stack_folder, tiny_model

from pipeline.ids import new_id

__all__ = ["make_stack", "stack_folder", "tiny_model"]


@pytest.fixture(scope="session")
def authority(servers_folder: Path) -> Authority:
    return Authority.make(servers_folder / "authority")


@pytest.fixture(scope="session")
def stranger(servers_folder: Path) -> Authority:
    """Has signed nothing that the servers show."""
    return Authority.make(servers_folder / "stranger")


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Certificate:
    return authority.issue(HOST)


@pytest.fixture(scope="module", params=["its own", "of a front"])
def redis_over_tls(
    request: pytest.FixtureRequest, servers_folder: Path, authority: Authority, certificate: Certificate
) -> Iterator[SecureServer]:
    program = redis_with_tls()
    if request.param == "its own" and program is None:
        pytest.skip("no redis-server or valkey-server on the PATH was built with TLS")
    chosen = program if request.param == "its own" else None
    with secure_redis(servers_folder / new_id("redis"), authority, certificate, program=chosen) as server:
        yield server


@pytest.fixture(scope="module", params=["its own", "of a front"])
def postgres_over_tls(
    request: pytest.FixtureRequest, servers_folder: Path, authority: Authority, certificate: Certificate
) -> Iterator[SecureServer]:
    programs = postgres_with_tls()
    if request.param == "its own" and programs is None:
        pytest.skip("no PostgreSQL on the PATH or in /usr/lib/postgresql was built with TLS")
    chosen = programs if request.param == "its own" else None
    with secure_postgres(servers_folder / new_id("postgres"), authority, certificate, programs=chosen) as server:
        yield server
