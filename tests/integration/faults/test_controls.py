"""Guards are taken away one at a time, and what looks at the result must see it.

Each scenario is a fault that a guard is there for. With the guard nothing is found; what is found without it is the
proof that the tests of the promise can fail. Where two guards stand one behind the other, both have to go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import UniqueViolation
from running_gateways import new_tenant, serve
from sqlalchemy import Engine, text
from submitting import Bench, at_once

from pipeline.billing.rating import TokenUsage
from pipeline.jobs import partial_outputs, recording, sweeping
from pipeline.jobs.audit import audit
from pipeline.jobs.claiming import load_requests
from pipeline.jobs.partial_outputs import OutputPart, save_parts
from pipeline.jobs.recording import RequestOutcome, record_outcomes
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import OutcomeKind

Scenario = Callable[[Bench], list[str]]


@pytest.fixture
def bench(database: Engine, redis_url: str, log_path: Path, settings_env: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    for name in ("LEASE_SECONDS", "SWEEP_SECONDS"):
        settings_env.setenv(PREFIX + name, "0.05")
    get_settings.cache_clear()
    return Bench.make(database, tmp_path / "tiny")


# --- faults; each returns what is wrong after it


def stale_group(bench: Bench) -> list[str]:
    """A group answers after another has its slice."""
    return _answer_late(bench, "group-1@test")


def stale_life(bench: Bench) -> list[str]:
    """A group answers under a lease that it has lost, while it has another on the same slice."""
    return _answer_late(bench, "group-0@test")


def _answer_late(bench: Bench, second_group: str) -> list[str]:
    bench.run(4)
    first = bench.claim("group-0@test", lease_seconds=0.01)
    time.sleep(0.02)
    sweeping.sweep(bench.engine)
    second = bench.claim(second_group)
    bench.answer(first, 2)
    bench.answer(second)
    return _found(bench)


def lost_group(bench: Bench) -> list[str]:
    """A group dies with a slice."""
    bench.run(2)
    bench.claim(lease_seconds=0.01)
    time.sleep(0.15)
    sweeping.sweep(bench.engine)
    return _found(bench)


def unknown_commit(bench: Bench) -> list[str]:
    """A group does not hear of its COMMIT, and records the same outcome again."""
    bench.run(2)
    claimed = bench.claim()
    with bench.engine.begin() as conn:
        request = load_requests(conn, claimed)[0]
    outcome = RequestOutcome(
        request_id=request.id,
        custom_id=request.custom_id,
        claimed=claimed,
        kind=OutcomeKind.SUCCEEDED,
        body='{"usage":{"completion_tokens":2}}',
        usage=TokenUsage(
            num_prompt_tokens=len(request.prompt_token_ids), num_cached_tokens=0, num_completion_tokens=2, engine_ms=1
        ),
    )
    for _ in range(2):
        with bench.engine.begin() as conn:
            record_outcomes(conn, [outcome])
    return _found(bench)


def late_part(bench: Bench) -> list[str]:
    """Part of an answer is saved when the answer is there."""
    bench.run(2)
    claimed = bench.claim()
    bench.answer(claimed, 1)
    answered = next(request for request in bench.requests(claimed.batch_id) if request.outcome is not None)
    with bench.engine.begin() as conn:
        save_parts(conn, [OutputPart(request_id=answered.id, claimed=claimed, position=0, num_tokens=4, data=b"x")])
    return _found(bench)


def same_submission(bench: Bench) -> list[str]:
    """Twenty clients submit the same under one key."""
    with serve() as address:
        tenant = new_tenant(address, "globex")
        with tenant.client, tenant.http:
            file_id = tenant.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
            body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
            headers = {"Idempotency-Key": "one"}
            answers = at_once(lambda: tenant.http.post("/v1/batches", json=body, headers=headers), 20)
    ids = {answer.json()["id"] for answer in answers}
    return [f"{len(ids)} batches"] if len(ids) > 1 else []


def _found(bench: Bench) -> list[str]:
    return [invariant for invariant, _ in audit(bench.engine).violations]


# --- guards, taken away


def without(monkeypatch: pytest.MonkeyPatch, module: Any, statement: str, guard: str) -> None:
    """Take a condition out of a statement of SQL."""
    before = getattr(module, statement)
    after = str(before).replace(guard, "")
    assert after != str(before), f"{statement} has no {guard!r}"
    monkeypatch.setattr(module, statement, after if isinstance(before, str) else text(after))


def no_epochs(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    without(monkeypatch, recording, "_LOCK", "AND s.lease_epoch = held.epoch")
    without(monkeypatch, recording, "_SET_OUTCOMES", "AND s.lease_epoch = o.epoch")


def no_fence(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    no_epochs(monkeypatch, bench)
    without(monkeypatch, recording, "_LOCK", "s.group_id = %(group_id)s AND")
    without(monkeypatch, recording, "_SET_OUTCOMES", "s.group_id = %(group_id)s AND")


def no_sweeper(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    parts = {name: part for name, part in sweeping._PARTS.items() if name != "lost_slices"}
    monkeypatch.setattr(sweeping, "_PARTS", parts)


def no_look_at_outcomes(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    without(monkeypatch, recording, "_SET_OUTCOMES", "AND r.outcome IS NULL")


def no_look_at_outcomes_and_no_keys(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    no_look_at_outcomes(monkeypatch, bench)
    for table, key in {
        "results": "pk_results",
        "ledger_transactions": "uq_ledger_transactions_idempotency_key",
    }.items():
        bench.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key} CASCADE")


def no_look_at_outcomes_of_parts(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    without(monkeypatch, partial_outputs, "_SAVE", "AND r.outcome IS NULL")


def no_key_of_submissions(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    bench.execute("ALTER TABLE idempotency_keys DROP CONSTRAINT pk_idempotency_keys")


@pytest.mark.parametrize("scenario", [stale_group, stale_life, lost_group, unknown_commit, late_part, same_submission])
def test_with_every_guard_nothing_is_found(bench: Bench, scenario: Scenario) -> None:
    assert scenario(bench) == []


@pytest.mark.parametrize(
    ("take_away", "scenario"),
    [
        (no_epochs, stale_life),
        (no_fence, stale_group),
        (no_sweeper, lost_group),
        (no_look_at_outcomes_and_no_keys, unknown_commit),
        (no_look_at_outcomes_of_parts, late_part),
        (no_key_of_submissions, same_submission),
    ],
)
def test_without_its_guard_the_fault_is_found(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    take_away: Callable[[pytest.MonkeyPatch, Bench], None],
    scenario: Scenario,
) -> None:
    take_away(monkeypatch, bench)
    assert scenario(bench) != []


def test_the_keys_of_the_tables_refuse_a_second_bill_by_themselves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_look_at_outcomes(monkeypatch, bench)
    with pytest.raises(UniqueViolation):
        unknown_commit(bench)
    assert _found(bench) == []
