"""A whole service in one process, and the life of several batches in it, from upload to bill and beyond."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import openai
import redis
from running_gateways import Tenant
from running_groups import ScriptedEngine, make_settings, running_group, wait_for
from seeds import MODEL, sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from submitting import request_line, request_lines
from webhook_receivers import Receiver

from pipeline import storage
from pipeline.billing.invoices import create_invoices
from pipeline.billing.reports import Month
from pipeline.files import upload_key
from pipeline.fleet import UnknownGroupError, want_drain
from pipeline.jobs import tasks
from pipeline.jobs.audit import Violation, audit
from pipeline.jobs.claiming import claim_slice
from pipeline.jobs.retention import old_months
from pipeline.settings import get_settings
from pipeline.tables.session import transaction
from pipeline.webhooks.events import EventType
from workers.backends.protocol import EngineRequest, Partial, PartialChoice, Progress

T = TypeVar("T")

POISON = 99
FINAL = {"completed", "failed", "expired", "cancelled"}

#: What each batch ends as, and how many of its requests succeed.
EXPECTED = {
    "good": ("completed", 8),
    "bad": ("failed", 0),
    "doomed": ("failed", 0),
    "poisoned": ("completed", 3),
    "cancelled": ("cancelled", 0),
    "expired": ("expired", 0),
    "retried": ("completed", 4),
    "late": ("completed", 4),
}


class ReportingEngine(ScriptedEngine):
    """Reports one token of each request as soon as it has it."""

    def submit(self, request: EngineRequest) -> None:
        super().submit(request)
        with self.changed:
            choice = PartialChoice(token_ids=[7])
            self.progress.append(Progress(id=request.id, partial=Partial(choices=[choice])))


def again(work: Callable[[], T], limit: float = 30.0) -> T:
    """What a client does that knows of outages."""
    deadline = time.monotonic() + limit
    while True:
        try:
            return work()
        except (openai.APIConnectionError, openai.InternalServerError, DBAPIError):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@dataclass
class World:
    """A service in this process, and its only client."""

    database: Engine
    tenant: Tenant
    redis_url: str
    model_path: Path
    #: Hears of every batch that ends.
    hooks: Receiver
    #: By name, as in `EXPECTED`.
    batches: dict[str, str] = field(default_factory=dict)

    # --- what control does

    def tick(self) -> None:
        """Everything that control does by message and by the clock, once."""
        with contextlib.suppress(tasks.ControlTaskError):
            tasks.relay()
        with contextlib.suppress(tasks.ControlTaskError):
            tasks.sweep()
        with contextlib.suppress(tasks.ControlTaskError):
            tasks.prepare("")
        for look in (lambda: tasks.quote(""), tasks.deliver):
            with contextlib.suppress(tasks.ControlTaskError):
                look()
        for batch_id in self.batches.values():
            for task in (tasks.cancel, tasks.finalize):
                with contextlib.suppress(tasks.ControlTaskError):
                    task(batch_id)

    def tick_until(self, condition: Callable[[], bool], why: Callable[[], object] | None = None) -> None:
        """Control goes on until then; `why` tells, where it takes too long, what is not yet as it should be."""
        deadline = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < deadline, (why or self.statuses)()
            self.tick()
            time.sleep(0.02)

    def statuses(self) -> dict[str, str]:
        return {name: self.batch(name).status for name in self.batches}

    # --- what the client does

    def upload(self, lines: list[dict[str, object]]) -> str:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return again(lambda: self.tenant.client.files.create(file=("in.jsonl", content), purpose="batch")).id

    def submit(self, name: str, lines: list[dict[str, object]]) -> str:
        file_id = self.upload(lines)
        batch = again(
            lambda: self.tenant.client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/completions",
                completion_window="24h",
                extra_headers={"Idempotency-Key": name},
            )
        )
        self.batches[name] = batch.id
        return file_id

    def act(self, name: str, action: str) -> str:
        path, headers = f"/batches/{self.batches[name]}/{action}", {"Idempotency-Key": action}
        acted: Any = again(lambda: self.tenant.client.post(path, cast_to=object, options={"headers": headers}))
        return str(acted["id"])

    def batch(self, name: str) -> openai.types.Batch:
        return again(lambda: self.tenant.client.batches.retrieve(self.batches[name]))

    def is_final(self, name: str) -> bool:
        return self.batch(name).status in FINAL

    def read(self, file_id: str | None) -> list[dict[str, object]]:
        if file_id is None:
            return []
        content = again(lambda: self.tenant.client.files.content(file_id).read())
        return [json.loads(line) for line in content.splitlines()]

    def remove(self, file_id: str) -> None:
        with contextlib.suppress(openai.NotFoundError):  # the answer to the first try was lost
            again(lambda: self.tenant.client.files.delete(file_id))

    # --- all of it

    def live(self) -> None:
        """Every batch from its upload to its end, past every function that commits."""
        self.look_around()
        self.manage_webhooks()
        used = self.submit("good", request_lines(8, prompt=[5, 6]))
        self.ask_price(used)
        self.submit("bad", [request_line("a", max_tokens=-1)])
        doomed = self.submit("doomed", request_lines(1))
        storage.delete_blob(upload_key(doomed))
        sql(self.database, "UPDATE batches SET num_preparations = 7 WHERE input_file_id = :id", id=doomed)
        prompts = [[5, 6], [5, 7], [POISON, 8], [5, 9]]
        self.submit("poisoned", [request_line(f"p{index}", prompt) for index, prompt in enumerate(prompts)])
        for name in ("cancelled", "expired"):
            self.submit(name, request_lines(4, prompt=[5, 6]))
        time.sleep(get_settings().sweep_seconds)  # a batch that is older than this, and has no message, is forgotten
        self.tick_until(lambda: all(self.batch(name).status != "validating" for name in self.batches))

        again(lambda: self.tenant.client.batches.cancel(self.batches["cancelled"]))
        sql(
            self.database,
            "UPDATE batches SET expires_at = now() - interval '1 second' WHERE id = :id",
            id=self.batches["expired"],
        )
        # As by a budget that has room again.
        sql(
            self.database,
            "UPDATE batches SET pause_reason = 'a budget', paused_at = now(), pause_needs = 0 WHERE id = :id",
            id=self.batches["good"],
        )
        for action in ("pause", "resume"):
            self.act("poisoned", action)
        self.lose_what_can_be_lost()
        self.tick_until(lambda: self.is_final("cancelled") and self.is_final("expired"))
        self.batches["retried"] = self.act("cancelled", "retry")
        self.run_groups()
        self.tidy_up(used)

    def look_around(self) -> None:
        client = self.tenant.client
        again(lambda: client.models.list())
        again(lambda: client.models.retrieve(MODEL))
        again(lambda: client.files.list())
        again(lambda: client.batches.list())
        again(lambda: client.get("/organization/budgets", cast_to=object))
        again(lambda: client.get("/organization/invoices", cast_to=object))

    def manage_webhooks(self) -> None:
        webhooks = self.tenant.client.webhooks

        def make(name: str) -> Any:
            kinds: list[Any] = list(EventType)
            headers = {"Idempotency-Key": name}
            return webhooks.create(name=name, url=self.hooks.url, event_types=kinds, extra_headers=headers)

        made, unused = again(lambda: make("hooks")), again(lambda: make("unused"))
        again(lambda: webhooks.list())
        again(lambda: webhooks.retrieve(made.id))
        again(lambda: webhooks.update(made.id, name="more"))
        again(lambda: webhooks.rotate_secret(made.id))
        again(lambda: webhooks.test(made.id, event_type="batch.failed"))
        with contextlib.suppress(openai.NotFoundError):  # the answer to the first try was lost
            again(lambda: webhooks.delete(unused.id))

    def hear_again(self) -> None:
        """What was delivered is sent again."""
        client = self.tenant.client
        path = f"/webhook_endpoints/{again(lambda: client.webhooks.list()).data[0].id}/deliveries"
        sent: Any = again(lambda: client.get(path, cast_to=object))
        again(lambda: client.post(f"{path}/{sent['data'][0]['id']}/resend", cast_to=object))

    def ask_price(self, file_id: str) -> None:
        client, body = self.tenant.client, {"input_file_id": file_id, "endpoint": "/v1/completions"}
        asked: Any = again(lambda: client.post("/batches/quote", body=body, cast_to=object))

        def is_ready() -> bool:
            quote: Any = again(lambda: client.get(f"/batches/quote/{asked['id']}", cast_to=object))
            return bool(quote["status"] == "ready")

        self.tick_until(is_ready)

    def watch(self, name: str) -> None:
        """An event, and a look of the feed."""
        path = f"/v1/batches/{self.batches[name]}/events"

        def hear() -> str:
            with self.tenant.http.stream("GET", path, params={"timeout": 2}) as response:
                if response.status_code != 200:
                    response.read()
                    raise openai.InternalServerError("again", response=response, body=None)
                return "".join(response.iter_text())

        assert "data: " in again(hear)

    def read_invoice(self) -> None:
        client, now = self.tenant.client, datetime.now(UTC)

        def draft() -> str:
            with transaction(self.database) as session:
                return create_invoices(session, self.tenant.id, Month.of(now), now)[0].id

        invoice_id = again(draft)
        again(lambda: client.get(f"/organization/invoices/{invoice_id}", cast_to=object))
        again(lambda: client.get(f"/organization/invoices/{invoice_id}/json", cast_to=object))

    def lose_what_can_be_lost(self) -> None:
        """A group that dies with a slice, one that says nothing any more, and every ticket."""
        with self.database.begin() as conn:
            claim_slice(conn, model=MODEL, group_id="ghost@x", lease_seconds=0.01)
        sql(
            self.database,
            "INSERT INTO groups (id, model, state, pid, rank_pids, info, heartbeat_at)"
            " VALUES ('ghost@x', :model, 'ready', 1, '{}', '{}', :at)",
            model=MODEL,
            at="2026-01-01",
        )
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()

    def has_lost_lease(self, engine: ScriptedEngine) -> bool:
        """As of a group that was silent for too long; until it has heard of it."""
        sql(self.database, "UPDATE slices SET lease_expires_at = now() WHERE status = 'claimed'")
        return bool(engine.aborted)

    def run_groups(self) -> None:
        settings = make_settings(lease_seconds=1.0, drain_seconds=0.05, record_seconds=0.02)
        engine = ReportingEngine(poison=POISON)
        with running_group(self.database, engine, settings, "group-0@here", self.model_path):
            self.tick_until(lambda: all(map(self.is_final, ("good", "poisoned", "retried"))))
            engine.answers = False
            self.submit("late", request_lines(4, prompt=[5, 6]))
            self.tick_until(lambda: bool(engine.running))
            self.watch("late")
            self.tick_until(lambda: self.has_lost_lease(engine))
            with transaction(self.database) as session, contextlib.suppress(UnknownGroupError):
                want_drain(session, "group-0", is_wanted=True)
            wait_for(lambda: not engine.running)
        with running_group(self.database, ReportingEngine(), settings, "group-1@here", self.model_path):
            self.tick_until(lambda: self.is_final("late"))

    def tidy_up(self, used: str) -> None:
        again(lambda: self.tenant.client.files.retrieve(used))
        again(lambda: self.tenant.client.get(f"/batches/{self.batches['good']}/explain", cast_to=object))
        again(lambda: self.tenant.client.get("/organization/usage/completions?start_time=0", cast_to=object))
        again(lambda: self.tenant.client.get("/organization/costs?start_time=0", cast_to=object))
        self.read_invoice()
        self.hear_again()
        again(lambda: old_months(self.database, months=12))
        self.remove(used)
        old = self.upload(request_lines(1))
        sql(self.database, "UPDATE files SET expires_at = now() - interval '1 second' WHERE id = :id", id=old)
        sql(self.database, "UPDATE idempotency_keys SET created_at = now() - interval '30 days'")
        self.tick_until(lambda: not sql(self.database, "SELECT 1 FROM idempotency_keys"))
        self.tick_until(
            lambda: not sql(self.database, "SELECT 1 FROM files WHERE id = :id AND deleted_at IS NULL", id=old)
        )

    def is_all_told(self) -> bool:
        """As if the pauses between attempts had passed."""
        due = "UPDATE webhook_deliveries SET next_attempt_at = now() WHERE status = 'pending' RETURNING id"
        return not sql(self.database, due)

    def check(self) -> None:
        """What a client was promised, and everything that the audit looks at."""
        self.tick_until(lambda: not sql(self.database, "SELECT 1 FROM outbox"))
        self.tick_until(self.is_all_told)
        self.tick_until(lambda: not sql(self.database, "SELECT 1 FROM outbox"))  # nor a message to tell what is told
        told = {(event["type"], event["data"]["id"]) for event in (json.loads(one.body) for one in self.hooks.received)}
        told -= {("batch.failed", "batch_sample")}
        assert told == {(f"batch.{EXPECTED[name][0]}", batch_id) for name, batch_id in self.batches.items()}
        for name, (status, num_succeeded) in EXPECTED.items():
            batch = self.batch(name)
            assert batch.status == status, name
            assert batch.request_counts is not None
            assert batch.request_counts.completed == num_succeeded, name
            output = [line["custom_id"] for line in self.read(batch.output_file_id)]
            errors = [line["custom_id"] for line in self.read(batch.error_file_id)]
            assert len(output) == len(set(output)) == num_succeeded
            assert not set(output) & set(errors)
            if status != "failed":  # else what is wrong is in the batch
                assert len(output) + len(errors) == batch.request_counts.total
        (poisoned,) = self.read(self.batch("poisoned").error_file_id)
        assert poisoned["custom_id"] == "p2"
        # A submission whose answer was lost was sent again.
        assert sql(self.database, "SELECT count(*) FROM batches") == [(len(EXPECTED),)]
        # Control goes on: a group that could not say that it has gone is there until it has been silent for long.
        self.tick_until(lambda: not self.violations(), self.violations)

    def violations(self) -> list[tuple[str, Violation]]:
        return audit(self.database, at_rest=True).violations
