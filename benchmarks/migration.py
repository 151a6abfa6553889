"""How long a migration keeps those waiting who write meanwhile, on many requests.

    python -m benchmarks.migration [--requests 1000000]

Fills a PostgreSQL server of its own with requests, runs every revision forwards, then those of a next version forwards
and back while a group with an echo engine answers requests of this version, then every revision back. Sessions beside
it write to the tables of the pipeline without a pause; the longest that one statement of theirs took in each phase is
the measure. The last phase is a control: an index that is built as no revision may build it, so that one sees what is
measured. Writes `benchmarks/results/migration.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from benchmarks.databases import CUSTOMER, execute, own_server
from benchmarks.machine import describe_machine
from benchmarks.model import write_model
from benchmarks.next_schema import next_schema
from pipeline.settings import Settings
from pipeline.tables.migrating import alembic_config
from pipeline.tables.session import make_engine
from pipeline.tokenization import pack_token_ids
from workers.backends.echo import EchoEngine
from workers.fleet import GroupIdentity
from workers.group import Group

RESULT = Path(__file__).parent / "results" / "migration.json"
TARGET_SECONDS = 1.0
MODEL: Final = "echo"
#: Requests of a slice and of a batch.
SLICE_REQUESTS = 1_000
BATCH_REQUESTS = 50_000
#: How long each phase that changes nothing lasts, in seconds.
QUIET_SECONDS = 3.0
#: What waited for a lock of the last change ends within it, in seconds.
SETTLE_SECONDS = 0.2

#: What a row of each kind is; `%(requests)s` of them in all, a thousand to a slice, fifty slices to a batch.
_FILL: Final = """
    INSERT INTO batches (id, tenant_id, api_key_id, input_file_id, endpoint, completion_window, on_invalid, status,
                         expires_at, in_progress_at, model, num_requests)
        SELECT 'batch_' || b, 'tenant_1', 'key_1', 'file_1', '/v1/completions', '24h', 'fail', 'in_progress',
               now() + interval '24 hours', now(), '{model}', least({batch}, {requests} - b * {batch})
        FROM generate_series(0, ({requests} - 1) / {batch}) b;
    INSERT INTO slices (id, batch_id, tenant_id, model, position, deadline, num_requests, num_tokens, status,
                        num_unfinished)
        SELECT s + 1, 'batch_' || s * {slice} / {batch}, 'tenant_1', '{model}', s, now() + interval '24 hours',
               least({slice}, {requests} - s * {slice}), 12000, 'pending', least({slice}, {requests} - s * {slice})
        FROM generate_series(0, ({requests} - 1) / {slice}) s;
    INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params)
        SELECT 'batch_' || r / {batch}, r / {slice} + 1, r + 1, 'request-' || r, '\\x{prompt}', 8, '{{"max_tokens": 4}}'
        FROM generate_series(0, {requests} - 1) r;
    SELECT setval(pg_get_serial_sequence('slices', 'id'), (SELECT max(id) FROM slices));
    ANALYZE;
