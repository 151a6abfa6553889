"""How fair the claim is: the real claim and recording against PostgreSQL, with simulated groups in simulated time.

    python -m benchmarks.fairness [--tenants 2 10 50 200] [--large 100000]

Each with claims by share, and, in the same run, with claims in the order of arrival:

- tenants with endless work, half with short requests and half with long ones: the largest service gap between any two,
  against its bound (docs/fairness.md), and Jain's index of what they were served;
- two tenants of which one has three times the weight;
- a tenant with 100 requests beside one with 100,000, of the same class, and `priority` beside `flex`: its time, against
  its time alone.

Writes `benchmarks/results/fairness.json` and `fairness.svg`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from benchmarks.databases import databases
from benchmarks.fairness_plot import draw
from benchmarks.machine import describe_machine
from benchmarks.simulated_groups import SEQUENCES, Claim, SimulatedGroup, Watch, simulate
from benchmarks.simulated_tenants import (
    MODEL,
    SimulatedTenant,
    add_batch,
    add_model,
    add_tenant,
    claim_first_in,
    planned_sizes,
)
from pipeline.jobs.claiming import ClaimedSlice, claim_slice
from pipeline.settings import get_settings
from pipeline.tables import ServiceClass

RESULTS = Path(__file__).parent / "results"

#: Prompt tokens and max_tokens of requests; answers are of any length up to that.
SHORT: Final = (32, 64)
LONG: Final = (128, 400)
#: Requests in a slice of the tenants with endless work.
_SLICE_REQUESTS: Final = 16
#: Weighted tokens that each of them is served at least: some ten slices, so that one more or less says little.
_LEAST_SERVICE: Final = 60_000
#: Of the tenant with few requests, and of the one with many.
_FEW: Final = (100, (100, 300))
_SAME: Final = (ServiceClass.STANDARD, ServiceClass.STANDARD)
_SOONER: Final = (ServiceClass.PRIORITY, ServiceClass.FLEX)
#: When the tenant with few requests comes, in seconds, and its pause before it comes again.
_FIRST_SECONDS: Final = 20.0
_PAUSE_SECONDS: Final = 3.7


def claim_by_share(conn: Connection, group_id: str, last: ClaimedSlice | None) -> ClaimedSlice | None:
    return claim_slice(conn, model=MODEL, group_id=group_id, lease_seconds=86_400, last_slice=last)


CLAIMS: Final[dict[str, Claim]] = {"share": claim_by_share, "arrival": claim_first_in}


@dataclass(frozen=True, slots=True)
class Endless:
    """Tenants who always have something waiting, over the time that all of them had."""

    claim: str
    num_tenants: int
    simulated_seconds: float
    #: Weighted tokens over weights.
    greatest_gap: float
    bound: float
    jain: float
    #: Greatest and least service of a tenant, in weighted tokens over its weight.
    most: float
    least: float
    #: (seconds, service of the first tenant, of the second), for a plot.
    course: list[tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Beside:
    """Simulated seconds that a small batch took: alone, and each time that it came beside a large one."""

    claim: str
    #: Of the small batch, and of the large one.
    classes: tuple[ServiceClass, ServiceClass]
    alone: float
    beside: list[float]

    @property
    def ratio(self) -> float:
        return max(self.beside) / self.alone


def jain(services: Sequence[float]) -> float:
    """Jain's index: 1 where all are served alike, 1/n where one is served alone."""
    squares = sum(service * service for service in services)
    return sum(services) ** 2 / (len(services) * squares) if squares else 1.0


def endless(
    database: Engine,
    claim: str,
    weights: Sequence[int],
    *,
    service: int,
    num_groups: int = 2,
    num_sequences: int = SEQUENCES,
) -> Endless:
    """Run until every tenant has had about so many weighted tokens by its weight, while all have work."""
    with Session(database) as session, session.begin():
        add_model(session, num_groups)
        tenants = [add_tenant(session, f"tenant-{place}", weight) for place, weight in enumerate(weights)]
    total, costs = service * sum(weights), {}
    with database.begin() as conn:
        for place, (tenant, weight) in enumerate(zip(tenants, weights, strict=True)):
            prompt, answer = (SHORT, LONG)[place % 2]
            # Twice what it should get, by half of max_tokens per answer: more than enough.
            num_slices = 2 * service * weight // (_SLICE_REQUESTS * (prompt + answer)) + 60
            sizes = [_SLICE_REQUESTS] * num_slices
            add_batch(conn, tenant, sizes=sizes, num_prompt_tokens=prompt, max_tokens=answer)
            costs[tenant.id] = _SLICE_REQUESTS * (prompt + 2 * answer) / weight
    watch = Watch()
    groups = _groups(database, CLAIMS[claim], watch, num_groups, num_sequences)
    seconds = simulate(groups, until=lambda _: watch.total >= total)
    return _judge(claim, tenants, weights, watch, costs, seconds)


