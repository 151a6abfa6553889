"""The console in a real browser: dropped files, pages that follow what happens, themes, and the keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsers import browser, check_accessible, drop_file, no_complaints, open_page
from computed_quotes import computing_quotes
from playwright.sync_api import Page, expect
from running_gateways import Tenant
from seeds import SeededTenant, seed_model, sql
from sqlalchemy import Engine
from submitting import Bench, request_line, request_lines
from tokenizer_folders import byte_level

from pipeline.jobs.preparing import prepare
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import authenticate

__all__ = ["browser", "open_page"]


@pytest.fixture
def bench(acme: Tenant, database: Engine, tmp_path: Path) -> Iterator[Bench]:
    """Control at work on quotes, and groups that answer when they are told to."""
    seed_model(database, path=str(byte_level(tmp_path / "model")))
    with transaction() as session:
        api_key_id = authenticate(session, acme.key).api_key_id
    with computing_quotes():
        yield Bench(database, SeededTenant(acme.id, api_key_id))


@pytest.fixture
def page(open_page: Callable[..., Page], address: str, acme: Tenant, bench: Bench) -> Iterator[Page]:
    """Signed in; whatever the browser complains about fails the test."""
    page = open_page(color_scheme="dark", reduced_motion="reduce")
    with no_complaints(page):
        page.goto(f"{address}/console/")
        page.get_by_label("API key").fill(acme.key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()
        yield page


def test_a_dropped_file_becomes_a_batch_that_is_seen_to_run(page: Page, acme: Tenant, bench: Bench) -> None:
    page.get_by_role("link", name="Upload").click()
    check_accessible(page)
    text = "\n".join(json.dumps(line) for line in request_lines(20))
    drop_file(page, "dropped.jsonl", text)
    page.wait_for_url("**/console/quotes/*")
    expect(page.get_by_text("What it would cost")).to_be_visible()  # by itself, when control has read the file
    check_accessible(page)
    page.get_by_label("Pause before it costs more than (USD)").fill("2.50")
    page.get_by_role("button", name="Create the batch").click()
    page.wait_for_url("**/console/batches/batch_*")
    expect(page.get_by_role("heading", name="dropped.jsonl")).to_be_visible()
    batch_id = page.url.rsplit("/", 1)[1]
    prepare(batch_id, bench.engine)
    bench.answer(bench.claim(), 5)
    expect(page.get_by_text("5 of 20 requests")).to_be_visible()
    check_accessible(page)
    page.get_by_role("button", name="Cancel").focus()
    assert person_pauses(acme, batch_id) == "client"
    expect(page.get_by_role("button", name="Resume")).to_be_visible()  # what is shown was exchanged
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress")).to_contain_text("cancelling")
    for name in ("Requests", "Answers", "Errors"):
        page.get_by_role("link", name=name, exact=True).click()
        check_accessible(page)
    assert acme.client.batches.retrieve(batch_id).status == "cancelling"


def person_pauses(tenant: Tenant, batch_id: str) -> str:
    """Elsewhere, by the API."""
    answer = tenant.http.post(f"/v1/batches/{batch_id}/pause")
    return str(answer.json()["pause_reason"])


def test_a_live_page_keeps_its_session_alive_only_while_it_is_touched(
    page: Page, address: str, acme: Tenant, bench: Bench, database: Engine
) -> None:
    batch_id = bench.run(1)
    page.goto(f"{address}/console/batches/{batch_id}")
    sql(database, "UPDATE console_sessions SET last_seen_at = now() - interval '1 hour'")
    is_noted = "SELECT last_seen_at > now() - interval '1 minute' FROM console_sessions"

    def look() -> None:
        with page.expect_response(lambda answer: answer.url.endswith(batch_id) and answer.ok):
            pass

    look()
    assert sql(database, is_noted) == [(False,)]
    page.keyboard.press("Shift")
    look()
    look()  # the first may have been on its way
    assert sql(database, is_noted) == [(True,)]


def test_errors_are_shown_on_their_lines_and_a_large_file_is_refused(page: Page, address: str) -> None:
    page.goto(f"{address}/console/upload")
    page.evaluate("document.querySelector('form[data-upload]').dataset.mostBytes = 3")
    page.get_by_label("Input file").set_input_files({"name": "a", "mimeType": "text/plain", "buffer": b"four"})
    page.get_by_role("button", name="Check it").click()
    expect(page.get_by_text("This file is too large")).to_be_visible()
    page.goto(f"{address}/console/upload")
    bad = json.dumps(request_line("b", max_tokens=-1)).encode()
    page.get_by_label("Input file").set_input_files({"name": "bad", "mimeType": "text/plain", "buffer": b"{\n" + bad})
    page.get_by_role("button", name="Check it").press("Enter")
    expect(page.get_by_text("2 things are wrong with this file.")).to_be_visible()
    expect(page.get_by_role("row", name="body.max_tokens")).to_contain_text('"custom_id": "b"')
    check_accessible(page)


def test_the_theme_follows_the_system_until_it_is_chosen_and_keys_reach_everything(page: Page) -> None:
    root = page.locator("html")
    expect(root).to_have_attribute("data-bs-theme", "dark")
    check_accessible(page)
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-bs-theme", "light")
    check_accessible(page)
    page.get_by_role("button", name="Dark theme").click()
    page.reload()
    expect(root).to_have_attribute("data-bs-theme", "dark")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="New batch").first).to_be_focused()
    page.get_by_role("button", name="Sign out").press("Enter")
    expect(page.get_by_text("You have signed out.")).to_be_visible()
    check_accessible(page)
