"""What Flower and doctor show of a running stack."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

import openai
from batch_jobs import lines_of, submit, wait_for_end
from stacks import RunningStack, wait_for


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

    # Flower asks the workers about themselves now and then.
    wait_for(
        lambda: {name.split("@")[0] for name in get(stack, "/api/workers")} == {"control", "group-0"}, "the workers"
    )
    empty = [{"name": "control", "messages": 0}, {"name": "generate.tiny", "messages": 0}]
    wait_for(lambda: get(stack, "/api/queues/length")["active_queues"] == empty, "the queues")


def test_doctor_finds_a_running_stack_healthy(stack: RunningStack) -> None:
    done = stack.run("doctor", "--json")

    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, done.stdout
    assert {finding["verdict"] for finding in findings} == {"ok"}