def _judge(
    claim: str,
    tenants: Sequence[SimulatedTenant],
    weights: Sequence[int],
    watch: Watch,
    costs: dict[str, float],
    seconds: float,
) -> Endless:
    served = {tenant.id: 0.0 for tenant in tenants}
    weight_of = {tenant.id: weight for tenant, weight in zip(tenants, weights, strict=True)}
    first, second = tenants[0].id, tenants[1].id
    gap, course = 0.0, []
    for moment, tenant_id, _, cost, _ in watch.served:
        served[tenant_id] += cost / weight_of[tenant_id]
        gap = max(gap, max(served.values()) - min(served.values()))
        course.append((round(moment, 2), served[first], served[second]))
    # Of the two tenants that have the most at work by what that can cost.
    at_work = sorted(watch.most_at_work[tenant.id] * costs[tenant.id] for tenant in tenants)
    affinity = get_settings().fair_affinity_tokens / min(weights)
    return Endless(
        claim=claim,
        num_tenants=len(tenants),
        simulated_seconds=seconds,
        greatest_gap=gap,
        bound=sum(at_work[-2:]) + affinity,
        jain=jain(list(served.values())),
        most=max(served.values()),
        least=min(served.values()),
        course=course[:: max(1, len(course) // 100)],
    )


def few_beside_many(
    make_database: Callable[[], Engine],
    claim: str,
    num_many: int,
    *,
    times: int,
    num_groups: int = 4,
    first_seconds: float = _FIRST_SECONDS,
    classes: tuple[ServiceClass, ServiceClass] = (ServiceClass.STANDARD, ServiceClass.STANDARD),
) -> Beside:
    """The time of a batch of 100 requests alone, and, so many times, beside one of `num_many` of the same kind."""
    time_of_few = partial(_time_of_few, claim=CLAIMS[claim], num_groups=num_groups, classes=classes)
    alone = time_of_few(make_database(), num_many=0, times=1, began=0.0)
    beside = time_of_few(make_database(), num_many=num_many, times=times, began=first_seconds)
    return Beside(claim, classes, alone[0], beside)


def _time_of_few(
    database: Engine,
    *,
    claim: Claim,
    num_groups: int,
    classes: tuple[ServiceClass, ServiceClass],
    num_many: int,
    times: int,
    began: float,
) -> list[float]:
    num_few, (prompt, answer) = _FEW
    with Session(database) as session, session.begin():
        add_model(session, num_groups)
        few, many = add_tenant(session, "few"), add_tenant(session, "many")

    def submit(tenant: SimulatedTenant, num_requests: int, service_class: ServiceClass) -> str:
        with database.begin() as conn:
            sizes = planned_sizes(conn, num_requests, prompt, answer)
            return add_batch(
                conn,
                tenant,
                sizes=sizes,
                num_prompt_tokens=prompt,
                max_tokens=answer,
                service_class=service_class,
            )

    if num_many:
        submit(many, num_many, classes[1])
    watch, durations = Watch(), []
    groups = _groups(database, claim, watch, num_groups)
    for _ in range(times):
        batch_ids: list[str] = []
        seen = len(watch.served)
        arrivals = [(began, lambda ids=batch_ids: ids.append(submit(few, num_few, classes[0])))]

        def is_done(_: float, ids: list[str] = batch_ids, seen: int = seen) -> bool:
            return bool(ids) and sum(e[4] for e in watch.served[seen:] if e[2] == ids[0]) == num_few

        ended = simulate(groups, arrivals=arrivals, until=is_done)
        durations.append(ended - began)
        began = ended + _PAUSE_SECONDS
    return durations


def _groups(
    database: Engine, claim: Claim, watch: Watch, num_groups: int, num_sequences: int = SEQUENCES
) -> list[SimulatedGroup]:
    return [
        SimulatedGroup(f"group-{number}@simulated", database, claim, watch, num_sequences)
        for number in range(num_groups)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[2, 10, 50, 200])
    parser.add_argument("--work", type=int, default=4_000_000, help="Weighted tokens that tenants share, at least.")
    parser.add_argument("--large", type=int, default=100_000, help="Requests of the large batch.")
    options = parser.parse_args()
    console = Console()
    runs: list[Endless] = []
    weighted: list[Endless] = []
    beside: list[Beside] = []
    with databases() as make:
        for claim in CLAIMS:
            for number in options.tenants:
                service = max(options.work // number, _LEAST_SERVICE)
                runs.append(endless(make(), claim, [1] * number, service=service))
                console.print(_line(runs[-1]))
            weighted.append(endless(make(), claim, [1, 3], service=options.work // 4))
            console.print("weights 1 and 3:", _line(weighted[-1]))
            for classes in (_SAME, _SOONER) if claim == "share" else (_SAME,):
                times = 5 if claim == "share" else 1
                beside.append(few_beside_many(make, claim, options.large, times=times, classes=classes))
                console.print(_beside_line(beside[-1], options.large))
    RESULTS.mkdir(exist_ok=True)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "endless": [asdict(run) for run in runs],
        "weighted": [asdict(run) for run in weighted],
        "beside": [{**asdict(one), "ratio": one.ratio, "num_many": options.large} for one in beside],
    }
    (RESULTS / "fairness.json").write_text(json.dumps(report) + "\n")
    by_number: dict[int, dict[str, Endless]] = defaultdict(dict)
    for run in runs:
        by_number[run.num_tenants][run.claim] = run
    (RESULTS / "fairness.svg").write_text(draw(by_number))


def _line(run: Endless) -> str:
    return (
        f"{run.num_tenants} tenants by {run.claim}: service {run.least:,.0f} to {run.most:,.0f}, greatest gap "
        f"{run.greatest_gap:,.0f} of {run.bound:,.0f} allowed, Jain's index {run.jain:.4f}"
    )


def _beside_line(run: Beside, num_many: int) -> str:
    kinds = " beside ".join(run.classes)
    return (
        f"100 requests beside {num_many:,}, {kinds}, by {run.claim}: {statistics.median(run.beside):.1f} s (at most "
        f"{max(run.beside):.1f}); alone {run.alone:.1f} s: {run.ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
