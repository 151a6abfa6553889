"""`/v1/organization/usage/completions` and `/v1/organization/costs`, asked by the client of OpenAI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import openai
import pytest
from recorded_usage import make_batch, use
from running_gateways import Tenant, error_of
from seeds import sql
from sqlalchemy import Engine

from pipeline.billing.rate_cards import add_rate_card
from pipeline.billing.rollups import rebuild
from pipeline.tables import ApiKey, Project
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import default_project_id

NOON = datetime(2026, 11, 15, 12, tzinfo=UTC)
DAY = int(datetime(2026, 11, 15, tzinfo=UTC).timestamp())
SECONDS = 86_400


@pytest.fixture
def used(database: Engine, acme: Tenant, globex: Tenant) -> Tenant:
    """Three answers of acme on two days, of two keys, models and projects, and one of globex."""
    with transaction() as session:
        cards = {
            model: add_rate_card(
                session,
                model,
                currency=currency,
                input_price=Decimal("0.137"),
                cached_input_price=Decimal("0.061"),
                output_price=Decimal("0.411"),
                batch_discount=Decimal("0.333"),
            )
            for model, currency in (("tiny", "USD"), ("large", "EUR"))
        }
        session.add(Project(id="proj_2", tenant_id=acme.id, name="second"))
        first = session.query(ApiKey).filter_by(tenant_id=acme.id).one()
        second, _ = create_key(session, acme.id, "second", project_id="proj_2")
        other = session.query(ApiKey).filter_by(tenant_id=globex.id).one()
        tiny, large = make_batch(session, first), make_batch(session, second)
        large.project_id = "proj_2"
        use(session, tiny, "tiny", (100, 20, 7), at=NOON, card=cards["tiny"])
        use(session, tiny, "tiny", (50, 0, 3), at=NOON + timedelta(hours=1, minutes=1), card=cards["tiny"])
        use(session, large, "large", (1_000, 0, 10), at=NOON + timedelta(days=1), card=cards["large"])
        use(session, make_batch(session, other), "tiny", (9, 0, 9), at=NOON, card=cards["tiny"])
    sql(database, "UPDATE usage_events u SET project_id = b.project_id FROM batches b WHERE b.id = u.batch_id")
    rebuild(database)
    return acme


@pytest.fixture
def usage(used: Tenant, address: str) -> Iterator[openai.resources.admin.organization.usage.Usage]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="", admin_api_key=used.key, max_retries=0) as client:
        yield client.admin.organization.usage


def test_usage_is_shown_by_day_with_the_days_that_have_none(usage: Any) -> None:
    page = usage.completions(start_time=DAY - SECONDS, end_time=DAY + 3 * SECONDS)
    assert (page.object, page.has_more, page.next_page) == ("page", False, None)
    assert [bucket.start_time for bucket in page.data] == [DAY + day * SECONDS for day in (-1, 0, 1, 2)]
    assert all(bucket.end_time - bucket.start_time == SECONDS for bucket in page.data)
    assert [len(bucket.results) for bucket in page.data] == [0, 1, 1, 0]
    [result] = page.data[1].results
    assert result.object == "organization.usage.completions.result"
    assert (result.input_tokens, result.input_cached_tokens, result.input_uncached_tokens) == (170, 20, 150)
    assert (result.output_tokens, result.num_model_requests) == (10, 2)
    assert (result.model, result.api_key_id, result.project_id, result.batch) == (None, None, None, None)


def test_usage_is_shown_by_hour_and_by_minute(usage: Any) -> None:
    noon = int(NOON.timestamp())
    hours = usage.completions(start_time=noon + 1, end_time=noon + 7200, bucket_width="1h")
    assert [bucket.results[0].output_tokens for bucket in hours.data] == [7, 3]
    minutes = usage.completions(start_time=noon, end_time=noon + 3720, bucket_width="1m", limit=62)
    found = {(bucket.start_time - noon) // 60: bucket.results for bucket in minutes.data}
    assert len(found) == 62
    assert {minute: results[0].output_tokens for minute, results in found.items() if results} == {0: 7, 61: 3}


def test_usage_is_told_apart_by_what_is_asked_for(usage: Any, used: Tenant) -> None:
    page = usage.completions(
        start_time=DAY,
        end_time=DAY + 2 * SECONDS,
        group_by=["project_id", "api_key_id", "model", "batch", "service_tier", "user_id"],
    )
    found = [result for bucket in page.data for result in bucket.results]
    assert [(one.model, one.project_id) for one in found] == [
        ("tiny", default_project_id(used.id)),
        ("large", "proj_2"),
    ]
    assert found[0].api_key_id != found[1].api_key_id
    assert {(one.batch, one.service_tier, one.user_id) for one in found} == {(True, "standard", None)}


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"models": ["tiny"]}, [10]),
    ({"models": ["large", "unknown"]}, [10]),
    ({"project_ids": ["proj_2"]}, [10]),
    ({"project_ids": ["proj_3"]}, []),
    ({"api_key_ids": ["key_unknown"]}, []),
    ({"batch": True}, [10, 10]),
    ({"batch": False}, []),
]


def test_usage_is_filtered(usage: Any) -> None:
    for filters, outputs in FILTERS:
        page = usage.completions(start_time=DAY, end_time=DAY + 2 * SECONDS, **filters)
        assert [result.output_tokens for bucket in page.data for result in bucket.results] == outputs, filters


def test_pages_follow_one_another(usage: Any) -> None:
    span = {"start_time": DAY + 5, "end_time": DAY + 3 * SECONDS, "limit": 2}
    first = usage.completions(**span)
    assert first.has_more
    second = usage.completions(**span, page=first.next_page)
    assert (second.has_more, second.next_page) == (False, None)
    starts = [bucket.start_time for page in (first, second) for bucket in page.data]
    assert starts == [DAY, DAY + SECONDS, DAY + 2 * SECONDS]


def test_costs_are_exact_and_of_one_currency_each(usage: Any, used: Tenant, database: Engine) -> None:
    page = usage.costs(start_time=DAY, end_time=DAY + 2 * SECONDS)
    [[first], [second]] = [bucket.results for bucket in page.data]
    assert (first.object, first.amount.currency, second.amount.currency) == ("organization.costs.result", "usd", "eur")
    amounts = dict(
        sql(
            database,
            "SELECT model, sum(amount) FROM usage_prices WHERE tenant_id = :tenant GROUP BY model",
            tenant=used.id,
        )
    )
    assert [Decimal(one.amount.exact) for one in (first, second)] == [amounts["tiny"], amounts["large"]]
    assert first.quantity is None

    query = f"start_time={DAY}&end_time={DAY + SECONDS}"
    body = used.http.get(f"/v1/organization/costs?{query}").text
    number = json.loads(body, parse_float=Decimal)["data"][0]["results"][0]["amount"]["value"]
    assert number == amounts["tiny"]


def test_costs_are_told_apart_by_line_item(usage: Any) -> None:
    page = usage.costs(start_time=DAY, end_time=DAY + SECONDS, group_by=["line_item", "project_id"])
    found = {one.line_item: (one.quantity, one.quantity_unit) for one in page.data[0].results}
    assert found == {
        "tiny, input_uncached_tokens": (150, "tokens"),
        "tiny, input_cached_tokens": (20, "tokens"),
        "tiny, output_tokens": (10, "tokens"),
    }
    page = usage.costs(start_time=DAY, end_time=DAY + SECONDS, line_items=["tiny, output_tokens"])
    assert Decimal(page.data[0].results[0].amount.exact) == 10 * Decimal("0.411") * Decimal("0.667") / 1_000_000


def test_usage_without_a_price_costs_null_and_not_nothing(usage: Any, used: Tenant, database: Engine) -> None:
    sql(database, "DELETE FROM rated_lines")
    rebuild(database)
    page = usage.costs(start_time=DAY, end_time=DAY + SECONDS, group_by=["line_item"])
    assert {one.amount for one in page.data[0].results} == {None}
    assert sum(one.quantity for one in page.data[0].results) == 180


def test_a_key_of_a_project_sees_that_project_alone(used: Tenant, address: str) -> None:
    with transaction() as session:
        _, key = create_key(session, used.id, "third", project_id="proj_2")
    headers = {"Authorization": f"Bearer {key}"}
    query = f"start_time={DAY}&end_time={DAY + 2 * SECONDS}"

    def num_requests(more: str = "") -> int:
        page = used.http.get(f"/v1/organization/usage/completions?{query}{more}", headers=headers).json()
        return sum(result["num_model_requests"] for bucket in page["data"] for result in bucket["results"])

    assert num_requests() == 1
    assert num_requests("&project_ids=proj_2") == 1
    assert num_requests(f"&project_ids={default_project_id(used.id)}") == 0


def test_nobody_sees_what_another_tenant_used(used: Tenant, globex: Tenant) -> None:
    query = f"start_time={DAY}&end_time={DAY + 2 * SECONDS}"
    for more in ("", "&project_ids=proj_2", f"&project_ids={default_project_id(used.id)}"):
        page = globex.http.get(f"/v1/organization/usage/completions?{query}{more}").json()
        outputs = [result["output_tokens"] for bucket in page["data"] for result in bucket["results"]]
        assert outputs == ([] if more else [9])


MISTAKES = [
    ("usage/completions?", "start_time", "Missing required parameter"),
    ("usage/completions?start_time=x", "start_time", "Invalid 'start_time'"),
    ("usage/completions?start_time=-1", "start_time", "Invalid 'start_time'"),
    ("usage/completions?start_time=99999999999999999999", "start_time", "Invalid 'start_time'"),
    ("usage/completions?start_time=5&end_time=5", "end_time", "5 is not after 'start_time', which is 5"),
    ("usage/completions?start_time=5&limit=32", "limit", "32 is too many buckets of 1d; 31 at most"),
    ("usage/completions?start_time=5&limit=0", "limit", "Invalid 'limit'"),
    ("usage/completions?start_time=5&bucket_width=1w", "bucket_width", "Invalid 'bucket_width'"),
    ("usage/completions?start_time=5&page=86400", "page", "is no 'next_page' of this query"),
    ("usage/completions?start_time=5&page=page_5", "page", "is no 'next_page' of this query"),
    ("usage/completions?start_time=864000&page=page_0", "page", "is no 'next_page' of this query"),
    ("usage/completions?start_time=5&group_by[]=line_item", "group_by", "is not one of project_id"),
    ("usage/completions?start_time=5&user_ids=u", "user_ids", "there are no users"),
    ("costs?start_time=5&bucket_width=1h", "bucket_width", "Invalid 'bucket_width'"),
    ("costs?start_time=5&limit=181", "limit", "Invalid 'limit'"),
]


def test_what_can_not_be_asked_for_is_refused_with_its_name(acme: Tenant) -> None:
    for path, param, message in MISTAKES:
        response = acme.http.get(f"/v1/organization/{path}")
        assert response.status_code == 400, path
        error = error_of(response)
        assert error["param"] == param
        assert message in str(error["message"])


def test_what_is_yet_to_come_is_no_bucket(acme: Tenant) -> None:
    page = acme.http.get("/v1/organization/usage/completions?start_time=9999999999").json()
    assert page == {"object": "page", "data": [], "has_more": False, "next_page": None}


def test_a_key_without_the_scope_may_not(acme: Tenant) -> None:
    with transaction() as session:
        _, key = create_key(session, acme.id, "files", scopes=["files:read"])
    for path in ("usage/completions", "costs"):
        response = acme.http.get(f"/v1/organization/{path}?start_time=5", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == 403
        assert error_of(response)["code"] == "missing_scope"
