from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_gateways import Tenant, error_of
from seeds import sql
from sqlalchemy import Engine

from pipeline.errors import UserError
from pipeline.gateway.rate_limits import duration_text
from pipeline.settings import get_settings
from pipeline.tables import ApiKey
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries
from pipeline.tenancy.keys import CallLimits, Principal, find_key
from pipeline.tenancy.limits import set_rate_limits
from pipeline.tenancy.rate_limits import Kind, RateLimits, Window

FILE = b"x" * 400  # 100 tokens


def caller(key: str = "key_a", tenant: str = "t", of_tenant: int | None = None, of_key: int | None = None) -> Principal:
    return Principal(
        tenant_id=tenant, api_key_id=key, tenant_limits=CallLimits(of_tenant, 0), key_limits=CallLimits(of_key)
    )


def limit(tenant: Tenant, key: str | None = None, **limits: int | None) -> None:
    with transaction() as session:
        key_id = None if key is None else find_key(session, key).id
        set_rate_limits(session, tenant.id, limits, api_key_id=key_id)


def test_callers_at_once_get_no_more_than_their_limit(redis_url: str) -> None:
    limits = RateLimits(get_settings())
    with ThreadPoolExecutor(8) as pool:
        standings = list(pool.map(lambda _: limits.count_request(caller(of_tenant=20)), range(60)))
    assert sum(standing.exceeded is None for standing in standings) == 20
    refused = next(standing.exceeded for standing in standings if standing.exceeded)
    assert (refused.kind, refused.limit, refused.is_of_key) == (Kind.REQUESTS, 20, False)
    assert 1 <= refused.retry_seconds <= 60


def test_a_key_has_its_own_limit_beside_that_of_its_tenant(redis_url: str) -> None:
    limits = RateLimits(get_settings())
    for _ in range(2):
        assert limits.count_request(caller("key_a", of_tenant=5, of_key=2)).exceeded is None
    refused = limits.count_request(caller("key_a", of_tenant=5, of_key=2))
    assert refused.exceeded is not None
    assert refused.exceeded.is_of_key
    # What the key's limit refuses is not counted against the tenant: three are left to the other key.
    passed = [limits.count_request(caller("key_b", of_tenant=5)).exceeded is None for _ in range(4)]
    assert passed == [True, True, True, False]
    assert limits.count_request(caller("key_c", tenant="other", of_tenant=5)).exceeded is None


def test_the_tightest_limit_is_shown(redis_url: str) -> None:
    limits = RateLimits(get_settings())
    assert limits.count_request(caller(of_tenant=100, of_key=3)).windows == {Kind.REQUESTS: Window(3, 2)}
    assert limits.count_request(caller(of_tenant=2, of_key=30)).windows == {Kind.REQUESTS: Window(2, 1)}


def test_more_than_a_minutes_worth_of_tokens_never_passes(redis_url: str) -> None:
    limits = RateLimits(get_settings())
    who = Principal(tenant_id="t", api_key_id="k", tenant_limits=CallLimits(0, 1000))
    assert (exceeded := limits.count_tokens(who, 1001).exceeded) is not None
    assert exceeded.retry_seconds == 0
    assert limits.count_tokens(who, 900).windows[Kind.TOKENS].remaining == 100
    assert (exceeded := limits.count_tokens(who, 101).exceeded) is not None
    assert exceeded.retry_seconds >= 1


def test_without_redis_everybody_passes_and_it_is_asked_again_after_a_pause(
    redis_url: str, settings_env: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    settings = get_settings()
    away = settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://127.0.0.1:1/0")})
    limits = RateLimits(away, clock=lambda: now[0])
    standings = [limits.count_request(caller(of_tenant=1)) for _ in range(3)]
    assert all(standing.exceeded is None and standing.windows == {} for standing in standings)

    limits._limiter = RateLimits(settings)._limiter  # Redis is back
    assert limits.count_request(caller(of_tenant=1)).windows == {}
    now[0] = 6.0
    assert limits.count_request(caller(of_tenant=1)).windows == {Kind.REQUESTS: Window(1, 0)}


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (361, "6m1s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown


def test_every_answer_to_a_key_says_what_is_left(acme: Tenant) -> None:
    limit(acme, requests_per_minute=50, tokens_per_minute=1000)
    answers = [acme.http.get(path) for path in ("/v1/models", "/v1/files/none", "/v1/files?limit=0")]
    assert [answer.status_code for answer in answers] == [200, 404, 400]
    for number, answer in enumerate(answers):
        assert answer.headers["x-ratelimit-limit-requests"] == "50"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(49 - number)
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert answer.headers["x-ratelimit-limit-tokens"] == answer.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert not [name for name in acme.http.get("/healthz").headers if "ratelimit" in name]


def test_who_calls_too_fast_is_told_when_to_come_again(acme: Tenant, globex: Tenant) -> None:
    limit(acme, requests_per_minute=2)
    for _ in range(2):
        assert acme.http.get("/v1/models").status_code == 200
    refused = acme.http.get("/v1/models")
    error = error_of(refused)
    assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert globex.http.get("/v1/models").status_code == 200
    limit(acme, requests_per_minute=0)
    answer = acme.http.get("/v1/models")
    assert answer.status_code == 200
    assert "x-ratelimit-limit-requests" not in answer.headers


def test_a_submission_counts_the_tokens_of_its_file(acme: Tenant, database: Engine) -> None:
    limit(acme, tokens_per_minute=250)
    small = acme.client.files.create(file=("a.jsonl", FILE), purpose="batch").id
    large = acme.client.files.create(file=("b.jsonl", FILE * 3), purpose="batch").id

    def submit(file_id: str) -> object:
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        return acme.http.post("/v1/batches", json=body, headers={"Idempotency-Key": f"{file_id}-{len(batches)}"})

    batches: list[str] = []
    for left in ("150", "50"):
        answer = submit(small)
        assert answer.status_code == 200  # type: ignore[attr-defined]
        assert answer.headers["x-ratelimit-remaining-tokens"] == left  # type: ignore[attr-defined]
        batches.append(answer.json()["id"])  # type: ignore[attr-defined]
    for file_id, can_come_again in ((small, True), (large, False)):
        refused = submit(file_id)
        assert refused.status_code == 429  # type: ignore[attr-defined]
        assert error_of(refused)["type"] == "tokens"  # type: ignore[arg-type]
        assert ("retry-after" in refused.headers) == can_come_again  # type: ignore[attr-defined]
    assert sql(database, "SELECT count(*) FROM batches") == [(2,)]


def test_limits_of_a_key_are_set_apart_and_logged(join: Callable[..., Tenant]) -> None:
    first, second = join("acme"), join("acme")
    limit(first, key=first.key, requests_per_minute=1)
    assert [first.http.get("/v1/models").status_code for _ in range(2)] == [200, 429]
    assert second.http.get("/v1/models").status_code == 200
    with transaction() as session:
        with pytest.raises(UserError, match="is -1: give a number"):
            set_rate_limits(session, first.id, {"requests_per_minute": -1})
        [entry] = list_entries(session, act="limits.set")
        assert entry.object == first.id
        assert entry.details["requests_per_minute"] == 1
        assert session.get(ApiKey, entry.details["key"]) is not None
