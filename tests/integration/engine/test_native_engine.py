"""The native engine with real ranks, one and two of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from model_folders import random_llama
from running_engines import answer, make_request, take, wait_until
from transformers import GenerationConfig, LlamaForCausalLM

from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineRequest, EngineState, OutcomeStatus

PROMPTS = [[7], [5, 99, 31, 250], [(31 * position) % 300 + 3 for position in range(57)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one-rank", "two-ranks"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[NativeEngine]:
    options = EngineOptions(
        model_path=str(folder), tp=request.param, block_size=4, kv_cache_tokens=1024, step_tokens=64, step_seconds=60
    )
    engine = NativeEngine(options)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """What transformers generates greedily."""
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    generated = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(  # type: ignore[misc]
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        generated.append(output[0, len(prompt) :].tolist())
    return generated


def test_greedy_answers_equal_those_of_transformers(engine: NativeEngine, expected: list[list[int]]) -> None:
    outcomes = answer(
        engine,
        *(
            make_request(str(position), prompt, temperature=0.0, max_tokens=16)
            for position, prompt in enumerate(PROMPTS)
        ),
    )
    for position, token_ids in enumerate(expected):
        outcome = outcomes[str(position)]
        assert outcome.status is OutcomeStatus.FINISHED
        assert outcome.choices[0].token_ids == token_ids
        assert outcome.num_completion_tokens == 16


def test_a_seed_repeats_whatever_else_runs(engine: NativeEngine) -> None:
    wanted = make_request("wanted", PROMPTS[1], seed=11, n=2, temperature=0.9, top_p=0.95)
    alone = answer(engine, wanted)["wanted"]
    crowd = [make_request(str(number), PROMPTS[number % 3], seed=number, max_tokens=20) for number in range(40)]
    together = answer(engine, *crowd[:20], wanted, *crowd[20:])["wanted"]
    assert together.choices == alone.choices


def test_a_seed_repeats_with_any_number_of_ranks(engine: NativeEngine, request: pytest.FixtureRequest) -> None:
    drawn = answer(engine, make_request("r", PROMPTS[2], seed=21, max_tokens=24))["r"].choices[0].token_ids
    earlier = request.config.stash.setdefault(_DRAWN, drawn)
    assert drawn == earlier


_DRAWN = pytest.StashKey[list[int]]()


def test_prefix_hits_are_counted(engine: NativeEngine) -> None:
    prompt = [(13 * position) % 300 + 3 for position in range(41)]
    first = answer(engine, make_request("first", prompt))["first"]
    again = answer(engine, make_request("again", prompt))["again"]
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 40)
    assert again.choices == first.choices


def test_many_more_requests_than_the_cache_holds_all_finish(engine: NativeEngine) -> None:
    requests = [
        make_request(str(number), [number % 300 + 3, *PROMPTS[2]], seed=number, max_tokens=30) for number in range(60)
    ]
    outcomes = answer(engine, *requests)
    assert {outcome.status for outcome in outcomes.values()} == {OutcomeStatus.FINISHED}
    assert all(outcome.num_completion_tokens == 30 for outcome in outcomes.values())
    assert any(outcome.engine_ms > 0 for outcome in outcomes.values())


def test_an_abort_is_reported_and_the_others_finish(engine: NativeEngine) -> None:
    for number in range(4):
        engine.submit(make_request(str(number), PROMPTS[1], max_tokens=120, seed=number))
    engine.abort(["1", "3", "unknown"])
    statuses = {request_id: outcome.status for request_id, outcome in take(engine, 4).items()}
    assert statuses["0"] is statuses["2"] is OutcomeStatus.FINISHED
    # An abort that comes after the end is none.
    assert {statuses["1"], statuses["3"]} <= {OutcomeStatus.ABORTED, OutcomeStatus.FINISHED}
    wait_until(lambda: engine.load().num_kv_tokens_used == 0, "the cache to be free")


def test_load_and_health_follow_the_work(engine: NativeEngine) -> None:
    before = engine.health()
    assert before.dtype == "float32", "what `auto` came to"
    assert (before.state, before.num_restarts, before.reason) == (EngineState.READY, 0, None)
    assert len(set(before.rank_pids)) in (1, 2)
    engine.submit(make_request("r", PROMPTS[0], max_tokens=100))
    assert engine.load().num_waiting + engine.load().num_running == 1
    take(engine, 1)
    load = engine.load()
    assert (load.num_waiting, load.num_running, load.num_kv_tokens) == (0, 0, 1024)
    assert engine.health().num_steps >= before.num_steps + 100


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (make_request("r", []), "empty_prompt"),
        (make_request("r", [3, 10**6]), "invalid_token_id"),
        (make_request("r", [-1]), "invalid_token_id"),
        (make_request("r", [3] * 121), "context_length_exceeded"),
        (make_request("r", [3], temperature=float("nan")), "invalid_parameter"),
    ],
    ids=["empty", "beyond-vocabulary", "negative", "too-long", "not-finite"],
)
def test_a_bad_request_fails_by_itself(engine: NativeEngine, bad: EngineRequest, code: str) -> None:
    good = make_request("good", PROMPTS[0])
    outcomes = answer(engine, bad, good)
    assert (outcomes["r"].status, outcomes["r"].error_code) == (OutcomeStatus.FAILED, code)
    assert outcomes["r"].error_message
    assert outcomes["good"].status is OutcomeStatus.FINISHED


def test_an_id_in_use_is_refused(engine: NativeEngine) -> None:
    engine.submit(make_request("r", PROMPTS[0], max_tokens=100))
    with pytest.raises(ValueError, match="in the engine already"):
        engine.submit(make_request("r", PROMPTS[0]))
    assert take(engine, 1)["r"].status is OutcomeStatus.FINISHED


def test_nothing_to_take_is_an_empty_list(engine: NativeEngine) -> None:
    assert engine.take_outcomes(10, timeout=0.01) == []
