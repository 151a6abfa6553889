"""PostgreSQL and Redis with TLS: servers of this machine that were built with it, else the package's behind a front."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from certificates import Authority, Certificate
from tls_fronts import tls_front

from pipeline.embedded import EmbeddedPostgres, EmbeddedRedis, new_password
from pipeline.processes import free_port, wait_until

#: The name in the servers' certificates; they listen on 127.0.0.1, which it stands for.
HOST = "localhost"
#: A function of OpenSSL that a server with TLS calls.
_TLS_FUNCTION = b"SSL_CTX_new"


@dataclass(frozen=True)
class SecureServer:
    """Where it speaks TLS, and where it speaks none (for tests that look at it from the side)."""

    tls_port: int
    plain_url: str
    password: str

    @property
    def plain_port(self) -> int:
        return int(self.plain_url.rpartition(":")[2].partition("/")[0])


def redis_with_tls() -> str | None:
    """A Redis of this machine that was built with TLS."""
    for name in ("redis-server", "valkey-server"):
        if (path := shutil.which(name)) and _TLS_FUNCTION in Path(path).resolve().read_bytes():
            return path
    return None


def postgres_with_tls() -> Path | None:
    """The folder of a PostgreSQL of this machine that was built with TLS."""
    folders = [Path(path) for path in os.environ.get("PATH", "").split(":")]
    for folder in [*folders, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]:
        programs = [folder / "postgres", folder / "initdb"]
        if all(map(os.access, programs, [os.X_OK] * 2)) and _TLS_FUNCTION in programs[0].read_bytes():
            return folder
    return None


@contextlib.contextmanager
def secure_redis(
    folder: Path,
    authority: Authority,
    certificate: Certificate,
    *,
    program: str | None,
    directives: Sequence[str] = (),
    wants_clients: bool = False,
) -> Iterator[SecureServer]:
    """With `program`, that one's own TLS. `wants_clients`: a client must have a certificate of the authority too."""
    folder.mkdir()
    tls_port = free_port()
    if program is not None:
        directives = [
            *directives,
            f"tls-port {tls_port}",
            f"tls-cert-file {certificate.path}",
            f"tls-key-file {certificate.key}",
            f"tls-ca-cert-file {authority.path}",
            f"tls-auth-clients {'yes' if wants_clients else 'no'}",
        ]
    server = EmbeddedRedis(
        folder / "data", new_password(), folder / "redis.log", directives=directives, program=program
    )
    server.start()
    try:
        with contextlib.ExitStack() as stack:
            if program is None:
                tls_port = stack.enter_context(
                    tls_front(server.port, _server_context(authority, certificate, wants_clients))
                )
            yield SecureServer(tls_port, server.url, server.password)
    finally:
        server.stop()


@contextlib.contextmanager
def secure_postgres(
    folder: Path, authority: Authority, certificate: Certificate, *, programs: Path | None
) -> Iterator[SecureServer]:
    """With `programs`, those with TLS of their own."""
    folder.mkdir()
    server = EmbeddedPostgres(folder / "data", new_password(), folder / "postgres.log", fsync=False, programs=programs)
    server.start()
    try:
        with contextlib.ExitStack() as stack:
            tls_port = server.port
            if programs is None:
                context = _server_context(authority, certificate, wants_clients=False)
                tls_port = stack.enter_context(tls_front(server.port, context, speaks_postgresql=True))
            else:
                _switch_tls_on(server, authority, certificate)
            yield SecureServer(tls_port, server.url, server.password)
    finally:
        server.stop()


def _switch_tls_on(server: EmbeddedPostgres, authority: Authority, certificate: Certificate) -> None:
    owner = server.folder.stat()
    files = {"ssl_cert_file": certificate.path, "ssl_key_file": certificate.key, "ssl_ca_file": authority.path}
    with psycopg.connect(server.url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as conn:
        for name, path in files.items():
            copy = Path(shutil.copy(path, server.folder))
            copy.chmod(0o600)  # it takes no key that others may read
            os.chown(copy, owner.st_uid, owner.st_gid)
            conn.execute(f"ALTER SYSTEM SET {name} = '{copy}'")
        conn.execute("ALTER SYSTEM SET ssl = on")
        conn.execute("SELECT pg_reload_conf()")

    def is_on() -> bool:
        with psycopg.connect(server.url.replace("postgresql+psycopg", "postgresql")) as conn:
            return conn.execute("SHOW ssl").fetchone() == ("on",)

    wait_until(is_on, what="TLS of PostgreSQL", timeout=10, process=server.process)


def _server_context(authority: Authority, certificate: Certificate, wants_clients: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.path))
    context.load_cert_chain(certificate.path, certificate.key)
    context.verify_mode = ssl.CERT_REQUIRED if wants_clients else ssl.CERT_NONE
    return context
