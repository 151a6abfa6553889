"""`keys`, `projects` and `audit log`, against a real database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result
from commit_faults import CommitFaults, Moment
from seeds import sql
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.tables.session import get_engine, transaction
from pipeline.tenancy.keys import Principal, authenticate


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def mistake(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def who(key: str) -> Principal:
    with transaction() as session:
        return authenticate(session, key)


def test_a_key_of_a_project_is_made_rotated_and_ended_with_it(database: Engine) -> None:
    run("keys", "create", "--tenant", "acme")
    project = printed("projects", "create", "search", "--tenant", "acme")["id"]
    made = printed(
        *("keys", "create", "--tenant", "acme", "--project", "search", "--expires", "90d"),
        *("--scopes", "batches:write,files:write"),
    )
    assert made["expires_at"]
    assert who(made["key"]).project_id == project
    assert who(made["key"]).scopes == {"batches:write", "files:write"}

    again = printed("keys", "rotate", made["id"], "--grace", "1h")
    assert again["rotated_from"] == made["id"]
    assert who(again["key"]).scopes == who(made["key"]).scopes
    listed = {key["id"]: key for key in printed("keys", "list", "--tenant", "acme")}
    assert listed[made["id"]]["expires_at"] < listed[again["id"]]["expires_at"]
    table = run("keys", "list").stdout
    assert "search" in table
    assert "files:write,batches:write" in table
    assert made["key"] not in table

    assert "is archived" in run("projects", "archive", "search", "--tenant", "acme").stdout
    listed = {key["id"]: key for key in printed("keys", "list", "--tenant", "acme")}
    assert listed[again["id"]]["revoked_at"]
    assert [(one["name"], bool(one["archived_at"])) for one in printed("projects", "list", "--tenant", "acme")] == [
        ("default", False),
        ("search", True),
    ]
    assert [one["name"] for one in printed("tenants", "list")] == ["acme"]


def test_a_key_of_an_operator_is_one_and_so_is_what_replaces_it(database: Engine) -> None:
    plain = printed("keys", "create", "--tenant", "acme")
    made = printed("keys", "create", "--tenant", "acme", "--operator")
    again = printed("keys", "rotate", made["id"])
    assert [key["is_operator"] for key in (plain, made, again)] == [False, True, True]
    assert [who(key["key"]).is_operator for key in (plain, made, again)] == [False, True, True]
    assert [key["is_operator"] for key in printed("keys", "list")] == [False, True, True]
    assert "is_operator" in run("keys", "list").stdout
    [(_, logged), *_] = sql(
        database, "SELECT object, details ->> 'is_operator' FROM audit_log WHERE object = :id", id=made["id"]
    )
    assert logged == "true"


def test_mistakes_about_keys_are_told_in_one_line(database: Engine) -> None:
    key = printed("keys", "create", "--tenant", "acme")["id"]
    assert "no project 'nope'. Projects: default" in mistake("keys", "create", "--tenant", "acme", "--project", "nope")
    assert "'files:all' is no scope" in mistake("keys", "create", "--tenant", "acme", "--scopes", "files:all")
    assert "--expires is 'soon'" in mistake("keys", "create", "--expires", "soon")
    assert "no such key" in mistake("keys", "rotate", "none")
    printed("keys", "rotate", key, "--grace", "0m")
    assert "revoked or has expired" in mistake("keys", "rotate", key)
    assert "default project" in mistake("projects", "archive", "default", "--tenant", "acme")


def test_the_log_is_shown_and_verified(database: Engine) -> None:
    key = printed("keys", "create", "--tenant", "acme", "--name", "nightly")["id"]
    run("keys", "revoke", key)

    entries = printed("audit", "log")
    assert [entry["act"] for entry in entries] == ["key.revoke", "key.create", "tenant.create"]
    assert "@" in entries[0]["actor"]
    assert [entry["act"] for entry in printed("audit", "log", "--object", key, "--act", "key.revoke")] == ["key.revoke"]
    table = run("audit", "log", "--limit", "2").stdout
    assert "key.create" in table
    assert "name=nightly" in table
    assert "tenant.create" not in table

    found = printed("audit", "verify")
    assert (found["entries"], found["faults"]) == (3, [])
    assert "3 entries, each as it was written" in run("audit", "verify", "--head", found["head"]).stdout
    assert "SEQ:HASH" in mistake("audit", "verify", "--head", "3")

    sql(database, "ALTER TABLE audit_log DISABLE TRIGGER ALL")
    sql(database, "DELETE FROM audit_log WHERE seq = 3")
    assert run("audit", "verify").exit_code == 0
    cut = run("audit", "verify", "--head", found["head"])
    assert cut.exit_code == 1
    assert cut.stdout == "Entry 3: entries 3 to 3 are missing from the end.\n"


def test_the_audit_of_the_promises_is_still_there(database: Engine, redis_url: str) -> None:
    result = run("audit")
    assert result.exit_code == 0, result.exception
    assert "Everything that was looked at agrees." in result.stdout
    assert [finding for finding in printed("audit", "--at-rest") if finding["violations"]] == []


def test_limits_are_set_and_listed(database: Engine) -> None:
    key = printed("keys", "create", "--tenant", "acme")["id"]
    printed("limits", "set", "acme", "--requests-per-minute", "100", "--enqueued-tokens", "5000")
    printed("limits", "set", "acme", "--tokens-per-minute", "0", "--key", key)
    printed("limits", "set", "acme", "--enqueued-batches", "7", "--model", "tiny")
    printed("limits", "set", "acme", "--requests-per-minute", "default")
    nothing: dict[str, object] = {"requests_per_minute": None, "tokens_per_minute": None}
    assert printed("limits", "list", "--tenant", "acme") == [
        {"tenant": "acme", "of": "tenant", **nothing},
        {"tenant": "acme", "of": key, **nothing, "tokens_per_minute": 0},
        {"tenant": "acme", "of": "tenant", "enqueued_tokens": 5000, "enqueued_batches": None},
        {"tenant": "acme", "of": "tiny", "enqueued_tokens": None, "enqueued_batches": 7},
    ]
    table = run("limits", "list").stdout
    assert "5,000" in table
    assert "no limit" in table
    assert [entry["details"]["model"] for entry in printed("audit", "log", "--act", "limits")[1:2]] == ["tiny"]

    run("keys", "create", "--tenant", "globex")
    assert "none of the tenant" in mistake("limits", "set", "globex", "--key", key, "--requests-per-minute", "1")
    assert "none of the tenant" in mistake("budgets", "set", "globex", "5", "--key", key)
    budget = printed("budgets", "set", "acme", "5", "--key", key)["id"]
    assert [(one["id"], one["scope"]) for one in printed("budgets", "list")] == [(budget, key)]
    assert "Give at least one limit" in mistake("limits", "set", "acme")
    assert "Give at least one limit" in mistake("limits", "set", "acme", "--model", "m", "--tokens-per-minute", "1")
    assert "is '-1': give a number" in mistake("limits", "set", "acme", "--enqueued-tokens=-1")


def test_a_tenant_is_erased_when_its_name_is_given_twice(
    database: Engine, redis_url: str, set_before_start: Callable[[str, object], None], tmp_path: Path
) -> None:
    set_before_start("SIGNING_KEY_FILE", tmp_path / "key.pem")
    key = printed("keys", "create", "--tenant", "acme")["key"]
    assert "--confirm is 'acne'" in mistake("tenants", "erase", "acme", "--confirm", "acne")
    assert who(key).tenant_id

    done = run("tenants", "erase", "acme", "--confirm", "acme")
    assert done.exit_code == 0, done.exception
    assert done.stdout.startswith("acme is erased: 0 answers, 0 batches, ")
    [record] = printed("tenants", "erasures", "--tenant", "acme")
    assert record["is_valid"]
    assert json.loads(record["statement"])["tenant"] == "acme"
    assert "valid" in run("tenants", "erasures").stdout
    assert printed("tenants", "list")[0]["erased_at"]
    assert [entry["act"] for entry in printed("audit", "log", "--act", "tenant")][:2] == [
        "tenant.erase",
        "tenant.erase_begun",
    ]
    sql(database, "ALTER TABLE erasures DISABLE TRIGGER ALL")
    sql(database, "UPDATE erasures SET statement = replace(statement, 'acme', 'other')")
    changed = run("tenants", "erasures")
    assert changed.exit_code == 1
    assert "NOT VALID" in changed.stdout


def test_a_command_whose_commit_may_have_arrived_says_to_look_before_it_is_done_again(database: Engine) -> None:
    run("keys", "create", "--tenant", "acme")
    grant = ("credits", "grant", "acme", "10", "--reason", "prepaid")
    with CommitFaults(lambda *_: Moment.AFTER).of(get_engine()):
        assert "may or may not have been done" in mistake(*grant)
    assert [entry["act"] for entry in printed("audit", "log", "--limit", "1")] == ["credit.grant"]
