"""What a claim costs with many slices and tenants waiting: python -m benchmarks.claims [--slices 10000] [--paused 0].

A transaction with nothing but the claim, without waiting for a disk, before PostgreSQL has statistics of the tables and
with them: it chooses its plans by them. Prints medians; writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

from rich.console import Console
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks.databases import databases
from benchmarks.fairness import claim_by_share
from benchmarks.simulated_tenants import add_batch, add_model, add_tenant
from pipeline.jobs.claiming import ClaimedSlice

_TENANTS = (1, 20, 200)
_NUM_CLAIMS = 400
_NUM_GROUPS = 8
#: Slices that groups hold, all together.
_NUM_AT_WORK = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=10_000)
    parser.add_argument("--paused", type=int, default=0, help="slices of a paused batch, before those of a tenant")
    options = parser.parse_args()
    num_slices, num_paused = options.slices, options.paused
    with databases() as make:
        for num_tenants, has_statistics in itertools.product(_TENANTS, (False, True)):
            database = make()
            _fill(database, num_tenants, num_slices, num_paused)
            if has_statistics:
                with database.begin() as conn:
                    conn.execute(text("ANALYZE"))
            times = [1_000 * seconds for seconds in _time_claims(database)]
            p95 = statistics.quantiles(times, n=20)[-1]
            Console().print(
                f"{num_slices:,} slices of {num_tenants} tenants, {num_paused:,} paused, "
                f"{'with' if has_statistics else 'without'} statistics: "
                f"median {statistics.median(times):.2f} ms, 95 of 100 below {p95:.2f} ms"
            )


def _fill(database: Engine, num_tenants: int, num_slices: int, num_paused: int) -> None:
    with Session(database) as session, session.begin():
        add_model(session, _NUM_GROUPS)
        tenants = [add_tenant(session, f"tenant-{number}") for number in range(num_tenants)]
    if num_paused:
        with database.begin() as conn:
            batch_id = add_batch(conn, tenants[0], sizes=[1] * num_paused, num_prompt_tokens=8, max_tokens=8)
            pause = "UPDATE batches SET pause_reason = 'client', paused_at = now() WHERE id = :id"
            conn.execute(text(pause), {"id": batch_id})
    for tenant in tenants:
        with database.begin() as conn:
            add_batch(conn, tenant, sizes=[1] * (num_slices // num_tenants), num_prompt_tokens=8, max_tokens=8)


def _time_claims(database: Engine) -> list[float]:
    """Seconds. What was claimed long ago is done meanwhile."""
    times: list[float] = []
    last: dict[str, ClaimedSlice] = {}
    held: list[int] = []
    for number in range(_NUM_CLAIMS):
        group = f"group-{number % _NUM_GROUPS}@simulated"
        began = time.perf_counter()
        with database.begin() as conn:
            claimed = claim_by_share(conn, group, last.get(group))
        times.append(time.perf_counter() - began)
        assert claimed is not None
        last[group] = claimed
        held.append(claimed.id)
        if len(held) > _NUM_AT_WORK:
            with database.begin() as conn:
                conn.execute(text("UPDATE slices SET status = 'done' WHERE id = :id"), {"id": held.pop(0)})
    return times


if __name__ == "__main__":
    main()
