"""How much of the speed of recording outcomes billing takes, and what each part of it takes.

    python -m benchmarks.recording [--rounds 9] [--outcomes 64] [--answer-bytes 2000] [--months 12] [--groups 1]

Records the outcomes of a batch in transactions of so many, on a PostgreSQL of its own with fsync. The rounds take
turns: as it is, without billing (no metering, rating, ledger and roll-ups; answers, outcomes and counters are written
as ever), and without one part of it each. Medians over the rounds; the ratio is that of outcomes per second.

That is the transaction alone. A group does more for an answer than to record it, so it is measured too: a group whose
engine echoes at once, from its first claim to its last outcome, with and without billing in turn.

Writes `benchmarks/results/recording.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import psutil
from psycopg import Cursor
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from benchmarks.databases import CUSTOMER, execute, own_server
from benchmarks.machine import describe_machine
from benchmarks.model import write_model
from pipeline.billing.charging import Charged
from pipeline.billing.rating import TokenUsage
from pipeline.embedded import EmbeddedPostgres
from pipeline.jobs.claiming import ClaimedSlice, claim_slice, load_requests
from pipeline.jobs.lines import output_line
from pipeline.jobs.recording import RequestOutcome, record_outcomes
from pipeline.settings import Settings
from pipeline.tables import OutcomeKind
from pipeline.tables.arrays import numbers
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine
from workers.backends.echo import EchoEngine
from workers.fleet import GroupIdentity
from workers.group import Group

RESULT: Final = Path(__file__).parent / "results" / "recording.json"
#: The kinds that a whole group is measured with.
GROUP_KINDS: Final = ("as it is", "without billing")
#: Requests of a round of a group, and of one of its slices.
GROUP_REQUESTS: Final = 8_000
SLICE_REQUESTS: Final = 500
#: Part of the speed without billing that is to be left with it.
TARGET: Final = 0.85
MODEL: Final = "tiny"

_INSERT_ANSWERS: Final = """
    INSERT INTO results (request_id, batch_id, body, num_line_bytes, slice_id, lease_epoch, output_token_ids, group_id)
    SELECT o.*, %(group_id)s
    FROM unnest(%(ids)s::bigint[], %(batch_ids)b::text[], %(bodies)b::text[], %(sizes)s::bigint[],
                %(slice_ids)s::bigint[], %(epochs)s::bigint[], %(token_ids)b::bytea[]) AS o
"""


def _insert_answers_alone(cursor: Cursor[Any], succeeded: Sequence[RequestOutcome], _: object) -> None:
    """As `pipeline.jobs.answers` does, without what was used for them and what they cost."""
    bodies = [outcome.body or "" for outcome in succeeded]
    values = {
        "group_id": succeeded[0].claimed.group_id,
        "ids": numbers([outcome.request_id for outcome in succeeded]),
        "batch_ids": [outcome.claimed.batch_id for outcome in succeeded],
        "bodies": bodies,
        "sizes": numbers(
            [
                len(output_line(outcome.request_id, outcome.custom_id, body))
                for outcome, body in zip(succeeded, bodies, strict=True)
            ]
        ),
        "slice_ids": numbers([outcome.claimed.id for outcome in succeeded]),
        "epochs": numbers([outcome.claimed.lease_epoch for outcome in succeeded]),
        "token_ids": [outcome.output_token_ids for outcome in succeeded],
    }
    cursor.execute(_INSERT_ANSWERS, values)


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of what is left out."""


#: What is left out in each kind of round: names in `pipeline.jobs.recording`, and what is called in their place.
KINDS: Final[dict[str, dict[str, Callable[..., Any]]]] = {
    "as it is": {},
    "without billing": {
        "ask_rates": _nothing,
        "found_rates": lambda _: ({}, {}),
        "charge": lambda *_: Charged(),
        "insert_answers": _insert_answers_alone,
        "add_usage": _nothing,
    },
    "with prices looked up alone": {
        "charge": lambda *_: Charged(),
        "insert_answers": _insert_answers_alone,
        "add_usage": _nothing,
    },
    "without roll-ups": {"add_usage": _nothing},
    "without budgets": {"holds.settle": _nothing, "holds.announce": _nothing},
    "without shares": {"settle": _nothing},
}

_BATCH: Final = """
    INSERT INTO batches (id, tenant_id, api_key_id, input_file_id, endpoint, completion_window, on_invalid, status,
                         expires_at, in_progress_at, model, num_requests)
        VALUES ('{batch}', 'tenant_1', 'key_1', 'file_1', '/v1/completions', '24h', 'fail', 'in_progress',
                now() + interval '24 hours', now(), 'tiny', {requests});
    INSERT INTO slices (batch_id, tenant_id, model, position, deadline, num_requests, num_tokens, status,
                        num_unfinished)
        SELECT '{batch}', 'tenant_1', 'tiny', n, now() + interval '24 hours', {slice}, {slice}, 'pending', {slice}
        FROM generate_series(0, {requests} / {slice} - 1) n;
    INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params)
        SELECT s.batch_id, s.id, s.position * {slice} + r, 'request-' || s.position * {slice} + r,
               '\\x0000000500000006', 2, '{{"max_tokens": 200}}'
        FROM slices s, generate_series(1, {slice}) r WHERE s.batch_id = '{batch}' ORDER BY s.id, r;
"""


