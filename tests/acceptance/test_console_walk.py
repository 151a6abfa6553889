"""A person walks through the console of a whole stack: every page, from the upload to the bill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
from batch_jobs import chat_line, submit, wait_for_end, wait_until_under_way
from browsers import check_accessible, drop_file, keep_screenshot, no_complaints
from model_folders import random_llama
from openai.types import Batch
from playwright.sync_api import Page, expect
from stacks import RunningStack

from pipeline.tables.session import make_engine, transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import ensure_tenant

#: Completion tokens of a second: the running batch lasts for as long as the tests.
SPEED = 300
_QUESTIONS = (
    "Which port is meant?",
    "Sum up this ticket in a line.",
    "Is the tone of this mail friendly?",
)
#: Pages of which pictures are kept, in which theme.
_KEPT_LIGHT = ("batches", "batch", "answers", "errors", "usage", "costs", "groups")
_KEPT_DARK = ("queue",)
_OPERATING = ("usage", "costs", "budgets", "keys", "groups", "queue")
# A month in which something was used every day, so that charts have something to show.
_USAGE = """
    INSERT INTO usage_rollups (tenant_id, period, starts_at, project_id, api_key_id, model, service_class, meter,
                               currency, shard, num_events, quantity, engine_ms, amount)
    SELECT k.tenant_id, 'day', date_trunc('day', now(), 'UTC') - n * interval '1 day', 'proj_' || md5(k.tenant_id),
           k.id, m.model, 'standard', m.meter, 'USD', 7, 900 + 31 * (n % 7), m.share * (5000 + 1700 * (n % 7)), 0,
           m.share * (5000 + 1700 * (n % 7)) * m.price * 0.000001
    FROM api_keys k, generate_series(1, 29) n,
         (VALUES ('tiny', 'input_uncached', 6, 0.05), ('tiny', 'input_cached', 3, 0.025), ('tiny', 'output', 4, 0.2),
                 ('large', 'input_uncached', 5, 0.3), ('large', 'output', 3, 1.2)) m (model, meter, share, price)
    WHERE k.name = 'first key'
