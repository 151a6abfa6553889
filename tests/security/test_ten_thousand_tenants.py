from __future__ import annotations

import hmac
import secrets
from collections import Counter

import pytest
from seeds import sql
from sqlalchemy import Engine

from pipeline.tables.session import transaction
from pipeline.tenancy import keys

NUM_TENANTS = 10_000


def test_each_guess_at_a_key_of_ten_thousand_tenants_is_compared_in_constant_time_and_refused(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guess at a key that exists, was revoked, or never was: one comparison of 32 bytes with 32, whatever it is."""
    sql(
        database,
        "INSERT INTO tenants (id, name) SELECT 'tenant_' || n, 'tenant ' || n FROM generate_series(1, :num) n",
        num=NUM_TENANTS,
    )
    sql(
        database,
        "INSERT INTO api_keys (id, tenant_id, name, short_id, secret_hash, revoked_at)"
        " SELECT 'key_' || n, 'tenant_' || n, 'key', lpad(to_hex(n), 12, '0'), sha256(n::text::bytea),"
        "        CASE WHEN n % 3 = 0 THEN now() END FROM generate_series(1, :num) n",
        num=NUM_TENANTS,
    )
    with transaction() as session:
        _, right = keys.create_key(session, "tenant_1", "right")
    compared: Counter[tuple[int, int]] = Counter()
    real = hmac.compare_digest

    def compare(given: bytes, kept: bytes) -> bool:
        compared[len(given), len(kept)] += 1
        return real(given, kept)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    with transaction() as session:
        for number in range(NUM_TENANTS):
            short_id = number if number % 5 else secrets.randbits(40) | 1 << 40  # some are nobody's
            with pytest.raises(keys.InvalidKeyError):
                keys.authenticate(session, f"rz_{short_id:012x}_{secrets.token_hex(24)}")
        assert keys.authenticate(session, right).tenant_id == "tenant_1"

    assert compared == {(32, 32): NUM_TENANTS + 1}
    ((num_used,),) = sql(database, "SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL")
    assert num_used == 1, "a guess counts as no use of a key"