_TOOK: Final = text("""
    SELECT extract(epoch FROM max(a.ended_at) - min(a.started_at))::float FROM attempts a
    WHERE a.batch_id = :batch_id HAVING NOT EXISTS (
        SELECT FROM slices s WHERE s.batch_id = :batch_id AND s.status <> 'done'
    )
""")


@dataclass
class Results:
    num_outcomes: int
    answer_bytes: int
    num_months: int
    num_groups: int
    machine: dict[str, Any] = field(default_factory=describe_machine)
    #: Milliseconds of one transaction, by kind, one value per round.
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    #: Milliseconds of processor time of one transaction: of the group, and of PostgreSQL.
    client_cpu: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    server_cpu: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    #: Outcomes per second of a group with an echo engine.
    group_speed: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in GROUP_KINDS})
    #: Milliseconds of processor time for as many outcomes as a transaction has, of the group and PostgreSQL together.
    group_cpu: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in GROUP_KINDS})

    def median(self, kind: str) -> float:
        return statistics.median(self.milliseconds[kind])

    @property
    def ratio(self) -> float:
        """Outcomes per second with billing, in those without; of rounds that follow each other."""
        pairs = zip(self.milliseconds["without billing"], self.milliseconds["as it is"], strict=True)
        return statistics.median(without / with_it for without, with_it in pairs)

    @property
    def group_cpu_ratio(self) -> float:
        """Of processor time, which does not depend on who else wants the cores."""
        pairs = zip(self.group_cpu["as it is"], self.group_cpu["without billing"], strict=True)
        return statistics.median(without / with_it for with_it, without in pairs)

    @property
    def group_ratio(self) -> float:
        pairs = zip(self.group_speed["as it is"], self.group_speed["without billing"], strict=True)
        return statistics.median(with_it / without for with_it, without in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--outcomes", type=int, default=64, help="of one transaction")
    parser.add_argument("--answer-bytes", type=int, default=2_000)
    parser.add_argument("--months", type=int, default=12, help="with partitions, beside those to come")
    parser.add_argument("--groups", type=int, default=1, help="that record at once")
    options = parser.parse_args()
    results = Results(options.outcomes, options.answer_bytes, options.months, options.groups)
    with own_server() as (server, folder):
        database = prepare(server, results)
        measure(server, database, results, options.rounds)
        measure_group(server, database, folder, results, options.rounds)
        database.dispose()
    Console().print(table(results))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({**asdict(results), "ratio": results.ratio, "group_ratio": results.group_ratio}, indent=2) + "\n"
    )


def prepare(server: EmbeddedPostgres, results: Results) -> Engine:
    """What every round needs, on an empty server."""
    migrate(server.url)
    execute(server.url, CUSTOMER.format(model=MODEL, path=f"/models/{MODEL}"))
    for month in range(1, results.num_months + 1):
        execute(server.url, f"SELECT make_request_partitions(request_month(now()) - {month})")
    return make_engine(server.url)


def measure(
    server: EmbeddedPostgres, database: Engine, results: Results, num_rounds: int, num_transactions: int = 64
) -> None:
    """Transactions alone; one round of each kind warms up."""
    for number in range(num_rounds + 1):
        for place, (kind, left_out) in enumerate(KINDS.items()):
            ids = [f"batch_{number}_{place}_{group}" for group in range(results.num_groups)]
            work = [_claim(server, database, batch_id, results, num_transactions) for batch_id in ids]
            with leaving_out(left_out):
                took = _record(server, database, work, results.num_outcomes)
            if number:
                for series, value in zip(
                    (results.milliseconds, results.client_cpu, results.server_cpu), took, strict=True
                ):
                    series[kind].append(value / num_transactions)


def measure_group(server: EmbeddedPostgres, database: Engine, folder: Path, results: Results, num_rounds: int) -> None:
    """The same for a whole group, whose engine takes no time."""
    model = write_model(folder / MODEL)
    for number in range(num_rounds + 1):
        for place, kind in enumerate(GROUP_KINDS):
            batch_id = f"batch_group_{number}_{place}"
            execute(server.url, _BATCH.format(batch=batch_id, requests=GROUP_REQUESTS, slice=SLICE_REQUESTS))
            before = time.process_time() + _server_cpu(server)
            with leaving_out(KINDS[kind]):
                seconds = _answer(database, model, batch_id)
            cpu_ms = (time.process_time() + _server_cpu(server) - before) * 1000
            if number:
                results.group_speed[kind].append(GROUP_REQUESTS / seconds)
                results.group_cpu[kind].append(cpu_ms / GROUP_REQUESTS * results.num_outcomes)


