from __future__ import annotations

from typing import Any

import openai
import pytest
from running_gateways import Tenant
from sqlalchemy import select, update

from pipeline.tables import Batch, BatchStatus, ServiceClass
from pipeline.tables.session import transaction


def create(tenant: Tenant, **extensions: Any) -> Any:
    file = tenant.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    window: Any = extensions.pop("window", "24h")
    return tenant.client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window=window, extra_body=extensions
    )


#: What is sent, and the class that it is.
ASKED_FOR: list[tuple[dict[str, Any], ServiceClass]] = [
    ({}, ServiceClass.STANDARD),
    ({"service_class": "priority"}, ServiceClass.PRIORITY),
    ({"service_class": "flex", "window": "7d"}, ServiceClass.FLEX),
    ({"service_tier": "auto"}, ServiceClass.STANDARD),
    ({"service_tier": "default"}, ServiceClass.STANDARD),
    ({"service_tier": "flex"}, ServiceClass.FLEX),
    ({"service_tier": "priority", "service_class": "priority"}, ServiceClass.PRIORITY),
]

#: What is sent, the parameter that is wrong with it, and why.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"service_class": "urgent"}, "service_class", "'priority', 'standard' or 'flex'"),
    ({"service_tier": "scale"}, "service_tier", "'auto', 'default', 'flex' or 'priority'"),
    ({"service_tier": "auto", "service_class": "flex"}, "service_class", "are not the same: give one of them"),
    ({"service_class": "flex", "window": "1h"}, "completion_window", "its windows are from '24h' to '7d'"),
    ({"service_class": "priority", "window": "2d"}, "completion_window", "its windows are from '15m' to '24h'"),
]


def test_a_batch_has_the_class_that_was_asked_for(acme: Tenant) -> None:
    for extensions, kind in ASKED_FOR:
        batch = create(acme, **extensions)
        assert batch.service_class == kind, extensions
        assert acme.client.batches.retrieve(batch.id).service_class == kind  # type: ignore[attr-defined]
        with transaction() as session:
            assert session.scalar(select(Batch.service_class).where(Batch.id == batch.id)) is kind


def test_a_class_that_can_not_be_is_refused(acme: Tenant) -> None:
    for extensions, param, message in REFUSED:
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            create(acme, **extensions)
        assert caught.value.param == param


def test_a_batch_that_is_being_prepared_explains_itself(acme: Tenant) -> None:
    batch = create(acme, service_class="flex")
    explained = acme.http.get(f"/v1/batches/{batch.id}/explain").json()
    assert explained["object"] == "batch.explanation"
    assert (explained["service_class"], explained["status"], explained["model"]) == ("flex", "validating", None)
    assert [reason["code"] for reason in explained["reasons"]] == ["preparing"]
    assert (explained["groups"], explained["estimated_finish"]) == (None, None)


def test_an_explanation_is_its_tenants_alone(acme: Tenant, globex: Tenant) -> None:
    batch = create(acme)
    with transaction() as session:
        session.execute(update(Batch).values(status=BatchStatus.IN_PROGRESS, model="tiny"))
    assert acme.http.get(f"/v1/batches/{batch.id}/explain").status_code == 200
    answer = globex.http.get(f"/v1/batches/{batch.id}/explain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
