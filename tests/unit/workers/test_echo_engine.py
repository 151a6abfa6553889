from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from tokenizer_folders import byte_level

from pipeline.schemas.generation import GenerationParams
from pipeline.tokenization import Tokenizer
from workers.backends.echo import EchoEngine
from workers.backends.protocol import EngineRequest, EngineStartError, EngineState, Outcome, OutcomeStatus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def engine(folder: Path) -> EchoEngine:
    engine = EchoEngine(folder)
    engine.start()
    return engine


def request(prompt: list[int], *, id: str = "1.1", **params: object) -> EngineRequest:
    return EngineRequest(id=id, prompt_token_ids=prompt, params=GenerationParams(**params), seed=0)  # type: ignore[arg-type]


def answer(engine: EchoEngine, one: EngineRequest) -> Outcome:
    engine.submit(one)
    (outcome,) = engine.take_outcomes(8, timeout=5)
    return outcome


def test_an_answer_is_the_prompt_cut_to_max_tokens(engine: EchoEngine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("The quick brown fox", add_special_tokens=False)
    outcome = answer(engine, request(prompt, max_tokens=3))
    assert outcome.status is OutcomeStatus.FINISHED
    assert outcome.choices[0].token_ids == prompt[:3]
    assert outcome.choices[0].text == tokenizer.decode(prompt[:3])
    assert outcome.choices[0].finish_reason == "length"
    assert (outcome.num_prompt_tokens, outcome.num_completion_tokens) == (len(prompt), 3)


def test_progress_comes_as_time_passes_and_another_engine_goes_on_from_it(folder: Path) -> None:
    now = 0.0
    one = request(list(range(3, 60)), max_tokens=50, n=2, logprobs=1)
    other = request([7, 8], id="2.1", max_tokens=40)

    def started() -> EchoEngine:
        engine = EchoEngine(folder, tokens_per_second=10.0, clock=lambda: now)
        engine.start()
        return engine

    unlimited = EchoEngine(folder)
    unlimited.start()
    whole = answer(unlimited, one)
    first = started()
    first.submit(one)
    first.submit(other)
    now = 0.5
    assert first.take_progress() == []
    now = 4.1
    (progress,) = first.take_progress()
    assert [len(choice.token_ids) for choice in progress.partial.choices] == [20, 20]
    now = 4.5
    first.abort(["1.1"])
    (rest,) = first.take_progress()
    (aborted,) = first.take_outcomes(8, timeout=0)
    assert aborted.partial == progress.partial.joined(rest.partial)
    assert aborted.partial.num_tokens == 44

    second = started()
    second.submit(msgspec.structs.replace(one, partial=aborted.partial))
    now = 4.5 + 5.5
    assert second.take_outcomes(8, timeout=0) == []
    now = 4.5 + 5.7
    (resumed,) = second.take_outcomes(8, timeout=0)
    assert (resumed.choices, resumed.num_completion_tokens) == (whole.choices, 100)
    # The one that waited began when the other was stopped.
    now = 4.5 + 4.1
    (outcome,) = first.take_outcomes(8, timeout=0)
    assert outcome.id == "2.1"


def test_a_short_prompt_is_repeated(engine: EchoEngine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("again ", add_special_tokens=False)
    outcome = answer(engine, request(prompt, max_tokens=3 * len(prompt)))
    assert outcome.choices[0].text == "again again again "


def test_a_stop_string_ends_the_answer_before_it(engine: EchoEngine, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("one two three four", add_special_tokens=False)
    choice = answer(engine, request(prompt, max_tokens=len(prompt), stop=("ree f",), logprobs=0)).choices[0]
    assert (choice.text, choice.finish_reason) == ("one two th", "stop")
    assert choice.token_ids == prompt[: len(choice.token_ids)]
    assert "ree f" in tokenizer.decode(choice.token_ids)
    assert choice.logprobs is not None
    assert "".join(at.sampled.token for at in choice.logprobs).startswith("one two th")


def test_every_choice_counts(engine: EchoEngine) -> None:
    outcome = answer(engine, request([5, 6], max_tokens=4, n=3))
    assert [choice.index for choice in outcome.choices] == [0, 1, 2]
    assert outcome.num_completion_tokens == 12


def test_logprobs_are_certain(engine: EchoEngine) -> None:
    with_top = answer(engine, request([5, 6], max_tokens=2, logprobs=4)).choices[0].logprobs
    assert with_top is not None
    assert [(at.sampled.token_id, at.sampled.logprob, len(at.top)) for at in with_top] == [(5, 0.0, 1), (6, 0.0, 1)]
    assert [at.text_offset for at in with_top] == [0, len(with_top[0].sampled.token)]


def test_an_aborted_request_is_reported_once(folder: Path) -> None:
    engine = EchoEngine(folder, tokens_per_second=0.001)
    engine.start()
    engine.submit(request([5], max_tokens=1))
    engine.abort(["1.1", "unknown"])
    engine.abort(["1.1"])
    assert [outcome.status for outcome in engine.take_outcomes(8, timeout=0)] == [OutcomeStatus.ABORTED]
    assert engine.take_outcomes(8, timeout=0) == []


def test_the_speed_limit_is_over_all_requests(folder: Path) -> None:
    now = [100.0]
    engine = EchoEngine(folder, tokens_per_second=10, clock=lambda: now[0])
    engine.start()
    for number in range(4):
        engine.submit(request([5], id=f"{number}.1", max_tokens=5))
    now[0] += 1.0
    assert [outcome.id for outcome in engine.take_outcomes(8, timeout=0)] == ["0.1", "1.1"]
    assert engine.take_outcomes(8, timeout=0) == []
    assert engine.load().num_waiting == 1
    now[0] += 1.0
    assert [outcome.id for outcome in engine.take_outcomes(8, timeout=0)] == ["2.1", "3.1"]


def test_outcomes_wake_who_waits_for_them(engine: EchoEngine) -> None:
    taken: list[Outcome] = []
    waiter = threading.Thread(target=lambda: taken.extend(engine.take_outcomes(8, timeout=30)))
    waiter.start()
    engine.submit(request([5], max_tokens=1))
    waiter.join(60)
    assert [outcome.id for outcome in taken] == ["1.1"]


def test_what_runs_when_the_engine_stops_is_reported_as_crashed(folder: Path) -> None:
    engine = EchoEngine(folder, tokens_per_second=0.001)
    engine.start()
    engine.submit(request([5], max_tokens=1))
    engine.stop()
    engine.submit(request([5], id="2.1", max_tokens=1))
    assert [outcome.status for outcome in engine.take_outcomes(8, timeout=0)] == [OutcomeStatus.CRASHED] * 2
    assert engine.health().state is EngineState.STOPPED


def test_a_folder_without_a_tokenizer_is_a_start_error(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"tokenizer\.json"):
        EchoEngine(tmp_path).start()
