from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal

import pytest
from seeds import sql
from sqlalchemy import Engine

from pipeline.billing.budgets import Scope as BudgetScope
from pipeline.billing.budgets import set_budget
from pipeline.errors import UserError
from pipeline.tables import ApiKey
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries
from pipeline.tenancy.key_rights import TooFewRightsError, create_key_for, revoke_key_for, rotate_key_for
from pipeline.tenancy.keys import InvalidKeyError, Principal, UnknownKeyError, authenticate, create_key
from pipeline.tenancy.limits import set_rate_limits
from pipeline.tenancy.projects import create_project
from pipeline.tenancy.tenants import ensure_tenant

HOUR = timedelta(hours=1)


def caller(tenant: str = "acme", **options: object) -> Principal:
    with transaction() as session:
        _, key = create_key(session, ensure_tenant(session, tenant).id, "mine", **options)  # type: ignore[arg-type]
        return authenticate(session, key)


def new_project(name: str, tenant: str = "acme") -> str:
    with transaction() as session:
        return create_project(session, ensure_tenant(session, tenant).id, name).id


def make(
    who: Principal,
    project_id: str | None = None,
    scopes: Iterable[str] | None = None,
    expires_after: timedelta | None = None,
) -> ApiKey:
    with transaction() as session:
        row, _ = create_key_for(session, who, "new", project_id=project_id, scopes=scopes, expires_after=expires_after)
    return row


def test_a_key_makes_one_that_may_do_as_much_and_the_log_says_which_did(database: Engine) -> None:
    who = caller()
    row = make(who)
    assert (row.scopes, row.project_id, row.is_operator) == (None, None, False)
    with transaction() as session:
        assert list_entries(session, object=row.id)[0].actor == who.api_key_id


def test_no_scope_is_given_that_the_key_lacks(database: Engine) -> None:
    who = caller(scopes=["keys:write", "batches:read"])
    assert make(who, scopes=["batches:read"]).scopes == ["batches:read"]
    for more in (None, ["batches:write"], ["batches:read", "files:read"]):
        with pytest.raises(TooFewRightsError, match="scope"):
            make(who, scopes=more)


def test_a_key_of_a_project_makes_keys_of_that_project_alone(database: Engine) -> None:
    search, other = new_project("search"), new_project("other")
    who = caller(project_id=search)
    assert make(who, project_id=search).project_id == search
    for elsewhere in (None, other):
        with pytest.raises(TooFewRightsError, match="project"):
            make(who, project_id=elsewhere)


def test_a_project_of_another_tenant_is_none(database: Engine) -> None:
    foreign = new_project("theirs", "globex")
    with pytest.raises(UserError, match="no such project"):
        make(caller(), project_id=foreign)


def test_a_key_that_ends_makes_none_that_lasts_longer(database: Engine) -> None:
    who = caller(expires_after=2 * HOUR)
    assert make(who, expires_after=HOUR).expires_at is not None
    for life in (None, 3 * HOUR):
        with pytest.raises(TooFewRightsError, match="last longer"):
            make(who, expires_after=life)
    with pytest.raises(TooFewRightsError, match="last longer"), transaction() as session:
        rotate_key_for(session, who, who.api_key_id, HOUR)


def test_a_key_with_a_limit_or_a_budget_makes_none(database: Engine) -> None:
    limited, budgeted = caller(), caller()
    with transaction() as session:
        set_rate_limits(session, limited.tenant_id, {"requests_per_minute": 5}, api_key_id=limited.api_key_id)
        scope = BudgetScope(tenant_id=budgeted.tenant_id, api_key_id=budgeted.api_key_id)
        set_budget(session, scope, currency="USD", amount=Decimal(1))
    for who in (limited, budgeted):
        with pytest.raises(TooFewRightsError, match="of its own"):
            make(who)
        with pytest.raises(TooFewRightsError, match="of its own"), transaction() as session:
            rotate_key_for(session, who, who.api_key_id, HOUR)


def test_a_key_that_was_revoked_since_makes_none(database: Engine) -> None:
    who = caller()
    sql(database, "UPDATE api_keys SET revoked_at = now() WHERE id = :id", id=who.api_key_id)
    with pytest.raises(InvalidKeyError):
        make(who)


def test_keys_that_may_do_more_are_neither_rotated_nor_revoked(database: Engine) -> None:
    project = new_project("search")
    weak = caller(scopes=["keys:write"])
    of_project = caller(project_id=project)
    whole, operator = caller(), caller(is_operator=True)
    for who, stronger, error in (
        (weak, whole, TooFewRightsError),
        (whole, operator, TooFewRightsError),
        (of_project, whole, UnknownKeyError),
        (caller("globex"), whole, UnknownKeyError),
    ):
        with pytest.raises(error), transaction() as session:
            rotate_key_for(session, who, stronger.api_key_id, HOUR)
        with pytest.raises(error), transaction() as session:
            revoke_key_for(session, who, stronger.api_key_id)


def test_a_key_rotates_and_revokes_those_that_may_do_as_much(database: Engine) -> None:
    who = caller()
    old = make(who, scopes=["batches:read"])
    with transaction() as session:
        new, _ = rotate_key_for(session, who, old.id, HOUR)
        assert new.scopes == ["batches:read"]
        revoke_key_for(session, who, old.id)
        assert [entry.actor for entry in list_entries(session, act="key", limit=2)] == [who.api_key_id] * 2


def test_no_operators_key_is_made(database: Engine) -> None:
    assert not make(caller(is_operator=True)).is_operator
