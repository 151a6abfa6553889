"""How long the usage and the costs of one key and month take, over ten million meters of answers.

    python -m benchmarks.usage_query [--events 10000000]

Generates the answers in SQL, of one month and 20 keys of a tenant, has the roll-ups made from them as
`ryzanstein usage rebuild-rollups` does, and asks for a month of one key by day, by hour and by line item; and of all
keys. The same sum over the answers themselves is the peer. Needs 8 GB of disk, and takes minutes. Writes
`benchmarks/results/usage-query.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks.databases import CUSTOMER, execute, own_server
from benchmarks.machine import describe_machine
from pipeline.billing.rollups import rebuild
from pipeline.billing.usage_buckets import CostsBy, UsageBy, Wanted, Width, cost_results, usage_results
from pipeline.embedded import EmbeddedPostgres
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine

RESULT: Final = Path(__file__).parent / "results" / "usage-query.json"
TARGET_MS: Final = 50.0
NUM_KEYS: Final = 20
#: Meters of a request.
NUM_METERS: Final = 3
#: Of each question.
NUM_TIMES: Final = 20
MONTH: Final = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))

#: Answered side by side, all month long.
NUM_BATCHES: Final = 600

_BATCHES: Final = """
    INSERT INTO api_keys (id, tenant_id, name, short_id, secret_hash)
    SELECT 'key_' || n, 'tenant_1', 'k' || n, 's' || n, '' FROM generate_series(0, {keys}) n ON CONFLICT DO NOTHING;
    INSERT INTO batches (id, tenant_id, api_key_id, input_file_id, endpoint, completion_window, on_invalid, status,
                         expires_at, model)
    SELECT 'batch_' || n, 'tenant_1', 'key_' || n % {keys}, 'file_1', '/v1/completions', '24h', 'fail', 'completed',
           now(), CASE WHEN n % 3 = 0 THEN 'large' ELSE 'tiny' END
    FROM generate_series(0, {batches} - 1) n
"""
_RESULTS: Final = """
    INSERT INTO results (request_id, batch_id, body, num_line_bytes, slice_id, lease_epoch, group_id, created_at,
                         tenant_id, num_uncached_tokens, num_cached_tokens, num_output_tokens, engine_ms, rate_card_id,
                         ledger_transaction_id, uncached_amount, cached_amount, output_amount)
    SELECT r, 'batch_' || r % {batches}, '{{}}', 2, 1, 1, 'group-' || r % 4,
           timestamptz '2026-10-01 00:00Z' + (r - {first}) * interval '31 days' / {requests},
           'tenant_1', 1 + r % 997, 1 + r % 97, 1 + r % 499, 30, 1, 1, (1 + r % 997) * 0.137 * 0.000001 * 0.667,
           (1 + r % 97) * 0.137 * 0.000001 * 0.667, (1 + r % 499) * 0.137 * 0.000001 * 0.667
    FROM generate_series({first}, {last}) r
"""
#: Rows beside those of the rebuilt shard, which is one: as many as groups that record at once would have made.
_AS_OF_FOUR_GROUPS: Final = """
    INSERT INTO usage_rollups (tenant_id, period, starts_at, project_id, api_key_id, model, service_class, meter,
                               currency, shard, num_events, quantity, engine_ms, amount)
    SELECT tenant_id, period, starts_at, project_id, api_key_id, model, service_class, meter, currency, n, 0, 0, 0, 0
    FROM usage_rollups, generate_series(1, 3) n
"""
#: The peer: what a service without roll-ups asks for.
_FROM_EVENTS: Final = text("""
    SELECT date_trunc('day', occurred_at, 'UTC'), sum(quantity) FILTER (WHERE meter <> 'output'),
           sum(quantity) FILTER (WHERE meter = 'output')
    FROM metered_usage
    WHERE tenant_id = 'tenant_1' AND api_key_id = 'key_7' AND occurred_at >= :starts_at AND occurred_at < :ends_at
    GROUP BY 1 ORDER BY 1
