from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from computed_quotes import computing_quotes
from running_gateways import Tenant, error_of
from seeds import MODEL, seed_model
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.billing.budgets import Scope, set_budget
from pipeline.jobs.preparing import prepare
from pipeline.tables import Batch
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.projects import create_project

ENDPOINT = "/v1/completions"


def lines(count: int, **body: Any) -> bytes:
    body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 4, **body}
    return b"".join(
        json.dumps({"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": body}).encode() + b"\n"
        for number in range(count)
    )


def upload(tenant: Tenant, content: bytes) -> str:
    return tenant.client.files.create(file=("in.jsonl", content), purpose="batch").id


def ask(tenant: Tenant, file_id: str, **options: Any) -> dict[str, Any]:
    body = {"input_file_id": file_id, "endpoint": ENDPOINT, **options}
    answer: dict[str, Any] = tenant.client.post("/batches/quote", body=body, cast_to=object)  # type: ignore[assignment]
    return answer


@pytest.fixture
def control(database: Engine, tmp_path: Path) -> Iterator[None]:
    """Computes quotes, as control does."""
    seed_model(database, path=str(byte_level(tmp_path / "model")))
    with computing_quotes():
        yield


@pytest.mark.usefixtures("control")
def test_a_quote_says_what_a_batch_would_cost(acme: Tenant) -> None:
    file_id = upload(acme, lines(10))

    quote = ask(acme, file_id)

    assert quote == {
        "id": quote["id"],
        "object": "batch.quote",
        "status": "ready",
        "input_file_id": file_id,
        "endpoint": ENDPOINT,
        "on_invalid": "fail",
        "service_class": "standard",
        "created_at": quote["created_at"],
        "expires_at": quote["created_at"] + 86_400,
        "errors": None,
        "model": MODEL,
        "rate_card_id": quote["rate_card_id"],
        "num_requests": 10,
        "num_invalid_lines": 0,
        "prompt_tokens": 30,
        "shared_prompt_tokens": 0,
        "output_tokens": {"p50": 40, "p95": 40, "worst_case": 40},
        # (30 x 0.137 + 40 x 0.411) / 1,000,000 x 0.667
        "cost": {"currency": "USD", "p50": "0.00001370685", "p95": "0.00001370685", "worst_case": "0.00001370685"},
        "learned_from_requests": 0,
        "estimated_finish_at": None,
    }
    assert acme.client.get(f"/batches/quote/{quote['id']}", cast_to=object) == quote


@pytest.mark.usefixtures("control")
def test_a_batch_that_names_a_quote_has_its_prices(acme: Tenant, database: Engine) -> None:
    file_id = upload(acme, lines(2))
    quote = ask(acme, file_id)
    with database.begin() as conn:
        conn.exec_driver_sql(
            "INSERT INTO rate_cards (model, currency, input_price, cached_input_price, output_price, batch_discount)"
            f" VALUES ('{MODEL}', 'USD', 900, 900, 900, 0)"
        )

    batch = acme.client.batches.create(
        input_file_id=file_id,
        endpoint=ENDPOINT,
        completion_window="24h",
        extra_body={"quote_id": quote["id"], "max_cost": "0.5"},
    )

    assert batch.to_dict()["quote_id"] == quote["id"]
    assert batch.to_dict()["max_cost"] == "0.5"
    prepare(batch.id)
    with transaction() as session:
        assert session.get_one(Batch, batch.id).rate_card_id == quote["rate_card_id"]
    assert ask(acme, file_id)["rate_card_id"] != quote["rate_card_id"]


@pytest.mark.usefixtures("control")
def test_a_file_with_errors_has_none_and_says_where_they_are(acme: Tenant) -> None:
    content = lines(1) + b"{\n"

    quote = ask(acme, upload(acme, content))

    assert (quote["status"], quote["cost"], quote["num_requests"]) == ("failed", None, None)
    assert [(error["line"], error["code"]) for error in quote["errors"]["data"]] == [(2, "invalid_json_line")]
    assert ask(acme, upload(acme, content), on_invalid="skip")["num_requests"] == 1