"""

#: What every process of the pipeline does all the time, in tables that the migrations touch.
_WRITES: Final = (
    "UPDATE requests SET num_crash_exposures = num_crash_exposures WHERE id = %(request)s",
    "UPDATE slices SET num_tokens = num_tokens WHERE id = %(slice)s",
    "UPDATE batches SET num_skipped = num_skipped WHERE id = %(batch)s",
    "INSERT INTO outbox (queue, task, args) VALUES ('q', 't', '[]')",
    "SELECT count(*) FROM results WHERE batch_id = %(batch)s AND request_id = %(request)s",
    "UPDATE groups SET heartbeat_at = clock_timestamp() WHERE id = 'group-0@benchmark'",
)


@dataclass
class Phase:
    name: str
    seconds: float
    num_writes: int
    #: Longest that one statement beside it took, and which.
    longest_seconds: float
    longest: str
    #: Requests that the group answered meanwhile.
    num_results: int


@dataclass
class Results:
    num_requests: int
    machine: dict[str, Any] = field(default_factory=describe_machine)
    phases: list[Phase] = field(default_factory=list)


class Writers:
    """Sessions that write, each on a connection of its own, and note how long each statement took."""

    def __init__(self, database_url: str, num_requests: int, num_writers: int = 2) -> None:
        self._conninfo = database_url.replace("postgresql+psycopg", "postgresql")
        self._num_requests = num_requests
        self._is_stopping = threading.Event()
        self._lock = threading.Lock()
        self._num_writes = 0
        self._longest = (0.0, "")
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._write, args=(Random(seed),)) for seed in range(num_writers)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> tuple[int, float, str]:
        """Statements since the last call, the longest of them in seconds, and what it was."""
        with self._lock:
            taken = (self._num_writes, *self._longest)
            self._num_writes, self._longest = 0, (0.0, "")
        return taken

    def _write(self, rng: Random) -> None:
        with psycopg.connect(self._conninfo, autocommit=True, application_name="writer") as conn:
            while not self._is_stopping.is_set():
                request = rng.randrange(self._num_requests)
                values = {
                    "request": request + 1,
                    "slice": request // SLICE_REQUESTS + 1,
                    "batch": f"batch_{request // BATCH_REQUESTS}",
                }
                for statement in _WRITES:
                    began = time.perf_counter()
                    try:
                        conn.execute(statement, values)
                    except psycopg.Error as error:
                        self.errors.append(f"{statement}: {error.diag.message_primary}")
                        return
                    self._note(time.perf_counter() - began, statement)

    def _note(self, seconds: float, statement: str) -> None:
        with self._lock:
            self._num_writes += 1
            self._longest = max(self._longest, (seconds, statement))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    console = Console()
    with own_server() as (server, folder):
        results = measure(server.url, folder, options.requests, console.print)
    console.print(table(results))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(asdict(results), indent=2) + "\n")
    console.print(f"Written to benchmarks/results/{RESULT.name}")


def measure(
    database_url: str,
    folder: Path,
    num_requests: int,
    tell: Callable[[str], object] = print,
    quiet_seconds: float = QUIET_SECONDS,
) -> Results:
    """All phases, on an empty database."""
    results = Results(num_requests)
    today = alembic_config(database_url)
    (folder / "versions").mkdir()
    coming = next_schema(database_url, folder / "versions", blocking=True)
    command.upgrade(today, "0001")
    fill(database_url, num_requests)
    tell(f"filled with {num_requests:,} requests")
    database = make_engine(database_url)
    with Writers(database_url, num_requests) as writers:

        def phase(name: str, change: Callable[[], object]) -> None:
            results.phases.append(_phase(name, change, writers, database))
            tell(f"{name}: {results.phases[-1].longest_seconds:.3f} s")

        phase("nothing changes", lambda: time.sleep(quiet_seconds))
        phase("0001 to this version", lambda: command.upgrade(today, "head"))
        with running_group(database, write_model(folder / MODEL)):
            phase("nothing changes, a group answers", lambda: time.sleep(quiet_seconds))
            phase("this version to the next, a group answers", lambda: command.upgrade(coming, "next_3"))
            phase("the next version back to this, a group answers", lambda: _go_back(coming, database))
        phase("this version to 0001", lambda: command.downgrade(today, "0001"))
        command.upgrade(today, "head")
        command.upgrade(coming, "next_3")
        writers.take()
        phase("control: an index that blocks", lambda: command.upgrade(coming, "next_4"))
    database.dispose()
    if writers.errors:
        raise SystemExit(f"A statement beside the migration failed: {writers.errors[0]}")
    return results


def fill(database_url: str, num_requests: int) -> None:
    """So many requests that wait, in slices and batches, by the schema of revision 0001."""
    prompt = pack_token_ids(range(5, 13)).hex()
    execute(
        database_url,
        CUSTOMER.format(model=MODEL, path=f"/models/{MODEL}")
        + _FILL.format(model=MODEL, batch=BATCH_REQUESTS, slice=SLICE_REQUESTS, requests=num_requests, prompt=prompt),
    )


def _phase(name: str, change: Callable[[], object], writers: Writers, database: Engine) -> Phase:
    before = _num_results(database)
    writers.take()
    began = time.perf_counter()
    change()
    seconds = time.perf_counter() - began
    time.sleep(SETTLE_SECONDS)
    num_writes, longest_seconds, longest = writers.take()
    return Phase(name, seconds, num_writes, longest_seconds, longest, _num_results(database) - before)


def _go_back(coming: Config, database: Engine) -> None:
    with database.connect() as conn:
        head = conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    assert str(head).startswith("next_"), head
    command.downgrade(coming, "next_1")
    command.downgrade(coming, "-1")


def _num_results(database: Engine) -> int:
    with database.connect() as conn:
        return int(conn.exec_driver_sql("SELECT count(*) FROM results").scalar_one())


@contextmanager
def running_group(database: Engine, model: Path) -> Iterator[Group]:
    """An echo group in this process, which finds its slices by looking into SQL."""
    failures: list[str] = []
    identity = GroupIdentity(
        id="group-0@benchmark", model=MODEL, model_path=str(model), context_length=2048, pid=os.getpid()
    )
    settings = Settings(sweep_seconds=0.1)
    # Slow enough to have work left in every phase.
    engine = EchoEngine(model, tokens_per_second=2_000.0)
    group = Group(engine, identity, settings, database, lambda: failures.append("a thread of the group failed"))
    group.start()
    try:
        yield group
    finally:
        group.drain(hurry=True)
        group.stop()
    if failures:
        raise SystemExit(failures[0])


def table(results: Results) -> Table:
    shown = Table(title=f"{results.num_requests:,} requests", title_justify="left")
    for heading in ("", "took", "statements beside it", "longest of them", "answered", "target"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for phase in results.phases:
        shown.add_row(
            phase.name,
            f"{phase.seconds:.2f} s",
            f"{phase.num_writes:,}",
            f"{phase.longest_seconds:.3f} s",
            f"{phase.num_results:,}",
            "" if phase.name.startswith("control") else f"< {TARGET_SECONDS:g} s",
        )
    return shown


if __name__ == "__main__":
    main()