""")


@dataclass
class Results:
    num_events: int
    machine: dict[str, Any] = field(default_factory=describe_machine)
    fill_seconds: float = 0.0
    rebuild_seconds: float = 0.0
    num_rollups: int = 0
    #: Milliseconds, by question.
    milliseconds: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    options = parser.parse_args()
    results = Results(options.events)
    with own_server(fsync=False) as (server, _):
        measure(server, results)
    Console().print(table(results))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(asdict(results), indent=2) + "\n")


def measure(server: EmbeddedPostgres, results: Results) -> None:
    """On an empty server. Raises where roll-ups and events do not agree."""
    migrate(server.url)
    database = make_engine(server.url)
    began = time.perf_counter()
    _fill(server, results.num_events // NUM_METERS)
    results.fill_seconds = time.perf_counter() - began
    began = time.perf_counter()
    rebuild(database)
    results.rebuild_seconds = time.perf_counter() - began
    execute(server.url, _AS_OF_FOUR_GROUPS)
    with database.connect() as conn:
        results.num_rollups = int(conn.scalar(text("SELECT count(*) FROM usage_rollups")) or 0)
    execute(server.url, "VACUUM ANALYZE usage_rollups")
    with Session(database) as session:
        assert rebuild(database).num_corrected == 0
        by_day = usage_results(session, _wanted(Width.DAY, "key_7"))
        from_events = session.execute(_FROM_EVENTS, {"starts_at": MONTH[0], "ends_at": MONTH[1]}).all()
        assert [one.num_output_tokens for one in by_day] == [row[2] for row in from_events]
    for question, ask in QUESTIONS.items():
        num_times = 3 if question.startswith("peer") else NUM_TIMES
        results.milliseconds[question] = [_time(database, ask) for _ in range(num_times)]
    database.dispose()


def _fill(server: EmbeddedPostgres, num_requests: int) -> None:
    execute(server.url, CUSTOMER.format(model="tiny", path="/models/tiny"))
    with psycopg.connect(server.url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as conn:
        [first] = conn.execute("SELECT (request_month(now()) << 40) + 1").fetchone() or [0]
    values = {"first": first, "last": first + num_requests - 1, "requests": num_requests, "keys": NUM_KEYS}
    values["batches"] = NUM_BATCHES
    execute(server.url, _BATCHES.format(**values))
    execute(server.url, _RESULTS.format(**values))
    execute(server.url, "VACUUM ANALYZE results, batches")


def _wanted(width: Width, *keys: str) -> Wanted:
    return Wanted(tenant_id="tenant_1", width=width, starts_at=MONTH[0], ends_at=MONTH[1], api_key_ids=keys)


def _time(database: Engine, ask: Callable[[Session], object]) -> float:
    with Session(database) as session:
        session.connection()
        began = time.perf_counter()
        ask(session)
        return (time.perf_counter() - began) * 1000


QUESTIONS: Final[dict[str, Callable[[Session], object]]] = {
    "usage of one key, by day": lambda session: usage_results(session, _wanted(Width.DAY, "key_7")),
    "usage of one key, by hour and model": lambda session: usage_results(
        session, _wanted(Width.HOUR, "key_7"), [UsageBy.MODEL]
    ),
    "costs of one key, by line item": lambda session: cost_results(
        session, _wanted(Width.DAY, "key_7"), [CostsBy.LINE_ITEM]
    ),
    "usage of the tenant, by day and key": lambda session: usage_results(session, _wanted(Width.DAY), [UsageBy.KEY]),
    "peer: one key, by day, from the answers": lambda session: session.execute(
        _FROM_EVENTS, {"starts_at": MONTH[0], "ends_at": MONTH[1]}
    ).all(),
}


def table(results: Results) -> Table:
    title = f"{results.num_events:,} events of a month, {results.num_rollups:,} roll-ups"
    shown = Table(title=title, title_justify="left")
    for heading in ("", "median", "longest", "target"):
        shown.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for question, milliseconds in results.milliseconds.items():
        target = "" if question.startswith("peer") else f"< {TARGET_MS:g} ms"
        shown.add_row(question, f"{statistics.median(milliseconds):.1f} ms", f"{max(milliseconds):.1f} ms", target)
    shown.add_row("rebuilding the roll-ups", f"{results.rebuild_seconds:.1f} s", "", "")
    return shown


if __name__ == "__main__":
    main()
