from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from running_gateways import Tenant
from typer.testing import CliRunner
from webhook_receivers import Receiver, receiver

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus
from pipeline.tables.session import transaction
from pipeline.webhooks.delivering import deliver_due
from pipeline.webhooks.events import add_event

Run = Callable[..., Result]


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


@pytest.fixture
def run(settings_env: pytest.MonkeyPatch, tmp_path: Path, acme: Tenant) -> Run:
    settings_env.setenv(f"{PREFIX}WEBHOOK_HTTP", "true")
    settings_env.setenv(f"{PREFIX}WEBHOOK_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
    settings_env.setenv(f"{PREFIX}SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    settings_env.setenv(f"{PREFIX}BASE_URL", str(acme.client.base_url))
    settings_env.setenv(f"{PREFIX}API_KEY", acme.key)
    get_settings.cache_clear()
    return lambda *arguments: CliRunner().invoke(app, ["webhooks", *arguments])


def printed(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def happen(acme: Tenant) -> None:
    file = acme.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    batch = acme.client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    with transaction() as session:
        add_event(session, batch.id, BatchStatus.FAILED)


def test_an_endpoint_from_its_making_to_what_was_sent(run: Run, acme: Tenant, hooks: Receiver) -> None:
    made = run("create", hooks.url, "--name", "mine", "--events", "batch.failed")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    [listed] = printed(run("list", "--json"))
    assert (listed["name"], listed["event_types"]) == ("mine", ["batch.failed"])
    assert secret not in run("list").stdout
    happen(acme)
    hooks.statuses[:] = [500, 200]
    deliver_due()
    assert "failing since 20" in run("list").stdout
    table = run("deliveries", listed["id"]).stdout
    assert "The receiver answered with status 500." in table
    [pending] = printed(run("deliveries", listed["id"], "--json"))
    assert run("resend", listed["id"], pending["id"]).stdout == f"{pending['id']} is sent again.\n"
    deliver_due()
    assert len(printed(run("deliveries", listed["id"], "--status", "delivered", "--json"))) == 1
    event = acme.client.webhooks.unwrap(hooks.received[1].body, hooks.received[1].headers, secret=secret)
    assert event.type == "batch.failed"


def test_an_endpoint_is_tried_disabled_and_enabled(run: Run, hooks: Receiver) -> None:
    made = printed(run("create", hooks.url, "--json"))
    assert run("test", made["id"]).stdout == "It answered with 200.\n"
    hooks.statuses[:] = [404]
    assert run("test", made["id"]).exit_code == 1
    assert run("disable", made["id"]).stdout == f"{made['id']} is disabled: It was disabled by its owner.\n"
    assert run("enable", made["id"]).stdout == f"{made['id']} is enabled.\n"
    for arguments in (("deliveries", "none"), ("create", "ftp://x")):
        assert isinstance(run(*arguments).exception, UserError)
