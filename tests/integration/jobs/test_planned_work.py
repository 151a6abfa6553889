from __future__ import annotations

from seeds import SeededTenant, seed_tenant, sql
from sqlalchemy import Engine
from submitting import Bench, request_line

from pipeline.jobs.preparing import prepare


def test_a_slice_says_what_it_is_expected_to_be(bench: Bench) -> None:
    shared = list(range(1, 65))
    lines = [request_line(f"r{number}", [*shared, number], max_tokens=600) for number in range(3)]
    prepare(bench.submit(lines), bench.engine)
    assert sql(
        bench.engine,
        "SELECT num_requests, num_prompt_tokens, num_shared_tokens, num_answer_tokens, num_tokens FROM slices",
    ) == [(3, 3 * 65, 2 * 64, 3 * 512, 3 * 665)]


def test_a_batch_that_is_planned_comes_in_level_with_who_waits(bench: Bench) -> None:
    bench.run(2)
    _serve(bench.engine, bench.tenant.id, 700)
    prepare(bench.submit([request_line("a")]), bench.engine)  # it has others waiting, and stays where it is
    assert sql(bench.engine, "SELECT served FROM fair_shares") == [(700,)]
    late = Bench(bench.engine, _another_tenant(bench.engine))
    late.run(1)
    assert sql(bench.engine, "SELECT served FROM fair_shares WHERE tenant_id = :id", id=late.tenant.id) == [(700,)]


def _serve(engine: Engine, tenant_id: str, cost: int) -> None:
    sql(engine, "UPDATE fair_shares SET served = :cost WHERE tenant_id = :id", cost=cost, id=tenant_id)


def _another_tenant(engine: Engine) -> SeededTenant:
    return seed_tenant(engine, "late")
