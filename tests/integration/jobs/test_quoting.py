from __future__ import annotations

from decimal import Decimal

import pytest
from seeds import MODEL
from sqlalchemy.orm import Session
from submitting import ENDPOINT, Bench, at_once, request_line, request_lines

from pipeline import storage
from pipeline.celery import QUOTE
from pipeline.jobs import quoting, sweeping
from pipeline.jobs.preparing import prepare
from pipeline.jobs.quoting import MAX_COMPUTATIONS, compute, compute_waiting, remove_old_quotes, request_quote
from pipeline.storage import StorageError
from pipeline.tables import File, OnInvalid, Quote, QuoteStatus, ServiceClass
from pipeline.tables.session import transaction

#: Of the card that `seeds` makes, for one token after the discount.
INPUT, CACHED, OUTPUT = (Decimal(price) * Decimal("0.667") / 10**6 for price in ("0.137", "0.061", "0.411"))


def ask(bench: Bench, lines: list[dict[str, object] | str], **options: object) -> str:
    file_id = bench.upload(lines)
    with transaction(bench.engine) as session:
        return request_quote(
            session,
            tenant_id=bench.tenant.id,
            api_key_id=bench.tenant.api_key_id,
            project_id=None,
            input_file=session.get_one(File, file_id),
            endpoint=ENDPOINT,
            **{"on_invalid": OnInvalid.FAIL, "service_class": ServiceClass.STANDARD, **options},  # type: ignore[arg-type]
        ).id


def quote(bench: Bench, quote_id: str) -> Quote:
    with Session(bench.engine) as session:
        return session.get_one(Quote, quote_id)


def quoted(bench: Bench, lines: list[dict[str, object] | str], **options: object) -> Quote:
    quote_id = ask(bench, lines, **options)
    assert compute(quote_id, bench.engine)
    return quote(bench, quote_id)


def test_a_quote_waits_with_a_message_to_compute_it(bench: Bench) -> None:
    quote_id = ask(bench, request_lines(1))

    found = quote(bench, quote_id)
    assert found.status is QuoteStatus.COMPUTING
    assert (found.expires_at - found.created_at).total_seconds() == 24 * 3600
    assert bench.messages(QUOTE) == [[quote_id]]


def test_tokens_are_exact_and_the_worst_case_is_a_bound(bench: Bench) -> None:
    found = quoted(bench, [request_line("a", [1] * 40, max_tokens=5), request_line("b", [2] * 7, max_tokens=9, n=2)])

    assert found.status is QuoteStatus.READY
    assert (found.model, found.num_requests, found.num_errors, found.errors) == (MODEL, 2, 0, None)
    assert (found.num_prompt_tokens, found.num_shared_tokens, found.num_output_tokens_worst) == (47, 0, 23)
    assert found.currency == "USD"
    assert found.cost_worst == 47 * INPUT + 23 * OUTPUT


def test_prompts_that_begin_alike_are_quoted_as_cached(bench: Bench) -> None:
    shared = list(range(1, 101))
    lines = [
        request_line("a", [*shared, 7], max_tokens=1),
        request_line("b", [200] * 3, max_tokens=1),
        request_line("c", [*shared, 9, 9], max_tokens=1),
        request_line("d", shared[:32], max_tokens=1),
        request_line("e", shared[:32], max_tokens=1),
    ]

    found = quoted(bench, lines)

    # In whole pieces of 16, and never all of a prompt: e has 16 of d, a has 32 of e, and c has 96 of a.
    assert found.num_shared_tokens == 16 + 32 + 96
    assert found.num_prompt_tokens == 101 + 3 + 102 + 32 + 32
    assert found.cost_p50 == (270 - 144) * INPUT + 144 * CACHED + 5 * OUTPUT
    assert found.cost_worst == 270 * INPUT + 5 * OUTPUT


def test_more_than_the_beginnings_that_planning_compares_is_counted(bench: Bench) -> None:
    long = [place % 251 for place in range(1_500)]

    found = quoted(bench, [request_line("a", [*long, 1], max_tokens=1), request_line("b", [*long, 2], max_tokens=1)])

    assert found.num_shared_tokens == 1_500 // 16 * 16


def test_output_is_learned_from_finished_requests_of_the_tenant_and_model(bench: Bench) -> None:
    lines = request_lines(10, max_tokens=100)
    before = quoted(bench, lines)
    assert (before.num_learned_requests, before.num_output_tokens_p50) == (0, 1_000)
    assert before.cost_p50 == before.cost_p95 == before.cost_worst
    for _ in range(6):
        prepare(bench.submit(request_lines(5, max_tokens=50)), bench.engine)
        bench.answer(bench.claim())  # two tokens each

    after = quoted(bench, lines)

    assert (after.num_learned_requests, after.num_output_tokens_p50, after.num_output_tokens_p95) == (30, 20, 20)
    assert after.cost_p50 is not None
    assert before.cost_p50 is not None
    assert after.cost_p50 < before.cost_p50
    assert after.cost_worst == before.cost_worst


