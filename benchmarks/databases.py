"""Databases for benchmarks that need no stack."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from pipeline.embedded import EmbeddedPostgres, new_password
from pipeline.ids import new_id
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine


@contextmanager
def databases() -> Iterator[Callable[[], Engine]]:
    """Makes databases of a server of their own, which is gone at the end."""
    engines: list[Engine] = []
    with tempfile.TemporaryDirectory(prefix="ryzanstein-fairness-") as folder:
        os.chmod(folder, 0o711)  # started by root, PostgreSQL runs as a user of its own
        server = EmbeddedPostgres(Path(folder) / "data", new_password(), Path(folder) / "postgres.log", fsync=False)
        server.start()

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
            server.stop()
