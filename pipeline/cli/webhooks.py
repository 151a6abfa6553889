"""`ryzanstein webhooks`: where a client wants to hear that its batches have ended, and what was sent there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from pipeline.cli.connecting import API_KEY, BASE_URL, DATA_DIR, JSON, once, open_client

_ENDPOINT = typer.Argument(help="Id of a webhook endpoint.")
_EVENTS = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


def register(app: typer.Typer) -> None:
    webhooks = typer.Typer(help="Webhooks, which tell that a batch has ended.", no_args_is_help=True)
    webhooks.command()(create)
    webhooks.command("list")(list_endpoints)
    webhooks.command("test")(send_sample)
    for command in (disable, enable, deliveries, resend):
        webhooks.command()(command)
    app.add_typer(webhooks, name="webhooks")


def create(
    url: str = typer.Argument(help="Address that is told, beginning with https://."),
    name: str = typer.Option("webhook", help="What it is for."),
    events: str = typer.Option(",".join(_EVENTS), help="Types of events that are told, separated by commas."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Make a webhook endpoint, and print the secret that verifies its messages, this once."""
    kinds: list[Any] = [kind.strip() for kind in events.split(",")]
    with open_client(data_dir, base_url, api_key) as client:
        made = client.webhooks.create(name=name, url=url, event_types=kinds, extra_headers=once())
    if as_json:
        typer.echo(json.dumps(made.model_dump(mode="json")))
        return
    typer.echo(made.signing_secret)
    typer.echo(f"The secret of {made.id}. It can't be shown again.", err=True)


def list_endpoints(
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """List webhook endpoints, the newest first."""
    with open_client(data_dir, base_url, api_key) as client:
        found = [endpoint.model_dump(mode="json") for endpoint in client.webhooks.list()]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from pipeline.cli.rendering import print_table

    print_table(
        ["id", "name", "url", "events", "state"],
        [[one["id"], one["name"], one["url"], ",".join(one["event_types"]), _state(one)] for one in found],
    )


def send_sample(
    endpoint: str = _ENDPOINT,
    event: str = typer.Option(_EVENTS[0], help="Type of the sample."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Send a sample event now; exit code 1 if it is not answered by success."""
    kind: Any = event
    with open_client(data_dir, base_url, api_key) as client:
        result = client.webhooks.test(endpoint, event_type=kind)
    typer.echo(json.dumps(result.model_dump(mode="json")) if as_json else f"It answered with {result.status_code}.")
    if not 200 <= result.status_code < 300:
        raise typer.Exit(1)


def disable(
    endpoint: str = _ENDPOINT,
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Send nothing more to an endpoint, and give up what waits."""
    _set_disabled(endpoint, True, data_dir, base_url, api_key, as_json)


def enable(
    endpoint: str = _ENDPOINT,
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Tell an endpoint again of what happens from now on; `resend` sends what it has missed."""
    _set_disabled(endpoint, False, data_dir, base_url, api_key, as_json)


def deliveries(
    endpoint: str = _ENDPOINT,
    status: str | None = typer.Option(None, help="Only pending, delivered or failed ones."),
    limit: int = typer.Option(20, min=1, max=100, help="How many."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """List what was sent to an endpoint of late, the newest first."""
    params = {"limit": limit, **({} if status is None else {"status": status})}
    with open_client(data_dir, base_url, api_key) as client:
        found: Any = client.get(f"{_path(endpoint)}/deliveries", cast_to=object, options={"params": params})
    if as_json:
        typer.echo(json.dumps(found["data"], indent=2))
        return
    from pipeline.cli.rendering import print_table

    headers = ["id", "event", "batch", "status", "#attempts", "last answer", "next attempt"]
    rows = [
        [
            *(one["id"], one["event_type"], one["batch_id"], one["status"], str(one["num_attempts"])),
            *(_last_answer(one["attempts"]), _moment(one["next_attempt_at"])),
        ]
        for one in found["data"]
    ]
    print_table(headers, rows)


def resend(
    endpoint: str = _ENDPOINT,
    delivery: str = typer.Argument(help="Id of a delivery, as `deliveries` shows it."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Send an event again, with the same webhook-id, whatever came of it before."""
    path = f"{_path(endpoint)}/deliveries/{quote(delivery, safe='')}/resend"
    with open_client(data_dir, base_url, api_key) as client:
        sent: Any = client.post(path, cast_to=object, options={"headers": once()})
    typer.echo(json.dumps(sent) if as_json else f"{sent['id']} is sent again.")


def _set_disabled(
    endpoint: str, is_disabled: bool, data_dir: Path | None, base_url: str | None, api_key: str | None, as_json: bool
) -> None:
    with open_client(data_dir, base_url, api_key) as client:
        changed: Any = client.post(
            _path(endpoint), cast_to=object, body={"disabled": is_disabled}, options={"headers": once()}
        )
    typer.echo(json.dumps(changed) if as_json else f"{changed['id']} is {_state(changed)}.")


def _path(endpoint: str) -> str:
    return f"/webhook_endpoints/{quote(endpoint, safe='')}"


def _state(endpoint: dict[str, Any]) -> str:
    if endpoint.get("disabled_at"):
        return f"disabled: {str(endpoint.get('disabled_reason')).rstrip('.')}"
    since = endpoint.get("failing_since")
    return f"failing since {_moment(since)}" if since else "enabled"


def _last_answer(attempts: list[dict[str, Any]]) -> str:
    if not attempts:
        return ""
    last = attempts[-1]
    return str(last["error"] or last["status"])


def _moment(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
