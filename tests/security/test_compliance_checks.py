"""Each check of the compliance report, where all is well and where it is not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psycopg
import pytest
from certificates import Authority
from secure_servers import HOST, SecureServer
from seeds import seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from tokenizer_folders import byte_level

from pipeline.compliance import access, content, integrity, operations, transport
from pipeline.compliance.evidence import Check, Inspection, State
from pipeline.embedded import EmbeddedPostgres, new_password
from pipeline.settings import Settings, get_settings
from pipeline.tables.session import make_engine, transaction
from pipeline.tenancy.console_sessions import begin_session
from pipeline.tenancy.erasing import erase_tenant
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.tenants import ensure_tenant

MET, GAP, UNKNOWN = State.MET, State.GAP, State.UNKNOWN


def look(check: Check, engine: Engine | None = None, **settings: Any) -> list[tuple[State, str]]:
    """States and texts of what a check finds; every gap comes with advice."""
    inspection = Inspection(settings=Settings(**settings), engine=engine or make_engine("postgresql+psycopg://nobody"))
    found = list(check(inspection))
    assert all(one.advice for one in found if one.state is GAP)
    return [(one.state, one.found) for one in found]


def gaps(check: Check, engine: Engine | None = None, **settings: Any) -> list[str]:
    return [text for state, text in look(check, engine, **settings) if state is GAP]


def test_old_and_unused_keys_are_named_and_revoked_ones_are_not(database: Engine) -> None:
    key = seed_tenant(database).api_key_id
    ((state, counted),) = look(access.check_keys, database)
    assert state is MET
    assert counted.startswith("keys in force: 1, of 1 tenants; revoked: 0;")

    sql(database, "UPDATE api_keys SET created_at = now() - interval '400 days', last_used_at = now()")
    assert gaps(access.check_keys, database) == [f"keys older than 365 days: {key}"]
    sql(database, "UPDATE api_keys SET last_used_at = now() - interval '100 days'")
    assert gaps(access.check_keys, database)[1] == f"keys not used for 90 days: {key}"
    sql(database, "UPDATE api_keys SET expires_at = now(), scopes = '{files:read}'")
    assert gaps(access.check_keys, database) == []
    sql(database, "UPDATE api_keys SET expires_at = now() + interval '1 day', project_id = 'p', last_used_at = now()")
    ((_, counted), *_) = look(access.check_keys, database)
    assert "1 expire, 1 have some scopes alone, 1 are of one project" in counted
    sql(database, "UPDATE api_keys SET revoked_at = now()")
    assert gaps(access.check_keys, database) == []


def test_open_sessions_are_counted_and_keys_of_operators_named(database: Engine) -> None:
    key = seed_tenant(database).api_key_id
    assert look(access.check_operator_keys, database) == [(MET, "keys of operators in force: 0")]
    sql(database, "UPDATE api_keys SET is_operator = true")
    assert look(access.check_operator_keys, database) == [(MET, f"keys of operators in force: 1 ({key})")]
    with Session(database) as session, session.begin():
        begin_session(session, Principal(tenant_id="t", api_key_id=key))
        begin_session(session, Principal(tenant_id="t", api_key_id=key))
    sql(
        database,
        "UPDATE console_sessions SET last_seen_at = now() - interval '3 hours'"
        " WHERE token_hash = (SELECT max(token_hash) FROM console_sessions)",
    )
    ((state, found),) = look(access.check_sessions, database, console_session_hours=8)
    assert state is MET
    assert found == (
        "sessions of the console that are open: 1; one ends 8 hours after it began, after 2 hours without a page, and "
        "with its key"
    )
    sql(database, "UPDATE api_keys SET revoked_at = now()")
    assert look(access.check_operator_keys, database) == [(MET, "keys of operators in force: 0")]
    assert "open: 0;" in look(access.check_sessions, database)[0][1]


def test_a_limit_on_wrong_keys_is_asked_for() -> None:
    assert gaps(access.check_guessing) == []
    assert len(gaps(access.check_guessing, key_failures_per_minute=0)) == 1


def test_a_superuser_of_postgresql_is_a_gap(database: Engine, postgres_server: EmbeddedPostgres) -> None:
    assert len(gaps(access.check_database_role, database)) == 1, "that of an embedded server is one"
    role, password = new_password(), new_password()
    sql(database, f"CREATE ROLE \"r{role}\" LOGIN PASSWORD '{password}'")
    plain = make_engine(f"postgresql+psycopg://r{role}:{password}@127.0.0.1:{postgres_server.port}/postgres")
    try:
        assert look(access.check_database_role, plain) == [(MET, f"the role r{role} is no superuser of PostgreSQL")]
    finally:
        plain.dispose()
        sql(database, f'DROP ROLE "r{role}"')


@pytest.mark.parametrize(
    ("url", "is_gap"),
    [
        ("redis://127.0.0.1/0", True),
        ("redis://:word@127.0.0.1/0", True),
        ("redis://default:word@127.0.0.1/0", True),
        ("redis://ryzanstein:word@127.0.0.1/0", False),
    ],
)
def test_redis_wants_a_user_of_our_own_with_a_password(url: str, is_gap: bool) -> None:
    assert bool(gaps(access.check_redis_user, redis_url=url)) == is_gap


def test_a_short_password_of_flower_is_a_gap() -> None:
    assert gaps(access.check_flower) == []
    assert gaps(access.check_flower, flower_password=new_password()) == []
    assert len(gaps(access.check_flower, flower_password="short")) == 1


def test_a_flower_that_may_change_things_is_a_gap() -> None:
    assert len(gaps(access.check_flower, flower_password=new_password(), flower_read_only=False)) == 1
    assert gaps(access.check_flower, flower_auth="okta") == []


def test_a_data_folder_that_others_may_read_is_a_gap(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.touch(mode=0o600)
    assert gaps(access.check_data_dir) == []
    assert gaps(access.check_data_dir, data_dir=tmp_path) == []
    secrets.chmod(0o644)
    assert gaps(access.check_data_dir, data_dir=tmp_path) == [f"others may read secrets.json in {tmp_path}"]


def test_postgresql_wants_tls_that_is_verified_unless_it_is_on_this_machine(
    postgres_over_tls: SecureServer, database: Engine, authority: Authority
) -> None:
    server, file = postgres_over_tls, f"sslrootcert={authority.path}"

    def found(parameters: str) -> list[tuple[State, str]]:
        address = f"ryzanstein:{server.password}@{HOST}:{server.tls_port}/postgres?{parameters}"
        engine = make_engine(f"postgresql+psycopg://{address}", pool_size=1)
        try:
            return look(transport.check_postgres_tls, engine, database_url=f"postgresql+psycopg://{address}")
        finally:
            engine.dispose()

    ((state, text),) = found(f"sslmode=verify-full&{file}")
    assert state is MET
    assert text.endswith("certificate and host are verified")
    ((state, text),) = found(f"sslmode=require&{file}")
    assert state is GAP
    assert "not verified (sslmode=require)" in text
    ((state, text),) = look(transport.check_postgres_tls, database)
    assert state is MET
    assert "does not leave this machine" in text


def test_redis_wants_tls_that_is_verified_unless_it_is_on_this_machine(
    redis_over_tls: SecureServer, redis_url: str, authority: Authority
) -> None:
    url = f"rediss://:{redis_over_tls.password}@{HOST}:{redis_over_tls.tls_port}/0?ssl_ca_certs={authority.path}"
    assert gaps(transport.check_redis_tls, redis_url=url) == []
    assert len(gaps(transport.check_redis_tls, redis_url=f"{url}&ssl_check_hostname=false")) == 1
    assert look(transport.check_redis_tls, redis_url=redis_url)[0][0] is MET


def test_a_server_of_another_machine_without_tls_is_a_gap(
    database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "is_loopback", lambda host: False)
    assert "can be read on the way" in gaps(transport.check_postgres_tls, database)[0]
    assert "can be read on the way" in gaps(transport.check_redis_tls, redis_url=redis_url)[0]


def test_http_on_an_address_that_others_reach_is_a_gap() -> None:
    assert gaps(transport.check_gateway_tls) == []
    assert len(gaps(transport.check_gateway_tls, gateway_host="0.0.0.0", flower_host="::")) == 2
    assert gaps(transport.check_gateway_tls, gateway_host="0.0.0.0", base_url="https://llm.example/v1") == []


def test_a_store_without_tls_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gaps(transport.check_storage_tls) == []
    assert gaps(transport.check_storage_tls, storage_url="s3://bucket/prefix") == []
    assert len(gaps(transport.check_storage_tls, storage_url="ftp://host/prefix")) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert len(gaps(transport.check_storage_tls, storage_url="s3://bucket/prefix")) == 1


def test_content_that_is_kept_is_counted(database: Engine) -> None:
    tenant = seed_tenant(database)
    batch_id = seed_batch(database, tenant, [1])
    sql(database, "UPDATE files SET expires_at = now() + interval '1 day'")
    assert gaps(content.check_retention, database) == []

    sql(database, "UPDATE files SET expires_at = NULL")
    sql(database, "UPDATE batches SET created_at = now() - interval '91 days', num_requests = 1")
    sql(
        database,
        "INSERT INTO files (id, tenant_id, filename, purpose, num_bytes, batch_id, view)"
        " VALUES ('file-v', :tenant, 'out', 'batch_output', 0, :batch, 'output')",
        tenant=tenant.id,
        batch=batch_id,
    )
    found = gaps(content.check_retention, database)
    assert [text.split(" ", 1)[0] for text in found] == ["1", "1", "prompts"]
    assert "1 batches are older than 90 days" in found[2]

    sql(database, "UPDATE files SET deleted_at = now() WHERE view IS NOT NULL")
    sql(
        database,
        "INSERT INTO results (request_id, batch_id, body, num_line_bytes, slice_id, lease_epoch, group_id)"
        " SELECT id, batch_id, '{}', 3, slice_id, 1, 'group' FROM requests LIMIT 1",
    )
    assert "their lines are still in SQL" in gaps(content.check_retention, database)[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"log_error_verbosity": "default"},
        {"log_statement": "all", "log_parameter_max_length": "-1"},
        {"log_min_duration_statement": "1000", "log_parameter_max_length": "-1"},
        {"log_parameter_max_length_on_error": "64"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_postgresql_whose_log_may_hold_content_is_a_gap(database: Engine, settings: dict[str, str]) -> None:
    assert gaps(content.check_logs, database) == []
    for name, value in settings.items():
        sql(database, f'ALTER DATABASE "{database.url.database}" SET {name} = "{value}"')
    database.dispose()  # they hold for sessions that begin from here on
    assert gaps(content.check_logs, database) == ["PostgreSQL's own log may hold parts of prompts and answers"]


def test_logs_of_calls_are_asked_for() -> None:
    assert gaps(content.check_log_collection, log_format="json") == []
    assert len(gaps(content.check_log_collection, log_level="WARNING")) == 2


def test_places_are_named_without_secrets(database: Engine) -> None:
    ((state, text),) = look(
        content.check_places,
        database,
        database_url="postgresql+psycopg://u:hunter2@db/x",
        redis_url="redis://:hunter2@r",
    )
    assert state is MET
    assert "PostgreSQL at db" in text
    assert "hunter2" not in text


def test_a_log_of_acts_that_was_changed_is_a_gap(database: Engine) -> None:
    with transaction() as session:
        ensure_tenant(session, "acme")
    ((state, found),) = look(integrity.check_acts, database)
    assert state is MET
    assert found.startswith("1 administrative acts are logged in a chain that is whole; its head is 1:")
    sql(database, "ALTER TABLE audit_log DISABLE TRIGGER ALL")
    sql(database, "UPDATE audit_log SET actor = 'nobody'")
    assert gaps(integrity.check_acts, database) == ["administrative act 1: its content is not what was written"]


def test_a_record_of_erasure_that_was_changed_is_a_gap(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings_env.setenv("RYZANSTEIN_SIGNING_KEY_FILE", str(tmp_path / "key.pem"))
    get_settings.cache_clear()
    record = erase_tenant(seed_tenant(database).id)
    assert gaps(content.check_erasures, database) == []
    sql(database, "ALTER TABLE erasures DISABLE TRIGGER ALL")
    sql(database, "UPDATE erasures SET statement = replace(statement, 'acme', 'other')")
    assert gaps(content.check_erasures, database) == [f"records of erasure are not what was signed: {record.id}"]


def test_a_tenant_without_a_limit_is_a_gap() -> None:
    assert len(gaps(operations.check_limits)) == 1
    assert gaps(operations.check_limits, tenant_enqueued_tokens=10**9) == []


def test_the_audit_is_evidence(database: Engine, redis_url: str) -> None:
    seed_batch(database, seed_tenant(database), [2])
    sql(
        database,
        "UPDATE slices SET num_unfinished = 7, status = 'claimed', lease_expires_at = now() + interval '1 hour'",
    )
    found = gaps(integrity.check_audit, database)
    assert len(found) == 1
    assert "slice" in found[0]


def test_what_postgresql_puts_at_risk_is_a_gap(database: Engine) -> None:
    assert [text.split(":")[0] for text in gaps(integrity.check_durability, database)] == ["fsync"]


def test_a_database_of_another_version_is_a_gap(database: Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    assert gaps(integrity.check_schema, database_url=url) == []
    sql(database, "UPDATE alembic_version SET version_num = '0000'")
    assert len(gaps(integrity.check_schema, database_url=url)) == 1


def test_models_are_known_by_their_sums_and_pickles_beside_them_are_a_gap(database: Engine, tmp_path: Path) -> None:
    assert look(integrity.check_models, database) == [(MET, "no model is served yet")]
    folder = byte_level(tmp_path / "tiny")
    seed_model(database, path=str(folder))
    assert "has no safetensors" in gaps(integrity.check_models, database)[0]
    (folder / "model.safetensors").write_bytes(b"abc")
    found = look(integrity.check_models, database)
    sum_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (MET, f"model tiny: SHA-256 of model.safetensors is {sum_of_abc}") in found
    assert {state for state, _ in found} == {MET}
    (folder / "pytorch_model.bin").touch()
    assert "pytorch_model.bin can hold code" in gaps(integrity.check_models, database)[0]
    sql(database, "UPDATE served_models SET path = '/nowhere'")
    assert look(integrity.check_models, database)[0][0] is UNKNOWN


def test_one_group_is_a_gap_and_two_are_not(database: Engine) -> None:
    assert gaps(operations.check_groups, database) == ["no group is ready"]
    seed_model(database)
    insert = "INSERT INTO groups (id, model, state, pid, rank_pids, info) VALUES (:id, 'tiny', 'ready', 1, '[]', '{}')"
    sql(database, insert, id="group-0@here")
    assert len(gaps(operations.check_groups, database)) == 1
    sql(database, insert, id="group-1@here")
    assert gaps(operations.check_groups, database) == []


def test_a_database_without_a_copy_is_a_gap(database: Engine, postgres_server: EmbeddedPostgres) -> None:
    assert len(gaps(operations.check_copies, database)) == 1
    url = postgres_server.url.replace("postgresql+psycopg", "postgresql")
    with contextlib.closing(psycopg.connect(url, autocommit=True, replication="true")) as standby:
        position = standby.pgconn.exec_(b"IDENTIFY_SYSTEM").get_value(0, 2)
        assert position is not None
        standby.pgconn.exec_(b"START_REPLICATION " + position)
        assert gaps(operations.check_copies, database) == []


def test_releases_are_listed(redis_url: str) -> None:
    found = look(operations.check_releases)
    assert "celery" in found[0][1]
    assert any(text.startswith("Redis ") for _, text in found[1:])