@pytest.mark.usefixtures("control")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"input_file_id": "another"}, "quote_mismatch"),
        ({"service_class": "flex"}, "quote_mismatch"),
        ({"on_invalid": "skip"}, "quote_mismatch"),
        ({"quote_id": "quote_0"}, "quote_not_found"),
    ],
)
def test_a_quote_is_of_one_batch_alone(acme: Tenant, change: dict[str, str], code: str) -> None:
    file_id, other = upload(acme, lines(1)), upload(acme, lines(2))
    body = {
        "input_file_id": file_id,
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "quote_id": ask(acme, file_id)["id"],
        **change,
    }
    if body["input_file_id"] == "another":
        body["input_file_id"] = other

    response = acme.http.post("/v1/batches", json=body)

    assert response.status_code == 400
    assert (error_of(response)["code"], error_of(response)["param"]) == (code, "quote_id")


@pytest.mark.usefixtures("control")
def test_a_quote_that_has_expired_holds_no_more(acme: Tenant, database: Engine) -> None:
    file_id = upload(acme, lines(1))
    quote = ask(acme, file_id)
    with database.begin() as conn:
        conn.exec_driver_sql("UPDATE quotes SET expires_at = now()")

    with pytest.raises(openai.BadRequestError) as refused:
        acme.client.batches.create(
            input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", extra_body={"quote_id": quote["id"]}
        )
    assert refused.value.code == "quote_expired"


def test_a_file_that_is_not_there_can_not_be_quoted(acme: Tenant) -> None:
    response = acme.http.post("/v1/batches/quote", json={"input_file_id": "file-0", "endpoint": ENDPOINT})

    assert response.status_code == 400
    assert error_of(response)["code"] == "file_not_found"


def test_without_control_a_quote_is_still_being_computed(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.gateway.quotes._WAIT_SECONDS", 0.3)
    file_id = upload(acme, lines(1))

    quote = ask(acme, file_id)

    assert (quote["status"], quote["cost"], quote["prompt_tokens"]) == ("computing", None, None)
    response = acme.http.post(
        "/v1/batches",
        json={"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h", "quote_id": quote["id"]},
    )
    assert error_of(response)["code"] == "quote_not_ready"


@pytest.mark.parametrize("max_cost", [0, -1, "x", "NaN", 10**20, "0.0000000000000001"])
def test_a_max_cost_is_an_amount(acme: Tenant, max_cost: Any) -> None:
    body = {"input_file_id": upload(acme, lines(1)), "endpoint": ENDPOINT, "completion_window": "24h"}

    response = acme.http.post("/v1/batches", json={**body, "max_cost": max_cost})

    assert response.status_code == 400
    assert error_of(response)["param"] == "max_cost"


def test_a_tenant_sees_its_budgets_and_a_project_its_own(acme: Tenant, globex: Tenant, address: str) -> None:
    with transaction() as session:
        project = create_project(session, acme.id, "evaluation")
        _, key = create_key(session, acme.id, "of a project", project_id=project.id)
        set_budget(session, Scope(tenant_id=acme.id), currency="USD", amount=Decimal(500))
        own = set_budget(
            session, Scope(tenant_id=acme.id, project_id=project.id), currency="JPY", amount=Decimal(7), is_hard=False
        ).id

    shown = acme.http.get("/v1/organization/budgets").json()["data"]
    of_project = acme.http.get("/v1/organization/budgets", headers={"Authorization": f"Bearer {key}"}).json()["data"]

    assert {budget["amount"] for budget in shown} == {"500.00", "7"}
    assert of_project == [
        {
            "id": own,
            "object": "organization.budget",
            "project_id": project.id,
            "api_key_id": None,
            "currency": "JPY",
            "period": "month",
            "is_hard": False,
            "is_prepaid": False,
            "amount": "7",
            "spent": "0",
            "held": "0",
        }
    ]
    assert globex.http.get("/v1/organization/budgets").json()["data"] == []
