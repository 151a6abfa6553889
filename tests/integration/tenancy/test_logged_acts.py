"""Acts on more than tenants: each leaves an entry in the log."""

from __future__ import annotations

from decimal import Decimal

from seeds import seed_tenant, sql
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.fleet import want_drain
from pipeline.jobs.fairness import set_weight
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries, verify


def acts() -> list[tuple[str, str]]:
    with transaction() as session:
        assert verify(session).faults == ()
        return [(entry.act, entry.object) for entry in reversed(list_entries(session))]


def test_draining_and_shares_are_logged(database: Engine) -> None:
    tenant = seed_tenant(database)
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 1)")
    sql(
        database,
        "INSERT INTO groups (id, model, state, pid, rank_pids, info)"
        " VALUES ('group-0@here', 'tiny', 'ready', 1, '[]', '{}')",
    )
    with transaction() as session:
        want_drain(session, "group-0", is_wanted=True)
        want_drain(session, "group-0", is_wanted=False)
        set_weight(session, tenant.id, Decimal("2.5"))
    assert acts() == [("group.drain", "group-0@here"), ("group.resume", "group-0@here"), ("share.set", tenant.id)]


def test_prices_of_a_model_are_logged(database: Engine) -> None:
    done = CliRunner().invoke(app, ["rates", "set", "tiny", "--input", "0.1", "--output", "0.4"])
    assert done.exit_code == 0, done.exception
    assert ("rates.set", "tiny") in acts()
