"""How long the pages of the console take, with 1,000 batches and 1,000,000 requests in SQL.

    python -m benchmarks.console [--batches 1000] [--requests 1000000] [--times 20]

Generates them in SQL with answers, usage events and prices, on a PostgreSQL of its own; starts a gateway, signs in with
the key of an operator and asks for every page, fragment and file, one after the other, over HTTP. A time is from the
question to the last byte. Needs 6 GB of disk, and takes two minutes. Writes `benchmarks/results/console.json`, and
fails where the median of a page is over the target.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
from rich.console import Console
from rich.table import Table

from benchmarks.console_rows import Filled, fill
from benchmarks.databases import own_server
from benchmarks.machine import describe_machine
from pipeline.embedded import EmbeddedPostgres, EmbeddedRedis, new_password
from pipeline.processes import free_port, spawn, stop, wait_until
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine

RESULT: Final = Path(__file__).parent / "results" / "console.json"
TARGET_MS: Final = 200.0
#: How those pages are called that show that there is nothing; all others show what there is.
NOTHING: Final = ("that is not there", "(none)")
#: Questions before those that are timed.
NUM_WARM: Final = 3


@dataclass
class Results:
    num_batches: int = 0
    num_requests: int = 0
    machine: dict[str, Any] = field(default_factory=describe_machine)
    #: Milliseconds, by page.
    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    #: Of the longest answer, by page.
    num_bytes: dict[str, int] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    results = Results()
    with own_server(fsync=False) as (postgres, folder), _settings(postgres, folder):
        migrate(postgres.url)
        filled = fill(make_engine(postgres.url), options.batches, options.requests)
        results.num_batches, results.num_requests = filled.num_batches, filled.num_requests
        with _gateway(folder) as address:
            measure(address, filled, options.times, results)
    Console().print(table(results))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(asdict(results), indent=2) + "\n")
    if slow := [page for page, times in results.milliseconds.items() if statistics.median(times) > TARGET_MS]:
        raise SystemExit(f"Over {TARGET_MS:g} ms: {', '.join(slow)}")


def pages(filled: Filled) -> dict[str, str]:
    """Every page of the console that is looked at, with what is hardest for it, by what it is."""
    largest, ended, failed = (f"/console/batches/{one}" for one in (filled.largest, filled.completed, filled.failed))
    return {
        "batches": "/console/batches",
        "batches, in progress": "/console/batches?status=in_progress",
        "batches, paused": "/console/batches?status=paused",
        "batches, failed": "/console/batches?status=failed",
        "batches, of one model": "/console/batches?model=large",
        "batches, by file": "/console/batches?search=requests-900",
        "batches, by an id that is not there": "/console/batches?search=batch_none",
        "batch of 50,000 that runs": largest,
        "batch that has ended": ended,
        "batch that failed": failed,
        "requests": f"{largest}/requests",
        "requests, near the end": f"{largest}/requests?after=49000",
        "requests, failed": f"{largest}/requests?outcome=failed",
        "requests, cancelled (none)": f"{largest}/requests?outcome=cancelled",
        "requests, by custom_id": f"{largest}/requests?custom_id=request-24000",
        "requests, by a custom_id that is not there": f"{largest}/requests?custom_id=none",
        "one request": f"{largest}/requests/20000",
        "answers beside prompts": f"{largest}/answers",
        "answers, from the middle": f"{largest}/answers?after=20000",
        "errors of requests": f"{largest}/errors",
        "errors of requests, from the middle": f"{largest}/errors?after=20000",
        "errors of lines": f"{failed}/errors",
        "upload": "/console/upload",
        "usage, 30 days": "/console/usage",
        "usage, 90 days by key": "/console/usage?span=90d&by=key",
        "usage, 24 hours": "/console/usage?span=24h&by=project",
        "usage, as a file": "/console/usage.csv?span=90d&by=key",
        "costs": "/console/costs",
        "budgets": "/console/budgets",
        "keys": "/console/keys",
        "groups": "/console/groups",
        "queue": "/console/queue",
    }


def measure(address: str, filled: Filled, num_times: int, results: Results) -> None:
    """Raises AssertionError for a page that is no success, or shows nothing."""
    for kind, key in (("", filled.operator_key), ("tenant: ", filled.tenant_key)):
        with httpx2.Client(base_url=address, timeout=120) as client:
            assert client.post("/console/sign-in", data={"key": key}).status_code == 303
            for page, path in pages(filled).items():
                if kind and page not in ("groups", "queue", "budgets", "usage, 30 days"):
                    continue  # the same as the operator's
                for number in range(NUM_WARM + num_times):
                    began = time.perf_counter()
                    answer = client.get(path)
                    milliseconds = (time.perf_counter() - began) * 1000
                    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
                    assert ("empty-title" in answer.text) == page.endswith(NOTHING), f"{path}: {answer.text}"
                    if number >= NUM_WARM:
                        results.milliseconds.setdefault(kind + page, []).append(milliseconds)
                results.num_bytes[kind + page] = len(answer.content)


@contextmanager
def _settings(postgres: EmbeddedPostgres, folder: Path) -> Iterator[None]:
    """Name the database, a Redis of its own and a folder for blobs in the settings, which the gateway then reads."""
    blobs = folder / "blobs"
    blobs.mkdir()
    redis = EmbeddedRedis(folder / "redis", new_password(), folder / "redis.log")
    redis.start()
    try:
        named = {"DATABASE_URL": postgres.url, "REDIS_URL": redis.url, "STORAGE_URL": f"file://{blobs}"}
        # Limits are not what is measured.
        named |= {"TENANT_REQUESTS_PER_MINUTE": "0"}
        os.environ.update({PREFIX + name: value for name, value in named.items()})
        get_settings.cache_clear()
        yield
    finally:
        redis.stop()


@contextmanager
def _gateway(folder: Path) -> Iterator[str]:
    """In a process of its own, so that it shares no processor time with who asks."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "pipeline.cli", "gateway", "--port", str(port)]
    process = spawn(argv, log_path=folder / "gateway.log")
    try:
        wait_until(lambda: _is_ready(address), what="The gateway", timeout=60, process=process)
        yield address
    finally:
        stop(process, timeout=30)


def _is_ready(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def table(results: Results) -> Table:
    title = f"{results.num_batches:,} batches, {results.num_requests:,} requests"
    shown = Table(title=title, title_justify="left")
    for heading in ("page", "median", "longest", "kB"):
        shown.add_column(heading, justify="left" if heading == "page" else "right", no_wrap=True)
    for page, times in results.milliseconds.items():
        median = statistics.median(times)
        shown_median = f"{median:.1f} ms" + (" !" if median > TARGET_MS else "")
        shown.add_row(page, shown_median, f"{max(times):.1f} ms", f"{results.num_bytes[page] / 1000:.0f}")
    return shown


if __name__ == "__main__":
    main()
