from __future__ import annotations

import pytest
from seeds import MODEL
from sqlalchemy import Engine
from submitting import Bench, request_line, request_lines

from pipeline.celery import GENERATE
from pipeline.jobs.planning import EXPECTED_ANSWER_TOKENS
from pipeline.jobs.preparing import prepare
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus, Group, GroupState, SliceStatus
from pipeline.tables.session import transaction


def limit(settings_env: pytest.MonkeyPatch, **values: int) -> None:
    for name, value in values.items():
        settings_env.setenv(PREFIX + name.upper(), str(value))
    get_settings.cache_clear()


def start_groups(engine: Engine, count: int) -> None:
    with transaction(engine) as session:
        for number in range(count):
            session.add(
                Group(id=f"group-{number}@test", model=MODEL, state=GroupState.READY, pid=1, rank_pids=[], info={})
            )


def test_requests_are_planned_in_the_order_of_their_tokens(bench: Bench) -> None:
    prompts = [[9, 9], [1, 2, 3, 257], [1, 2, 3], [1, 2, 4], [1, 2, 3, 2], [0, 257], [1, 2, 3]]
    batch_id = bench.submit([request_line(str(n), prompt=prompt) for n, prompt in enumerate(prompts, 1)])

    assert prepare(batch_id) is BatchStatus.IN_PROGRESS
    # By tokens, not by the text of their numbers; equal ones by line.
    assert [request.line for request in bench.requests(batch_id)] == [6, 3, 7, 5, 2, 4, 1]


def test_a_batch_is_cut_where_a_slice_is_full(bench: Bench, settings_env: pytest.MonkeyPatch) -> None:
    limit(settings_env, slice_requests=4)
    batch_id = bench.run(10)
    slices = bench.slices(batch_id)
    assert [planned.position for planned in slices] == [0, 1, 2]
    assert [planned.num_requests for planned in slices] == [4, 4, 2]
    assert [planned.status for planned in slices] == [SliceStatus.PENDING] * 3
    # Consecutive in the plan, so that ids of requests and slices rise together.
    by_slice = [request.slice_id for request in bench.requests(batch_id)]
    assert by_slice == sorted(by_slice, key=lambda slice_id: slice_id or 0)
    assert [by_slice.count(planned.id) for planned in slices] == [4, 4, 2]
    assert bench.messages(GENERATE) == [[MODEL]] * 3


def test_a_slice_says_how_much_work_it_can_be(bench: Bench) -> None:
    batch_id = bench.submit([request_line("a", prompt=[1, 2, 3], max_tokens=5, n=2)])

    prepare(batch_id)
    assert [planned.num_tokens for planned in bench.slices(batch_id)] == [13]


def test_large_limits_of_answers_do_not_make_a_slice_of_each_request(
    bench: Bench, settings_env: pytest.MonkeyPatch
) -> None:
    bench.execute("UPDATE served_models SET context_length = 100000")
    limit(settings_env, slice_tokens=4 * (EXPECTED_ANSWER_TOKENS + 20))
    batch_id = bench.run(8)
    assert [planned.num_requests for planned in bench.slices(batch_id)] == [8]
    batch_id = bench.submit(request_lines(8, max_tokens=90_000))

    prepare(batch_id)
    assert [planned.num_requests for planned in bench.slices(batch_id)] == [4, 4]


def test_several_groups_can_share_a_batch_that_would_fit_one_slice(bench: Bench) -> None:
    assert len(bench.slices(bench.run(2000))) == 2
    start_groups(bench.engine, 3)
    num_slices = len(bench.slices(bench.run(2000)))
    assert 4 <= num_slices <= 7
    assert len(bench.slices(bench.run(10))) == 1, "a small one is not worth it"


def test_tens_of_thousands_of_requests_are_planned(bench: Bench) -> None:
    batch_id = bench.run(20_000)
    slices = bench.slices(batch_id)
    assert sum(planned.num_requests for planned in slices) == 20_000
    assert max(planned.num_requests for planned in slices) <= get_settings().slice_requests
    assert len(bench.messages(GENERATE)) == len(slices)


def test_families_of_prompts_are_not_split_where_a_slice_can_end_between_them(
    bench: Bench, settings_env: pytest.MonkeyPatch
) -> None:
    limit(settings_env, slice_requests=10)
    families = [[family] * 40 for family in range(5)]
    prompts = [[*families[number % 5], 100 + number] for number in range(40)]
    batch_id = bench.submit([request_line(str(n), prompt=prompt) for n, prompt in enumerate(prompts, 1)])

    prepare(batch_id)
    assert [planned.num_requests for planned in bench.slices(batch_id)] == [8] * 5
    requests = bench.requests(batch_id)
    assert [(request.line - 1) % 5 for request in requests] == [family for family in range(5) for _ in range(8)]
    assert [request.slice_id for request in requests] == sorted(
        planned.id for planned in bench.slices(batch_id) for _ in range(8)
    )
