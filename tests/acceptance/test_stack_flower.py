"""What Flower and doctor show of a running stack."""

from __future__ import annotations

import base64
import json
import re
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
from batch_jobs import lines_of, submit, wait_for_end
from browsers import keep_screenshot
from playwright.sync_api import Page, expect
from stacks import RunningStack, wait_for

from pipeline.telemetry.metrics.targets import read_targets


def get(stack: RunningStack, path: str) -> Any:
    login = f"{stack.report['flower_user']}:{stack.report['flower_password']}"
    request = urllib.request.Request(stack.report["flower_url"] + path)
    request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as response:
        return json.loads(response.read())


def test_flower_shows_the_workers_their_queues_and_readable_tasks(stack: RunningStack, client: openai.OpenAI) -> None:
    batch = wait_for_end(client, submit(client, lines_of(3)).id)
    assert batch.status == "completed"

    expected = {("control.prepare", f"batch={batch.id}"), ("generate.slice", "model=tiny")}

    def are_shown() -> bool:
        tasks = get(stack, "/api/tasks").values()
        return expected <= {(task["name"], task["args"]) for task in tasks if task["state"] == "SUCCESS"}

    wait_for(are_shown, "the tasks of the batch")

    control = read_targets(stack.data_dir)["control"]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{control}/flower", timeout=10) as page:
        assert b'task="generate.slice"' in page.read()

    # Flower asks the workers about themselves now and then.
    wait_for(
        lambda: {name.split("@")[0] for name in get(stack, "/api/workers")} == {"control", "group-0"}, "the workers"
    )
    empty = [{"name": "control", "messages": 0}, {"name": "generate.tiny", "messages": 0}]
    wait_for(lambda: get(stack, "/api/queues/length")["active_queues"] == empty, "the queues")


def test_a_person_sees_the_batch_its_tasks_and_the_hardware_of_its_worker(
    stack: RunningStack, client: openai.OpenAI, open_page: Callable[..., Page]
) -> None:
    batch = wait_for_end(client, submit(client, lines_of(20)).id)
    assert batch.status == "completed"
    login = {"username": stack.report["flower_user"], "password": stack.report["flower_password"]}
    page = open_page(http_credentials=login, viewport={"width": 1700, "height": 780})
    flower = stack.report["flower_url"]

    page.goto(f"{flower}/tasks")
    prepared = page.locator("#tasks-table tbody tr", has_text=f"batch={batch.id}").filter(has_text="control.prepare")
    expect(prepared).to_contain_text("SUCCESS")
    ran = page.locator("#tasks-table tbody tr", has_text="slice=").filter(has_text=f"batch={batch.id}").first
    expect(ran).to_contain_text("generate.slice")
    expect(ran).to_contain_text("model=tiny")
    expect(ran).to_contain_text("attempt=1")
    expect(ran).to_contain_text(re.compile(r"completion_tokens=[1-9]"))
    keep_screenshot(page, "flower.png")

    page.goto(flower + str(prepared.locator("a[href*='/task/']").first.get_attribute("href")))
    expect(page.locator("#batch-in-console")).to_have_attribute("href", f"{flower_console(stack)}/batches/{batch.id}")

    page.set_viewport_size({"width": 1000, "height": 1250})
    page.goto(f"{flower}/worker/group-0@{socket.gethostname()}")
    page.get_by_role("tab", name="Other").click()
    shown = page.locator("#tab-other")
    for name, value in {"model": "tiny", "device": "cpu", "tp": "1", "dtype": "auto", "engine": "echo"}.items():
        expect(shown.locator("tr", has=page.get_by_text(name, exact=True)).first).to_contain_text(value)
    for name in ("hardware", "devices", "memory", "state", "running"):
        expect(shown.get_by_text(name, exact=True)).to_be_visible()
    expect(shown).to_have_class(re.compile(r"\bshow\b"))  # it fades in
    keep_screenshot(page, "flower-worker.png")


def flower_console(stack: RunningStack) -> str:
    return str(stack.report["base_url"]).removesuffix("/v1") + "/console"


def test_doctor_finds_a_running_stack_healthy(stack: RunningStack) -> None:
    done = stack.run("doctor", "--json")

    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, done.stdout
    assert {finding["verdict"] for finding in findings} == {"ok"}
