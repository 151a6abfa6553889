from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
from running_gateways import wait_for
from seeds import sql
from sqlalchemy import Engine

from pipeline.billing.budgets import Scope as BudgetScope
from pipeline.billing.budgets import list_budgets, set_budget
from pipeline.errors import UserError
from pipeline.tables import ApiKey, BudgetPeriod
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries
from pipeline.tenancy.keys import (
    CallLimits,
    InvalidKeyError,
    Principal,
    authenticate,
    create_key,
    revoke_key,
    rotate_key,
)
from pipeline.tenancy.limits import set_rate_limits
from pipeline.tenancy.projects import UnknownProjectError, archive_project, create_project, find_project
from pipeline.tenancy.scopes import Scope
from pipeline.tenancy.tenants import ensure_tenant

HOUR = timedelta(hours=1)


def make(**options: object) -> tuple[ApiKey, str]:
    with transaction() as session:
        return create_key(session, ensure_tenant(session, "acme").id, "nightly", **options)  # type: ignore[arg-type]


def who(key: str) -> Principal | None:
    with transaction() as session:
        try:
            return authenticate(session, key)
        except InvalidKeyError:
            return None


def test_a_key_may_do_what_its_scopes_say(database: Engine) -> None:
    _, key = make(scopes=["batches:read", " files:read", "files:read"])
    caller = who(key)
    assert caller is not None
    assert [scope for scope in Scope if caller.may(scope)] == [Scope.FILES_READ, Scope.BATCHES_READ]
    _, key = make()
    caller = who(key)
    assert caller is not None
    assert all(caller.may(scope) for scope in Scope)


@pytest.mark.parametrize("scopes", [["files:all"], [], [""]])
def test_a_scope_that_is_none_is_refused_with_those_that_there_are(database: Engine, scopes: list[str]) -> None:
    with pytest.raises(UserError, match="files:read, files:write"):
        make(scopes=scopes)


def test_a_key_is_refused_from_its_expiry_on(database: Engine) -> None:
    row, key = make(expires_after=HOUR)
    assert who(key) is not None
    sql(database, "UPDATE api_keys SET expires_at = now() WHERE id = :id", id=row.id)
    assert who(key) is None


def test_a_rotated_key_holds_for_the_grace_and_the_new_one_may_do_the_same(database: Engine) -> None:
    old, old_key = make(scopes=["files:read"])
    with transaction() as session:
        new, new_key = rotate_key(session, old.id, grace=HOUR)
    before, after = who(old_key), who(new_key)
    assert before is not None
    assert after is not None
    assert (after.tenant_id, after.project_id, after.scopes) == (before.tenant_id, before.project_id, before.scopes)
    assert (new.name, new.rotated_from, new.expires_at) == ("nightly", old.id, None)

    ((left,),) = sql(database, "SELECT expires_at - now() FROM api_keys WHERE id = :id", id=old.id)
    assert timedelta(minutes=58) < left <= HOUR
    sql(database, "UPDATE api_keys SET expires_at = now() WHERE id = :id", id=old.id)
    assert who(old_key) is None
    assert who(new_key) is not None


def test_an_expiry_that_comes_sooner_than_the_grace_stays_and_the_new_key_lasts_as_long(database: Engine) -> None:
    old, _ = make(expires_after=HOUR)
    with transaction() as session:
        new, _ = rotate_key(session, old.id, grace=timedelta(days=2))
        session.refresh(old := session.get_one(ApiKey, old.id))
        assert old.expires_at is not None
        assert new.expires_at is not None
        assert old.expires_at - old.created_at == HOUR
        assert new.expires_at - new.created_at == HOUR


