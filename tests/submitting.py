"""Batches made as a client makes them, and groups that answer without an engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seeds import MODEL, SeededTenant, seed_model, seed_tenant
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session
from tokenizer_folders import byte_level

from pipeline import storage
from pipeline.billing.rating import TokenUsage
from pipeline.ids import new_file_id
from pipeline.jobs.claiming import ClaimedSlice, claim_slice, load_requests
from pipeline.jobs.preparing import prepare
from pipeline.jobs.recording import Recorded, RequestOutcome, record_outcomes
from pipeline.jobs.submission import submit_batch
from pipeline.tables import Batch, BatchError, File, OnInvalid, OutboxMessage, OutcomeKind, Request, Slice

ENDPOINT = "/v1/completions"


def request_line(custom_id: str, prompt: str | list[int] = "The fox", **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, **body}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def request_lines(count: int, **body: Any) -> list[dict[str, Any]]:
    return [request_line(f"request-{number}", **body) for number in range(1, count + 1)]


@dataclass
class Bench:
    """A tenant, a model and what there is to do with them."""

    engine: Engine
    tenant: SeededTenant

    @classmethod
    def make(cls, engine: Engine, folder: Path) -> Bench:
        seed_model(engine, path=str(byte_level(folder)))
        return cls(engine, seed_tenant(engine))

    def upload(self, lines: Sequence[dict[str, Any] | str]) -> str:
        file_id = new_file_id()
        content = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
        storage.write_blob(file_id, [content])
        with Session(self.engine) as session, session.begin():
            session.add(
                File(
                    id=file_id,
                    tenant_id=self.tenant.id,
                    filename="in.jsonl",
                    purpose="batch",
                    num_bytes=len(content),
                    storage_key=file_id,
                )
            )
        return file_id

    def submit(
        self, lines: Sequence[dict[str, Any] | str], on_invalid: OnInvalid = OnInvalid.FAIL, **options: Any
    ) -> str:
        """A batch that is validating; returns its id."""
        file_id = self.upload(lines)
        with Session(self.engine) as session, session.begin():
            return submit_batch(
                session,
                tenant_id=self.tenant.id,
                api_key_id=self.tenant.api_key_id,
                input_file=session.get_one(File, file_id),
                endpoint=ENDPOINT,
                completion_window="24h",
                on_invalid=on_invalid,
                **options,
            ).id

    def run(self, num_requests: int = 3, **options: Any) -> str:
        """A batch in progress; returns its id."""
        batch_id = self.submit(request_lines(num_requests), **options)
        prepare(batch_id, self.engine)
        return batch_id

    def claim(self, group_id: str = "group-0@test", lease_seconds: float = 60) -> ClaimedSlice:
        with self.engine.begin() as conn:
            claimed = claim_slice(conn, model=MODEL, group_id=group_id, lease_seconds=lease_seconds)
        assert claimed is not None, "no slice is pending"
        return claimed

    def answer(
        self, claimed: ClaimedSlice, count: int | None = None, kind: OutcomeKind = OutcomeKind.SUCCEEDED
    ) -> Recorded:
        """Record this outcome for the next `count` requests of a slice, or for all of them."""
        with self.engine.begin() as conn:
            outcomes = [
                RequestOutcome(
                    request_id=request.id,
                    custom_id=request.custom_id,
                    claimed=claimed,
                    kind=kind,
                    body=f'{{"id":"cmpl-{request.id}","usage":{{"completion_tokens":2}}}}'
                    if kind is OutcomeKind.SUCCEEDED
                    else None,
                    usage=TokenUsage(
                        num_prompt_tokens=len(request.prompt_token_ids),
                        num_cached_tokens=1,
                        num_completion_tokens=2,
                        engine_ms=3,
                    )
                    if kind is OutcomeKind.SUCCEEDED
                    else None,
                    error_code="engine_crashed" if kind is OutcomeKind.FAILED else None,
                    error_message="It crashed." if kind is OutcomeKind.FAILED else None,
                )
                for request in load_requests(conn, claimed)[:count]
            ]
            return record_outcomes(conn, outcomes) if outcomes else Recorded(frozenset(), frozenset(), ())

    def batch(self, batch_id: str) -> Batch:
        with Session(self.engine) as session:
            return session.get_one(Batch, batch_id)

    def slices(self, batch_id: str) -> list[Slice]:
        with Session(self.engine) as session:
            return list(session.scalars(select(Slice).where(Slice.batch_id == batch_id).order_by(Slice.position)))

    def requests(self, batch_id: str) -> list[Request]:
        """In planned order."""
        with Session(self.engine) as session:
            return list(session.scalars(select(Request).where(Request.batch_id == batch_id).order_by(Request.id)))

    def outcomes(self, batch_id: str) -> list[OutcomeKind | None]:
        return [request.outcome for request in self.requests(batch_id)]

    def errors(self, batch_id: str) -> list[BatchError]:
        with Session(self.engine) as session:
            return list(session.scalars(select(BatchError).where(BatchError.batch_id == batch_id)))

    def messages(self, task: str) -> list[list[Any]]:
        """Arguments of the messages in the outbox."""
        with Session(self.engine) as session:
            return [message.args for message in session.scalars(select(OutboxMessage)) if message.task == task]

    def execute(self, statement: str, **values: Any) -> None:
        """For a test to move time, or to lose something."""
        with self.engine.begin() as conn:
            conn.execute(text(statement), values)


def at_once(function: Callable[[], Any], times: int) -> list[Any]:
    """Run a function in several threads that begin at the same moment; returns what they returned."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    barrier = threading.Barrier(times)

    def run() -> Any:
        barrier.wait(60)
        return function()

    with ThreadPoolExecutor(times) as pool:
        return [future.result(60) for future in [pool.submit(run) for _ in range(times)]]
