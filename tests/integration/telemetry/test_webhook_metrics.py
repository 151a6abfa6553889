"""What control shows of webhooks and disks, by the rows and the disks that it is of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from seeds import seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.settings import PREFIX, get_settings
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.disks import read_disks
from pipeline.telemetry.metrics.service.webhooks import read_webhooks


def shown(database: Engine) -> tuple[dict[str, float], float, float]:
    """Endpoints by state, how many deliveries wait, and how late the latest is."""
    with database.connect() as conn:
        values = read_webhooks(conn)
    states = {labels[0]: value for labels, value in values[names.WEBHOOK_ENDPOINTS]}
    return states, values[names.WEBHOOKS_PENDING][0][1], values[names.WEBHOOKS_OVERDUE][0][1]


def test_endpoints_are_counted_by_state_and_what_is_overdue_is_told(database: Engine) -> None:
    assert shown(database) == ({"working": 0, "failing": 0, "disabled": 0}, 0, 0)
    seed_model(database)
    tenant = seed_tenant(database, "acme")
    batch_id = seed_batch(database, tenant, [1])
    for name, failing_since, disabled_at in (
        ("works", None, None),
        ("fails", "2026-01-01", None),
        ("is off", "2026-01-01", "2026-01-02"),
    ):
        sql(
            database,
            "INSERT INTO webhook_endpoints (id, tenant_id, name, url, event_types, secret_hint, failing_since,"
            " disabled_at) VALUES (:name, :tenant, :name, 'https://example.com', '{}', 'abc', :failing_since,"
            " :disabled_at)",
            name=name,
            tenant=tenant.id,
            failing_since=failing_since,
            disabled_at=disabled_at,
        )
    sql(
        database,
        "INSERT INTO webhook_events (id, tenant_id, type, batch_id) VALUES ('e', :tenant, 'batch.completed', :batch)",
        tenant=tenant.id,
        batch=batch_id,
    )

    def deliver(id: str, status: str, due: str) -> None:
        sql(
            database,
            "INSERT INTO webhook_deliveries (id, event_id, endpoint_id, status, next_attempt_at, give_up_at)"
            f" VALUES (:id, 'e', 'works', :status, now() + interval '{due}', now() + interval '72 hours')",
            id=id,
            status=status,
        )

    deliver("later", "pending", "5 minutes")
    assert shown(database) == ({"working": 1, "failing": 1, "disabled": 1}, 1, 0)

    deliver("late", "pending", "-5 minutes")
    deliver("over", "failed", "-5 hours")
    _, num_pending, overdue = shown(database)
    assert num_pending == 2
    assert overdue == pytest.approx(300, abs=60)


def test_the_disks_are_those_of_local_blobs_and_of_the_data_folder(
    database: Engine, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings_env.setenv(PREFIX + "STORAGE_URL", tmp_path.as_uri())
    get_settings.cache_clear()
    with database.connect() as conn:
        assert [labels for labels, _ in read_disks(conn)[names.DISK_FREE]] == [("storage",)]

        settings_env.setenv(PREFIX + "DATA_DIR", str(tmp_path))
        get_settings.cache_clear()
        disks = read_disks(conn)
    assert [labels for labels, _ in disks[names.DISK_SIZE]] == [("storage",), ("data folder",)]
    usage = shutil.disk_usage(tmp_path)
    assert {value for _, value in disks[names.DISK_SIZE]} == {usage.total}
    for _, free in disks[names.DISK_FREE]:
        assert free == pytest.approx(usage.free, rel=0.1)
