"""Traces of a running stack, as a collector receives them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_jobs import lines_of, submit, wait_for_end
from otlp_receiver import OtlpReceiver, ReceivedSpan
from stacks import RunningStack, wait_for

from pipeline.telemetry import genai_names as names


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def traced(stack_folder: Path, tiny_model: Path, receiver: OtlpReceiver) -> Iterator[RunningStack]:
    # Several slices, so that recordings serve more than one of them.
    env = {
        "RYZANSTEIN_OTLP_ENDPOINT": receiver.url,
        "RYZANSTEIN_SLICE_REQUESTS": "10",
        "RYZANSTEIN_LOG_FORMAT": "json",
        "NO_PROXY": "127.0.0.1",
    }
    stack = RunningStack(stack_folder / "traced", tiny_model, ("--engine", "echo"), env)
    try:
        stack.up()
        yield stack
    finally:
        stack.end()


def test_one_trace_leads_from_the_clients_call_to_the_end_of_its_batch(
    traced: RunningStack, receiver: OtlpReceiver
) -> None:
    client, trace_id, caller = traced.client(), secrets.token_hex(16), secrets.token_hex(8)
    batch = submit(client, lines_of(30), extra_headers={"traceparent": f"00-{trace_id}-{caller}-01"})
    assert wait_for_end(client, batch.id).status == "completed"

    def is_of_it(span: ReceivedSpan) -> bool:
        return span.trace_id == trace_id

    finalize = receiver.wait_for("batch.finalize", is_of_it)
    call = receiver.wait_for("POST /v1/batches", is_of_it)
    prepare = receiver.wait_for("batch.prepare", is_of_it)
    intake, plan = receiver.wait_for("batch.intake", is_of_it), receiver.wait_for("batch.plan", is_of_it)
    receiver.wait_for("outcomes.record", is_of_it)
    spans = [span for span in receiver.spans if is_of_it(span)]
    attempts = [span for span in spans if span.name == "slice.attempt"]

    # From process to process, through SQL.
    assert (call.process, call.parent_id) == ("gateway", caller)
    assert (prepare.process, prepare.parent_id) == ("control", call.span_id)
    assert {intake.parent_id, plan.parent_id} == {prepare.span_id}
    assert len(attempts) == 3
    assert {(span.process, span.parent_id) for span in attempts} == {("group-0", call.span_id)}
    assert (finalize.process, finalize.parent_id) == ("control", call.span_id)
    assert call.start_ns <= prepare.start_ns <= attempts[0].start_ns <= finalize.end_ns

    # A ticket names no slice: whoever wrote it is linked.
    linked = {link for span in attempts for link in span.links}
    assert linked <= {(trace_id, plan.span_id)}
    assert linked or not any(span.attributes[names.HAS_TICKET] for span in attempts)
    for attempt in attempts:
        claim, engine = (
            next(span for span in spans if span.name == name and span.parent_id == attempt.span_id)
            for name in ("slice.claim", "chat tiny")
        )
        assert attempt.start_ns <= claim.start_ns <= claim.end_ns <= engine.end_ns <= attempt.end_ns
        assert engine.attributes[names.PROVIDER] == "ryzanstein"
        assert engine.attributes["gen_ai.operation.name"] == "chat"
        assert engine.attributes["gen_ai.request.model"] == "tiny"
        assert engine.attributes["gen_ai.usage.input_tokens"] > 10
        assert engine.attributes["gen_ai.usage.output_tokens"] >= 10
        assert attempt.attributes["ryzanstein.requests"] == 10
        assert attempt.attributes["ryzanstein.requests.succeeded"] == 10
        assert attempt.attributes["ryzanstein.attempt.end"] == "finished"

    # Recordings link to all of the attempts whose outcomes they write.
    records = [span for span in spans if span.name == "outcomes.record"]
    assert {link for span in records for link in span.links} == {(trace_id, span.span_id) for span in attempts}
    assert sum(span.attributes["ryzanstein.requests"] for span in records) == 30
    of_tenant = {span.attributes[names.TENANT] for span in (call, prepare, finalize, *attempts)}
    assert len(of_tenant) == 1
    assert not any(span.is_error for span in spans)


def test_the_log_of_a_call_names_its_trace(traced: RunningStack, receiver: OtlpReceiver) -> None:
    trace_id = secrets.token_hex(16)
    traced.client().models.list(extra_headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"})

    call = receiver.wait_for("GET /v1/models", lambda span: span.trace_id == trace_id)
    lines = (traced.data_dir / "logs" / "gateway.log").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if line.get("trace") == trace_id]

    assert call.attributes["http.response.status_code"] == 200
    assert [line["path"] for line in logged] == ["/v1/models"]


def test_what_a_client_calls_its_trace_is_no_text_of_its_choice(traced: RunningStack, receiver: OtlpReceiver) -> None:
    client, before = traced.client(), time.time_ns()
    for given in ("00-xyz", "<script>", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        client.models.list(extra_headers={"traceparent": given})

    def calls() -> list[ReceivedSpan]:
        return [span for span in receiver.spans if span.name == "GET /v1/models" and span.start_ns >= before]

    wait_for(lambda: len(calls()) == 3, "the spans of three calls")
    assert {call.parent_id for call in calls()} == {""}
    assert len({call.trace_id for call in calls()}) == 3