def test_a_file_that_a_batch_would_refuse_has_no_price(bench: Bench) -> None:
    found = quoted(bench, [request_line("a"), "{"])

    assert found.status is QuoteStatus.FAILED
    assert found.cost_worst is None
    assert found.errors is not None
    assert [(error["line"], error["code"]) for error in found.errors] == [(2, "invalid_json_line")]


def test_what_a_batch_would_skip_is_left_out(bench: Bench) -> None:
    found = quoted(bench, [request_line("a", [1, 2, 3]), "{"], on_invalid=OnInvalid.SKIP)

    assert (found.status, found.num_requests, found.num_errors) == (QuoteStatus.READY, 1, 1)
    assert found.num_prompt_tokens == 3


def test_nothing_of_it_is_kept(bench: Bench) -> None:
    quoted(bench, request_lines(3))

    for table in ("batches", "requests", "slices", "batch_errors"):
        with bench.engine.connect() as conn:
            assert conn.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0


def test_of_many_who_compute_a_quote_one_does(bench: Bench) -> None:
    quote_id = ask(bench, request_lines(3))

    assert sorted(at_once(lambda: compute(quote_id, bench.engine), 4)) == [False, False, False, True]
    assert quote(bench, quote_id).num_computations == 1


def test_a_lost_message_is_replaced_by_the_sweeper(bench: Bench) -> None:
    quote_id = ask(bench, request_lines(1))
    bench.execute("DELETE FROM outbox")
    assert sweeping.compute_forgotten(bench.engine) == 0
    bench.execute("UPDATE quotes SET created_at = now() - interval '1 minute'")

    assert sweeping.compute_forgotten(bench.engine) == 1

    assert bench.messages(QUOTE) == [[quote_id]]
    assert compute_waiting(bench.engine) == 1
    assert sweeping.compute_forgotten(bench.engine) == 0


def test_a_quote_that_keeps_failing_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    quote_id = ask(bench, request_lines(1))

    def fail(*_: object) -> None:
        raise StorageError("The disk is gone.")

    monkeypatch.setattr(quoting, "open_blob", fail)
    for _ in range(MAX_COMPUTATIONS - 1):
        assert not compute(quote_id, bench.engine)
        assert quote(bench, quote_id).status is QuoteStatus.COMPUTING

    assert compute(quote_id, bench.engine)

    found = quote(bench, quote_id)
    assert found.status is QuoteStatus.FAILED
    assert found.errors is not None
    assert found.errors[0]["code"] == "internal_error"
    assert "disk" not in found.errors[0]["message"]


def test_a_quote_that_ends_every_process_is_given_up(bench: Bench) -> None:
    quote_id = ask(bench, request_lines(1))
    bench.execute("UPDATE quotes SET num_computations = :num", num=MAX_COMPUTATIONS)  # of which nobody saw the end

    assert compute(quote_id, bench.engine)

    found = quote(bench, quote_id)
    assert (found.status, found.errors and found.errors[0]["code"]) == (QuoteStatus.FAILED, "internal_error")


def test_a_quote_that_is_being_computed_needs_no_other_message(bench: Bench) -> None:
    quote_id = ask(bench, request_lines(1))
    bench.execute("DELETE FROM outbox")
    bench.execute("UPDATE quotes SET created_at = now() - interval '1 minute'")
    with bench.engine.begin() as conn:
        assert quoting.try_lock(conn, quote_id)
        assert sweeping.compute_forgotten(bench.engine) == 0
    assert sweeping.compute_forgotten(bench.engine) == 1


def test_an_input_file_that_was_deleted_has_no_price(bench: Bench) -> None:
    quote_id = ask(bench, request_lines(1))
    storage.delete_blob(quote(bench, quote_id).input_file_id)

    assert compute(quote_id, bench.engine)

    found = quote(bench, quote_id)
    assert (found.status, found.errors and found.errors[0]["code"]) == (QuoteStatus.FAILED, "file_not_found")


def test_old_quotes_are_removed_and_others_kept(bench: Bench) -> None:
    old, new = ask(bench, request_lines(1)), ask(bench, request_lines(1))
    bench.execute("UPDATE quotes SET expires_at = now() - interval '8 days' WHERE id = :id", id=old)

    assert remove_old_quotes(bench.engine) == 1

    assert quote(bench, new).id == new
