from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from running_gateways import Tenant, wait_for
from seeds import sql
from sqlalchemy import Engine


def test_each_call_is_logged_with_its_caller_and_without_its_key(
    acme: Tenant, database: Engine, log_path: Path
) -> None:
    ((key_id,),) = sql(database, "SELECT id FROM api_keys")
    acme.client.models.list()
    acme.http.get("/v1/models", headers={"Authorization": f"Bearer {acme.key[:-1]}x"})
    acme.http.get("/healthz")

    # A call is logged when its answer has been sent, which its client may have before.
    wait_for(lambda: log_path.read_text().count('"/healthz"') == 1)
    text = log_path.read_text()
    calls: list[dict[str, Any]] = [line for line in map(json.loads, text.splitlines()) if line["event"] == "request"]
    callers = [(call["path"], call["status"], call.get("tenant"), call.get("api_key")) for call in calls]
    assert callers == [
        ("/v1/models", 200, acme.id, key_id),
        ("/v1/models", 401, None, None),
        ("/healthz", 200, None, None),
    ]
    assert acme.key not in text
