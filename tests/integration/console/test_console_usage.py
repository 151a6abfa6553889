"""The page of usage, its table for those who see no chart, and its file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape

from console_pages import Person
from rolled_up_usage import add_usage
from running_gateways import Tenant
from sqlalchemy import Engine


def test_nothing_used_says_so(enter: Callable[..., Person]) -> None:
    assert "Nothing was used in this period" in enter("acme").page("/console/usage")


def test_usage_is_shown_by_day_and_by_what_it_is_split_by(
    database: Engine, acme: Tenant, enter: Callable[..., Person]
) -> None:
    add_usage(database, acme, model="large", tokens=(3000, 200, 40))
    add_usage(database, acme, model="tiny", tokens=(100, 0, 7), days_ago=2)
    add_usage(database, acme, model="tiny", tokens=(9, 9, 9), days_ago=20)
    person = enter(acme)

    page = person.page("/console/usage?span=7d")
    assert "Requests answered 2 Tokens 3,347" in page
    assert "large 1 3,000 200 40 tiny 1 100 0 7" in page
    assert "Tokens 3,374" in person.page("/console/usage?span=30d")
    assert "tiny 2 109 9 16" in person.page("/console/usage?span=30d&model=tiny")
    assert "standard 3 3,109 209 56" in person.page("/console/usage?span=30d&by=class")
    assert "tests (rz_" in person.page("/console/usage?by=key")
    assert "default 3" in person.page("/console/usage?by=project")
    assert "large 1 3,000 200 40" in person.page("/console/usage?span=24h")  # from hours
    assert "100" not in person.page("/console/usage?span=24h")


def test_the_chart_shows_what_the_table_says(database: Engine, acme: Tenant, enter: Callable[..., Person]) -> None:
    add_usage(database, acme, tokens=(30, 20, 10), days_ago=1)
    found = re.search(r'data-chart="([^"]+)"', enter(acme).get("/console/usage?span=7d").text)
    assert found
    options = json.loads(unescape(found[1]))
    assert {one["name"]: one["data"] for one in options["series"]} == {
        "Input": [0, 0, 0, 0, 0, 30, 0],
        "Input from cache": [0, 0, 0, 0, 0, 20, 0],
        "Output": [0, 0, 0, 0, 0, 10, 0],
    }


def test_the_file_has_every_bucket_and_runs_no_formula(
    database: Engine, acme: Tenant, enter: Callable[..., Person]
) -> None:
    add_usage(database, acme, model="=1+1", tokens=(30, 20, 10))
    response = enter(acme).get("/console/usage.csv?span=7d")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in response.headers["content-disposition"]
    [row] = csv.DictReader(io.StringIO(response.text))
    assert (row["model"], row["num_requests"], row["num_output_tokens"]) == ("'=1+1", "1", "10")


def test_a_key_of_a_project_sees_that_project_and_no_tenant_sees_another(
    database: Engine, acme: Tenant, enter: Callable[..., Person]
) -> None:
    add_usage(database, acme, model="secretive", tokens=(30, 20, 10))
    for other in (enter("globex"), enter("acme", project="search")):
        assert "Nothing was used" in other.page("/console/usage")
        assert "secretive" not in other.page("/console/usage?by=model")
        assert "secretive" not in other.get("/console/usage.csv").text


def test_operators_alone_see_what_all_tenants_used(
    database: Engine, acme: Tenant, enter: Callable[..., Person], operate: Callable[[], Person]
) -> None:
    add_usage(database, acme, tokens=(30, 20, 10), amount="0.000123")
    add_usage(database, acme, tokens=(1, 1, 1), currency="")
    page = operate().page("/console/usage")
    assert "Tenants that used most" in page
    assert "acme 1 50 10 0.000123 USD" in page
    assert "acme 1 2 1 no price yet" in page
    assert "Tenants that used most" not in enter(acme).page("/console/usage")


def test_a_key_without_the_scope_sees_no_usage(enter: Callable[..., Person]) -> None:
    person = enter("acme", scopes=["batches:read"])
    assert "usage:read" in person.page("/console/usage", status=403)
    assert person.get("/console/usage.csv").status_code == 403
    assert 'href="/console/usage"' not in person.get("/console/batches").text