def _answer(database: Engine, model: Path, batch_id: str) -> float:
    """Seconds from the first claim to the last outcome."""
    failures: list[str] = []
    identity = GroupIdentity(id=batch_id, model=MODEL, model_path=str(model), context_length=2048, pid=os.getpid())
    settings = Settings(sweep_seconds=0.1)
    group = Group(EchoEngine(model), identity, settings, database, lambda: failures.append("a thread ended"))
    group.start()
    try:
        limit = time.monotonic() + 120
        while not (took := _took(database, batch_id)):
            if failures or time.monotonic() > limit:
                raise SystemExit(f"The group did not answer {batch_id}: {failures or 'it takes too long'}.")
            time.sleep(0.05)
    finally:
        group.drain(hurry=True)
        group.stop()
    return took


def _took(database: Engine, batch_id: str) -> float:
    """0 while there are requests without an outcome. By the database's clock."""
    with database.begin() as conn:
        return float(conn.scalar(_TOOK, {"batch_id": batch_id}) or 0.0)


@contextmanager
def leaving_out(names: dict[str, Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, instead in names.items():
            stack.enter_context(mock.patch(f"pipeline.jobs.recording.{name}", instead))
        yield


def _claim(
    server: EmbeddedPostgres, database: Engine, batch_id: str, results: Results, num_transactions: int
) -> list[RequestOutcome]:
    """A batch whose only slice a group holds: its outcomes, as the group would record them."""
    num_requests = num_transactions * results.num_outcomes
    execute(server.url, _BATCH.format(batch=batch_id, requests=num_requests, slice=num_requests))
    with database.begin() as conn:
        claimed = claim_slice(conn, model=MODEL, group_id=batch_id, lease_seconds=600)
        assert claimed is not None
        requests = load_requests(conn, claimed)
    answer = "word " * (results.answer_bytes // 5)
    body = json.dumps({"id": "cmpl-1", "usage": {"completion_tokens": 200}, "choices": [{"text": answer}]})
    return [_outcome(request.id, request.custom_id, claimed, body) for request in requests]


def _outcome(request_id: int, custom_id: str, claimed: ClaimedSlice, body: str) -> RequestOutcome:
    return RequestOutcome(
        request_id=request_id,
        custom_id=custom_id,
        claimed=claimed,
        kind=OutcomeKind.SUCCEEDED,
        body=body,
        usage=TokenUsage(num_prompt_tokens=200, num_cached_tokens=80, num_completion_tokens=200, engine_ms=30),
    )


def _record(
    server: EmbeddedPostgres, database: Engine, work: Sequence[list[RequestOutcome]], size: int
) -> tuple[float, float, float]:
    """Milliseconds: of the clock, of this process and of PostgreSQL's; of each group's part of it."""

    def record(outcomes: list[RequestOutcome]) -> None:
        for first in range(0, len(outcomes), size):
            with database.begin() as conn:
                record_outcomes(conn, outcomes[first : first + size])

    with ThreadPoolExecutor(len(work)) as pool:
        list(pool.map(lambda _: _ping(database), work))  # connections are there
        server_before, client_before, began = _server_cpu(server), time.process_time(), time.perf_counter()
        list(pool.map(record, work))
        seconds = time.perf_counter() - began
    client, serving = time.process_time() - client_before, _server_cpu(server) - server_before
    return seconds * 1000, client * 1000 / len(work), serving * 1000 / len(work)


def _ping(database: Engine) -> None:
    with database.begin() as conn:
        conn.exec_driver_sql("SELECT 1")


def _server_cpu(server: EmbeddedPostgres) -> float:
    """Seconds of all its processes, of those too that have ended: their parent has waited for them."""
    assert server.process is not None
    parent = psutil.Process(server.process.pid)
    seconds = 0.0
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):
            time = child.cpu_times()
            seconds += time.user + time.system
    ended = parent.cpu_times()
    return seconds + ended.children_user + ended.children_system


def table(results: Results) -> Table:
    title = (
        f"{results.num_outcomes} outcomes of {results.answer_bytes} bytes in a transaction, {results.num_groups} "
        f"groups, {results.num_months} months: {results.ratio:.2f} of the speed without billing (target {TARGET})"
    )
    shown = Table(title=title, title_justify="left")
    for heading in ("", "ms", "ms of the group's processor", "ms of PostgreSQL's", "outcomes/s"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for kind in KINDS:
        milliseconds = results.median(kind)
        shown.add_row(
            kind,
            f"{milliseconds:.2f}",
            f"{statistics.median(results.client_cpu[kind]):.2f}",
            f"{statistics.median(results.server_cpu[kind]):.2f}",
            f"{results.num_groups * results.num_outcomes / milliseconds * 1000:,.0f}",
        )
    for kind in GROUP_KINDS:
        cpu = f"{statistics.median(results.group_cpu[kind]):.2f} both"
        shown.add_row(f"a group, {kind}", "", cpu, "", f"{statistics.median(results.group_speed[kind]):,.0f}")
    shown.add_row("a group, ratio", "", f"{results.group_cpu_ratio:.2f}", "", f"{results.group_ratio:.2f}")
    return shown


if __name__ == "__main__":
    main()
