from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import Engine, func, select, text, update

from pipeline.errors import UserError
from pipeline.tables import ApiKey, Tenant
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import (
    InvalidKeyError,
    Principal,
    UnknownKeyError,
    authenticate,
    create_key,
    list_keys,
    revoke_key,
)
from pipeline.tenancy.tenants import UnknownTenantError, ensure_tenant, find_tenant, list_tenants


def make_key(name: str = "first", tenant: str = "acme") -> tuple[ApiKey, str]:
    with transaction() as session:
        return create_key(session, ensure_tenant(session, tenant).id, name)


def test_a_tenant_is_made_once(database: Engine) -> None:
    with transaction() as session:
        first = ensure_tenant(session, "acme").id
        assert ensure_tenant(session, "acme").id == first
        assert find_tenant(session, "acme").id == first
        assert [tenant.name for tenant in list_tenants(session)] == ["acme"]


def test_an_unknown_tenant_is_told_which_there_are(database: Engine) -> None:
    with transaction() as session:
        ensure_tenant(session, "acme")
        with pytest.raises(UnknownTenantError, match=r"no tenant 'acne'\. Tenants: acme"):
            find_tenant(session, "acne")


@pytest.mark.parametrize("name", ["", "  ", "a\x00b"])
def test_a_tenant_needs_a_name(database: Engine, name: str) -> None:
    with transaction() as session, pytest.raises(UserError, match="name of a tenant"):
        ensure_tenant(session, name)


def test_a_key_is_kept_as_a_hash_alone(database: Engine) -> None:
    row, key = make_key()

    assert len(key.rsplit("_", 1)[1]) * 4 >= 128
    with transaction() as session:
        kept = session.execute(text("SELECT row_to_json(api_keys)::text FROM api_keys")).scalar_one()
    assert key.rsplit("_", 1)[1] not in kept
    assert row.secret_hash == hashlib.sha256(key.encode()).digest()


def test_a_key_names_its_tenant(database: Engine) -> None:
    row, key = make_key()
    with transaction() as session:
        assert authenticate(session, key) == Principal(tenant_id=row.tenant_id, api_key_id=row.id)


def test_a_key_that_is_not_quite_right_is_refused(database: Engine) -> None:
    _, key = make_key()
    last = "0" if key[-1] != "0" else "1"
    wrong = ["", "rz", key[:-1], key[:-1] + last, key + "\n", key.upper(), " " + key, "rz_" + "0" * 12 + key[15:]]
    for bearer in [*wrong, "sk-other", "rz_\x00", "é"]:
        with transaction() as session, pytest.raises(InvalidKeyError):
            authenticate(session, bearer)


@pytest.mark.parametrize("by", ["id", "short_id", "key"])
def test_a_revoked_key_is_refused_at_once(database: Engine, by: str) -> None:
    row, key = make_key()
    with transaction() as session:
        revoked = revoke_key(session, {"id": row.id, "short_id": row.short_id, "key": key}[by])
    with transaction() as session, pytest.raises(InvalidKeyError):
        authenticate(session, key)
    with transaction() as session:
        assert revoke_key(session, row.id).revoked_at == revoked.revoked_at


def test_revoking_an_unknown_key_does_not_repeat_it(database: Engine) -> None:
    with transaction() as session, pytest.raises(UnknownKeyError) as caught:
        revoke_key(session, "rz_secret")
    assert "rz_secret" not in str(caught.value)


def test_keys_are_listed_by_tenant(database: Engine) -> None:
    first, _ = make_key("first")
    other, _ = make_key("theirs", tenant="globex")
    with transaction() as session:
        assert [key.id for key in list_keys(session, first.tenant_id)] == [first.id]
        assert {key.id for key in list_keys(session)} == {first.id, other.id}


def test_the_last_use_is_written_at_most_once_a_minute(database: Engine) -> None:
    row, key = make_key()

    def use() -> bool:
        """Whether `last_used_at` changed."""
        with transaction() as session:
            before = session.execute(select(ApiKey.last_used_at).where(ApiKey.id == row.id)).scalar_one()
            authenticate(session, key)
            return before != session.execute(select(ApiKey.last_used_at).where(ApiKey.id == row.id)).scalar_one()

    assert use()
    assert not use()
    with transaction() as session:
        session.execute(update(ApiKey).values(last_used_at=func.now() - text("interval '2 minutes'")))
    assert use()


def test_a_locked_key_still_authenticates(database: Engine) -> None:
    row, key = make_key()
    with transaction() as holder:
        holder.execute(select(Tenant).with_for_update())
        holder.execute(select(ApiKey).where(ApiKey.id == row.id).with_for_update())
        with transaction() as session:
            session.execute(text("SET LOCAL lock_timeout = '100ms'"))
            assert authenticate(session, key).api_key_id == row.id