"""


@dataclass(frozen=True)
class Scene:
    """A stack with a batch in every state, and what a browser needs to look at it."""

    stack: RunningStack
    client: openai.OpenAI
    finished: Batch
    running: Batch
    failed: Batch
    paused: Batch

    @property
    def console(self) -> str:
        return str(self.stack.report["base_url"]).removesuffix("/v1") + "/console"


def questions(count: int, **body: Any) -> list[dict[str, Any]]:
    return [chat_line(f"request-{n + 1}", f"{_QUESTIONS[n % 3]} No. {n + 1}", **body) for n in range(count)]


def named(client: openai.OpenAI, name: str, lines: list[dict[str, Any]]) -> Batch:
    text = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=(name, text), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


@pytest.fixture(scope="module")
def scene(stack_folder: Path) -> Iterator[Scene]:
    settings = {"ECHO_TOKENS_PER_SECOND": SPEED, "SLICE_TOKENS": 4096, "DRAIN_SECONDS": 1}
    env = {f"RYZANSTEIN_{name}": str(value) for name, value in settings.items()}
    model = random_llama(stack_folder / "console-models" / "tiny", context_length=512)
    stack = RunningStack(stack_folder / "console", model, ("--engine", "echo"), env)
    try:
        stack.up()
        client = stack.client()
        finished = wait_for_end(client, named(client, "tickets-october.jsonl", questions(12, max_tokens=16)).id)
        running = named(client, "tickets-november.jsonl", questions(1000, max_tokens=48))
        wait_until_under_way(client, running.id)
        bad = [chat_line("request-1", temperature=7), chat_line("request-2", max_tokens=-1), *questions(2)]
        failed = wait_for_end(client, named(client, "mails.jsonl", bad).id)
        paused = named(client, "invoices.jsonl", questions(30))
        client.post(f"/batches/{paused.id}/pause", cast_to=object)
        with transaction(make_engine(stack.report["database_url"])) as session:
            _, key = create_key(session, ensure_tenant(session, "globex").id, "key")
        submit(stack.client(key), questions(40, max_tokens=32), extra_body={"service_class": "flex"})
        with psycopg.connect(stack.report["database_url"].replace("+psycopg", ""), autocommit=True) as conn:
            conn.execute(_USAGE)
        assert (finished.status, failed.status) == ("completed", "failed")
        yield Scene(stack, client, finished, running, failed, paused)
    finally:
        stack.end()


@pytest.fixture
def enter(scene: Scene, open_page: Callable[..., Page]) -> Iterator[Callable[..., Page]]:
    """A page of somebody who has signed in: `enter(color_scheme="dark")`."""
    strangers: list[str] = []

    def enter(**options: Any) -> Page:
        page = open_page(reduced_motion="reduce", **options)
        checks.enter_context(no_complaints(page))
        page.on("request", lambda asked: None if is_ours(asked.url) else strangers.append(asked.url))
        page.goto(f"{scene.console}/")
        page.get_by_label("API key").fill(scene.stack.report["api_key"])
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()
        return page

    def is_ours(url: str) -> bool:
        return url.startswith((f"{scene.console}/", "data:", "blob:"))

    with ExitStack() as checks:
        yield enter
    assert strangers == [], "the console asks for nothing but itself"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_can_be_used_by_everybody_and_asks_nobody_else(
    scene: Scene, enter: Callable[..., Page], theme: str
) -> None:
    page = enter(color_scheme=theme)
    pages = {
        "batches": ("batches", "tickets-november.jsonl"),
        "batch": (f"batches/{scene.running.id}", "of 1,000 requests"),
        "requests": (f"batches/{scene.finished.id}/requests", "request-12"),
        "answers": (f"batches/{scene.finished.id}/answers", "Which port is meant? No. 1"),
        "errors": (f"batches/{scene.failed.id}/errors", "body.temperature"),
        "upload": ("upload", "Drop it here"),
        "usage": ("usage?span=30d", "Tokens by day, UTC"),
        "costs": ("costs", "Line items in USD"),
        "budgets": ("budgets", "Make or change a budget"),
        "keys": ("keys", "first key"),
        "groups": ("groups", "group-0"),
        "queue": ("queue", "Next is"),
    }
    if theme == "dark":  # the others are looked at in both by tests of their own
        pages = {name: found for name, found in pages.items() if name in ("batches", *_OPERATING)}
    for name, (path, words) in pages.items():
        page.goto(f"{scene.console}/{path}")
        expect(page.get_by_text(words).first).to_be_visible()
        if page.locator("[data-chart]").count():
            expect(page.locator("[data-chart] .apexcharts-bar-area").first).to_be_attached()
        check_accessible(page)
        if (name in _KEPT_DARK) == (theme == "dark") and name in (*_KEPT_DARK, *_KEPT_LIGHT):
            keep_screenshot(page, f"console-{name}.png")


def test_a_batch_is_cancelled_another_uploaded_mended_quoted_and_read_and_a_third_goes_on(
    scene: Scene, enter: Callable[..., Page]
) -> None:
    page = enter()
    page.once("dialog", lambda dialog: dialog.accept())
    page.goto(f"{scene.console}/batches/{scene.running.id}")
    page.get_by_role("button", name="Cancel").click()  # else the others wait for it
    expect(page.locator("#progress")).to_contain_text("cancel")

    page.get_by_role("link", name="Upload", exact=True).click()
    lines = questions(6)
    text = "\n".join(map(json.dumps, lines))
    drop_file(page, "reviews.jsonl", text.replace('"max_tokens": 8', '"max_tokens": -8', 2))
    page.wait_for_url("**/console/quotes/*")
    expect(page.get_by_text("2 things are wrong with this file.")).to_be_visible()
    expect(page.get_by_role("row", name="body.max_tokens").first).to_contain_text('"custom_id": "request-1"')

    page.get_by_role("link", name="Upload", exact=True).click()
    drop_file(page, "reviews.jsonl", text)
    page.wait_for_url("**/console/quotes/*")
    expect(page.get_by_text("What it would cost")).to_be_visible()
    keep_screenshot(page, "console-quote.png")
    page.get_by_role("button", name="Create the batch").click()
    page.wait_for_url("**/console/batches/batch_*")
    expect(page.locator("#progress")).to_contain_text("completed", timeout=30_000)  # by itself
    expect(page.locator("#progress")).to_contain_text("6 of 6 requests")
    page.get_by_role("link", name="Answers", exact=True).click()
    first = page.get_by_role("region", name="request-1")
    expect(first).to_contain_text("Which port is meant? No. 1")
    expect(first).to_contain_text("succeeded")
    check_accessible(page)

    page.get_by_role("link", name="Batches", exact=True).click()
    page.get_by_role("link", name="invoices.jsonl").click()
    expect(page.get_by_text("You have paused it")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#progress")).not_to_contain_text("paused")
    wait_for_end(scene.client, scene.paused.id)
    expect(page.locator("#progress")).to_contain_text("completed")
    expect(page.get_by_text("30 of 30 requests")).to_be_visible()


def test_budgets_keys_and_groups_are_managed(scene: Scene, enter: Callable[..., Page]) -> None:
    page = enter()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("link", name="Budgets").click()
    page.get_by_label("Tenant").fill("globex")
    page.get_by_label("Limit", exact=True).fill("250")
    page.get_by_role("button", name="Set the budget").click()
    expect(page.get_by_role("row", name="globex")).to_contain_text("250.00 USD")
    keep_screenshot(page, "console-budgets.png")
    page.get_by_role("button", name="Remove the budget of globex").click()
    expect(page.get_by_text("No budgets")).to_be_visible()

    page.get_by_role("link", name="Keys").click()
    page.get_by_label("Name").fill("nightly import")
    page.get_by_label("batches:read").check()
    page.get_by_role("button", name="Make the key").click()
    key = page.get_by_label("It is shown this once").input_value()
    assert [model.id for model in scene.stack.client(key).models.list()] == ["tiny"]
    check_accessible(page)
    page.get_by_role("link", name="Keys").click()
    assert key not in page.content()
    keep_screenshot(page, "console-keys.png")
    page.get_by_role("button", name="Revoke nightly import").click()
    expect(page.get_by_role("row", name="nightly import")).to_contain_text("revoked")
    with pytest.raises(openai.AuthenticationError):
        scene.stack.client(key).models.list()

    page.get_by_role("link", name="Groups").click()
    page.get_by_role("button", name="Drain group-0").click()
    expect(page.get_by_text("drained", exact=True)).to_be_visible(timeout=30_000)  # by itself
    page.get_by_role("button", name="Resume group-0").click()
    expect(page.get_by_text("ready", exact=True).last).to_be_visible()


def test_all_of_it_is_reached_without_a_mouse(scene: Scene, open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.goto(f"{scene.console}/usage")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(scene.stack.report["api_key"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Usage", exact=True)).to_be_visible()  # where one was going
    for name in ("Costs", "Keys", "Queue"):
        press_until(page, "link", name)
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
    press_until(page, "button", "Dark theme")
    page.keyboard.press("Space")
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
    press_until(page, "button", "Sign out")
    page.keyboard.press("Enter")
    expect(page.get_by_text("You have signed out.")).to_be_visible()


def press_until(page: Page, role: Any, name: str) -> None:
    """Tab to a control, past no more than fifty others."""
    wanted = page.get_by_role(role, name=name, exact=True).first
    for _ in range(50):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab never comes to {name!r}")
