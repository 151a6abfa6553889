"""Databases for benchmarks that need no stack."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import Engine

from pipeline.embedded import EmbeddedPostgres, new_password
from pipeline.ids import new_id
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine

#: A tenant with a key and a file, and a `{model}` at `{path}` that has a price; by any revision's schema.
CUSTOMER: Final = """
    INSERT INTO tenants (id, name) VALUES ('tenant_1', 'acme');
    INSERT INTO api_keys (id, tenant_id, name, short_id, secret_hash) VALUES ('key_1', 'tenant_1', 'k', 's', '');
    INSERT INTO files (id, tenant_id, filename, purpose, num_bytes, storage_key)
        VALUES ('file_1', 'tenant_1', 'in.jsonl', 'batch', 1, 'file_1');
    INSERT INTO served_models (name, path, context_length) VALUES ('{model}', '{path}', 2048);
    INSERT INTO rate_cards (model, currency, input_price, cached_input_price, output_price, batch_discount)
        VALUES ('{model}', 'USD', 0.137, 0.061, 0.411, 0.333);
"""


@contextmanager
def own_server(*, fsync: bool = True) -> Iterator[tuple[EmbeddedPostgres, Path]]:
    """A server with an empty database, and the folder that it is in; both are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="ryzanstein-benchmark-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # started by root, PostgreSQL runs as a user of its own
        server = EmbeddedPostgres(folder / "postgres", new_password(), folder / "postgres.log", fsync=fsync)
        server.start()
        try:
            yield server, folder
        finally:
            server.stop()


@contextmanager
def databases() -> Iterator[Callable[[], Engine]]:
    """Makes databases of a server of their own, which is gone at the end."""
    engines: list[Engine] = []
    with own_server(fsync=False) as (server, _):

        def make() -> Engine:
            url = server.create_database(new_id("fairness"))
            migrate(url)
            engines.append(make_engine(url))
            return engines[-1]

        try:
            yield make
        finally:
            for engine in engines:
                engine.dispose()


def execute(database_url: str, statements: str) -> None:
    """Without a transaction around them."""
    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as conn:
        conn.execute(statements)