def test_a_key_that_takes_the_place_of_another_is_limited_as_that_one_was(database: Engine) -> None:
    old, _ = make()
    _, other_key = make()
    with transaction() as session:
        set_rate_limits(session, old.tenant_id, {"requests_per_minute": 7}, api_key_id=old.id)
        scope = BudgetScope(tenant_id=old.tenant_id, api_key_id=old.id)
        month, _ = (
            set_budget(session, scope, currency="USD", amount=Decimal(10), period=period).id for period in BudgetPeriod
        )
    sql(database, "UPDATE budget_uses SET spent = 9, held = 0.5, alerted_percent = 80 WHERE budget_id = :id", id=month)

    with transaction() as session:
        new, new_key = rotate_key(session, old.id, grace=HOUR)
        states = [(one.budget.api_key_id, one.budget.period, one.room) for one in list_budgets(session)]

    caller, neighbour = who(new_key), who(other_key)
    assert caller is not None
    assert neighbour is not None
    assert caller.key_limits == CallLimits(requests_per_minute=7)
    assert neighbour.key_limits == CallLimits()
    assert sorted(states) == sorted(
        [
            (old.id, BudgetPeriod.MONTH, Decimal("0.5")),
            (old.id, BudgetPeriod.TOTAL, Decimal(10)),
            (new.id, BudgetPeriod.MONTH, Decimal(1)),  # what runs for the old one is paid by that
            (new.id, BudgetPeriod.TOTAL, Decimal(10)),
        ]
    )
    assert set(sql(database, "SELECT alerted_percent FROM budget_uses")) == {(80,)}


def test_a_key_is_rotated_once_and_never_when_it_is_over(database: Engine) -> None:
    old, _ = make()
    with transaction() as session:
        new, _ = rotate_key(session, old.id, grace=HOUR)
        with pytest.raises(UserError, match="replaced already"):
            rotate_key(session, old.id, grace=HOUR)
        revoke_key(session, new.id)
        with pytest.raises(UserError, match="revoked or has expired"):
            rotate_key(session, new.id, grace=HOUR)


def test_what_is_done_to_keys_and_projects_is_logged_without_secrets(database: Engine) -> None:
    old, key = make(scopes=["files:read"])
    with transaction() as session:
        rotate_key(session, key, grace=HOUR)
        revoke_key(session, key)
        project = create_project(session, old.tenant_id, "search")
        archive_project(session, project)
        entries = list(list_entries(session))[::-1]
    assert [entry.act for entry in entries] == [
        "tenant.create",
        "key.create",
        "key.rotate",
        "key.revoke",
        "project.create",
        "project.archive",
    ]
    assert entries[1].details["scopes"] == ["files:read"]
    assert entries[2].details["replaces"] == entries[3].object == old.id
    ((kept,),) = sql(database, "SELECT string_agg(to_jsonb(a)::text, '') FROM audit_log a")
    assert key.rsplit("_", 1)[1] not in kept


def test_archiving_a_project_revokes_its_keys_alone(database: Engine) -> None:
    whole, _ = make()
    with transaction() as session:
        project = create_project(session, whole.tenant_id, "search")
    (_, mine), (_, others) = make(project_id=project.id), make()
    assert (caller := who(mine)) is not None
    assert caller.project_id == project.id
    with transaction() as session:
        archive_project(session, find_project(session, whole.tenant_id, "search"))
        with pytest.raises(UnknownProjectError, match="Projects: default"):
            find_project(session, whole.tenant_id, "search")
    assert who(mine) is None
    assert who(others) is not None


@pytest.mark.parametrize("is_rotated", [False, True])
def test_no_key_that_is_made_while_its_project_is_archived_outlives_it(database: Engine, is_rotated: bool) -> None:
    whole, _ = make()
    with transaction() as session:
        project = create_project(session, whole.tenant_id, "search")
    old, _ = make(project_id=project.id)

    def archive() -> None:
        with transaction() as session:
            archive_project(session, find_project(session, whole.tenant_id, "search"))

    with ThreadPoolExecutor(1) as other:
        with transaction() as session:
            if is_rotated:
                _, key = rotate_key(session, old.id, grace=HOUR)
            else:
                _, key = create_key(session, whole.tenant_id, "late", project_id=project.id)
            archived = other.submit(archive)
            wait_for(lambda: sql(database, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'") != [])
        archived.result(timeout=60)

    assert who(key) is None
    with pytest.raises(UserError, match="archived"):
        make(project_id=project.id)


def test_a_projects_name_is_taken_once_within_its_tenant(database: Engine) -> None:
    with transaction() as session:
        acme, globex = ensure_tenant(session, "acme").id, ensure_tenant(session, "globex").id
        project = create_project(session, acme, "search")
        assert create_project(session, globex, "search").id != project.id
        assert find_project(session, acme, project.id) == find_project(session, acme, "search") == project
        for name in ("search", " ", "\x00"):
            with pytest.raises(UserError):
                create_project(session, acme, name)
        with pytest.raises(UnknownProjectError):
            find_project(session, globex, project.id)
        with pytest.raises(UserError, match="default project"):
            archive_project(session, find_project(session, acme, "default"))
