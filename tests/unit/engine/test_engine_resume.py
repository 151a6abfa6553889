"""A request goes on from what another engine has generated of it, and its answer is the one that would have come."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from engine_cores import Model, answer, make_core, make_request, run_all
from model_folders import random_llama

from workers.backends.protocol import Choice, EngineRequest, OutcomeStatus, Partial, PartialChoice
from workers.backends.validation import fits
from workers.engine.request_state import REPORT_TOKENS

PROMPT = [(31 * position) % 250 + 3 for position in range(37)]
TOKENS = 40
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"seed": 4, "temperature": 0.9, "top_p": 0.8},
    "choices": {"seed": 5, "n": 3},
    "penalised": {"seed": 6, "top_k": 20, "presence_penalty": 0.5, "frequency_penalty": 0.9, "n": 2},
    "logprobs": {"seed": 7, "logprobs": 3, "n": 2},
    "certain": {"temperature": 0.0, "logprobs": 0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return Model.load(random_llama(tmp_path_factory.mktemp("model")))


def assert_same(resumed: list[Choice], whole: list[Choice]) -> None:
    """But for the last bits of log-probabilities: what was decoded token by token is now computed at once."""
    for one, other in zip(resumed, whole, strict=True):
        assert msgspec.structs.replace(one, logprobs=None) == msgspec.structs.replace(other, logprobs=None)
        assert (one.logprobs is None) == (other.logprobs is None)
        for left, right in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert left.text_offset == right.text_offset
            for a, b in zip((left.sampled, *left.top), (right.sampled, *right.top), strict=True):
                assert (a.token_id, a.token, a.bytes) == (b.token_id, b.token, b.bytes)
                assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def interrupted(model: Model, request: EngineRequest, num_steps: int, *, aborted: bool) -> Partial | None:
    """All that is known of the answer when an engine dies, or is told to stop, after so many steps."""
    (core, _), partial = make_core(model), request.partial
    core.submit(request)
    progress = []
    for _ in range(num_steps):
        if core.is_idle:
            return None
        core.run(core.plan())
        progress += core.take_progress()
    if aborted:
        core.abort([request.id])
        progress += core.take_progress()
        assert core.scheduler.block_manager.num_referenced_blocks == 0
    for one in progress:
        assert one.id == request.id
        partial = one.partial if partial is None else partial.joined(one.partial)
    return partial


@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_the_same_however_often_it_was_interrupted(model: Model, case: str, aborted: bool) -> None:
    request = make_request(case, PROMPT, **{"max_tokens": TOKENS, **CASES[case]})
    whole = answer(model, request)[case]
    for first, then in ((1, 1), (5, 12), (18, 3), (17, 17), (33, 2), (TOKENS, 0)):
        cut = request
        for num_steps in (first, then):
            if (partial := interrupted(model, cut, num_steps, aborted=aborted)) is not None:
                cut = msgspec.structs.replace(request, partial=partial)
        resumed = answer(model, cut)[case]
        assert_same(resumed.choices, whole.choices)
        assert resumed.num_prompt_tokens == whole.num_prompt_tokens
        assert resumed.num_cached_tokens == whole.num_cached_tokens
        assert resumed.num_completion_tokens == whole.num_completion_tokens


def test_an_abort_leaves_nothing_to_generate_again_and_a_crash_few_tokens(model: Model) -> None:
    request = make_request("a", PROMPT, max_tokens=TOKENS, temperature=0.0)
    for num_steps in (3, 16, 30):
        aborted = interrupted(model, request, num_steps, aborted=True)
        assert aborted is not None
        assert aborted.num_tokens == num_steps
        crashed = interrupted(model, request, num_steps, aborted=False)
        assert num_steps - (crashed.num_tokens if crashed else 0) < REPORT_TOKENS


def test_a_stop_string_that_begins_before_the_cut_is_found_after_it(model: Model) -> None:
    text = answer(model, make_request("a", PROMPT, max_tokens=TOKENS, temperature=0.0))["a"].choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    request = make_request("a", PROMPT, max_tokens=TOKENS, temperature=0.0, stop=[stop], logprobs=2)
    whole = answer(model, request)["a"]
    assert whole.choices[0].finish_reason == "stop"
    for num_steps in range(1, len(whole.choices[0].token_ids) + 1):
        partial = interrupted(model, request, num_steps, aborted=True)
        cut = request if partial is None else msgspec.structs.replace(request, partial=partial)
        assert_same(answer(model, cut)["a"].choices, whole.choices)


def test_what_was_finished_is_not_generated_again(model: Model) -> None:
    request = make_request("a", PROMPT, max_tokens=TOKENS, temperature=0.0)
    whole = answer(model, request)["a"]
    everything = Partial(choices=[PartialChoice(whole.choices[0].token_ids)], num_cached_tokens=5, engine_ms=70)
    core, _ = make_core(model)
    (outcome,) = core.submit(msgspec.structs.replace(request, partial=everything))
    assert core.is_idle
    assert outcome.status is OutcomeStatus.FINISHED
    assert (outcome.choices, outcome.num_completion_tokens) == (whole.choices, TOKENS)
    assert (outcome.num_cached_tokens, outcome.engine_ms) == (5, 70)


def test_a_short_answer_is_not_reported(model: Model) -> None:
    core, _ = make_core(model)
    core.submit(make_request("a", PROMPT, max_tokens=REPORT_TOKENS))
    progress = []
    while not core.is_idle:
        core.run(core.plan())
        progress += core.take_progress()
    assert progress == []


def test_requests_that_resume_run_beside_others(model: Model) -> None:
    requests = [make_request(name, PROMPT, **{"max_tokens": TOKENS, **CASES[name]}) for name in CASES]
    whole = answer(model, *requests)
    core, _ = make_core(model)
    for number, request in enumerate(requests):
        partial = interrupted(model, request, 7 * number, aborted=True) if number else None
        core.submit(msgspec.structs.replace(request, partial=partial))
    resumed = run_all(core)
    for name in CASES:
        assert_same(resumed[name].choices, whole[name].choices)


@pytest.mark.parametrize(
    "partial",
    [
        Partial(choices=[]),
        Partial(choices=[PartialChoice([1]), PartialChoice([1])]),
        Partial(choices=[PartialChoice([9_999])]),
        Partial(choices=[PartialChoice([-1])]),
        Partial(choices=[PartialChoice([1] * (TOKENS + 1))]),
        Partial(choices=[PartialChoice([1], [(0.0, [])])]),
    ],
)
def test_what_does_not_fit_the_request_is_not_gone_on_from(partial: Partial) -> None:
    request = make_request("a", PROMPT, max_tokens=TOKENS)
    assert not fits(partial, request, vocab_size=300)
    assert fits(Partial(choices=[PartialChoice([1, 2])]), request, vocab_size=300)
    assert not fits(
        Partial(choices=[PartialChoice([1, 2])]),
        make_request("b", PROMPT, max_tokens=TOKENS, logprobs=1),
        vocab_size=300,
    )


def test_a_request_that_goes_on_is_told_to_run_like_any_other(model: Model) -> None:
    """Else its crashes would be nobody's: the parent takes those for exposed that were admitted."""
    core, _ = make_core(model)
    partial = Partial(choices=[PartialChoice([9, 8, 7])])
    core.submit(msgspec.structs.replace(make_request("on", range(10, 30)), partial=partial))
    assert [sequence.request_id for sequence in core.plan().admitted] == ["on"]
