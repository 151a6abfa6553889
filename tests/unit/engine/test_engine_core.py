from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_cores import Model, answer, make_core, make_request, run_all
from model_folders import random_llama

from models.config import ModelConfig
from models.decoder import Decoder
from models.layers.attention import CausalAttention
from workers.backends.protocol import EngineRequest, Outcome, OutcomeStatus

PROMPTS = {
    "one": [7],
    "short": [5, 99, 31, 250],
    "long": [(31 * position) % 300 + 3 for position in range(57)],
    "longer": [(17 * position) % 300 + 3 for position in range(90)],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return Model.load(random_llama(tmp_path_factory.mktemp("model")))


@torch.inference_mode()
def greedy(decoder: Decoder, prompt: list[int], num_tokens: int) -> list[int]:
    """Without cache or batch: the whole sequence again for every token."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        length = len(token_ids)
        hidden = decoder(torch.tensor(token_ids), torch.arange(length), CausalAttention(1, length))
        token_ids.append(int(decoder.logits(hidden[-1:]).argmax()))
    return token_ids[len(prompt) :]


def token_ids(outcome: Outcome) -> list[list[int]]:
    assert outcome.status is OutcomeStatus.FINISHED, outcome
    return [choice.token_ids for choice in outcome.choices]


def mixed_requests() -> list[EngineRequest]:
    return [
        make_request("greedy", PROMPTS["long"], temperature=0.0),
        make_request("drawn", PROMPTS["short"], seed=4),
        make_request("several", PROMPTS["long"], seed=5, n=3, temperature=0.8, top_p=0.9),
        make_request("penalised", PROMPTS["one"], seed=6, top_k=20, presence_penalty=0.5, frequency_penalty=0.3),
        make_request("late", PROMPTS["longer"], seed=7, max_tokens=20),
    ]


def test_greedy_answers_equal_those_without_cache_or_batch(model: Model) -> None:
    outcomes = answer(model, *(make_request(name, prompt, temperature=0.0) for name, prompt in PROMPTS.items()))
    for name, prompt in PROMPTS.items():
        assert token_ids(outcomes[name]) == [greedy(model.decoder, prompt, 12)]
        assert outcomes[name].num_prompt_tokens == len(prompt)
        assert outcomes[name].num_completion_tokens == 12


def test_an_answer_is_the_same_alone_and_in_any_company(model: Model) -> None:
    together = answer(model, *mixed_requests())
    backwards = answer(model, *reversed(mixed_requests()))
    for request in mixed_requests():
        alone = answer(model, request)[request.id]
        assert token_ids(alone) == token_ids(together[request.id]) == token_ids(backwards[request.id])


def test_another_seed_gives_another_answer_and_choices_differ(model: Model) -> None:
    first, second = (answer(model, make_request("r", PROMPTS["short"], seed=seed, n=3))["r"] for seed in (1, 2))
    assert len({tuple(ids) for outcome in (first, second) for ids in token_ids(outcome)}) == 6
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.num_completion_tokens == 36


@pytest.mark.parametrize("step_tokens", [1, 7, 16, 60])
def test_a_prompt_computed_in_chunks_is_answered_as_a_whole_one(model: Model, step_tokens: int) -> None:
    whole = answer(model, *mixed_requests())
    chunked = answer(model, *mixed_requests(), step_tokens=step_tokens)
    for request in mixed_requests():
        assert token_ids(chunked[request.id]) == token_ids(whole[request.id])


@pytest.mark.parametrize("block_size", [1, 3, 8])
def test_preemption_changes_no_answer(model: Model, block_size: int) -> None:
    roomy = answer(model, *mixed_requests())
    num_blocks = -(-112 // block_size)
    core, _ = make_core(model, num_blocks=num_blocks, block_size=block_size)
    for request in mixed_requests():
        core.submit(request)
    num_preempted = 0
    outcomes: dict[str, Outcome] = {}
    while not core.is_idle:
        plan = core.plan()
        num_preempted += len(plan.preempted)
        outcomes |= {outcome.id: outcome for outcome in core.run(plan)}
        core.scheduler.check_integrity()
    assert num_preempted > 0
    for request in mixed_requests():
        assert token_ids(outcomes[request.id]) == token_ids(roomy[request.id])
        assert outcomes[request.id].num_prompt_tokens == roomy[request.id].num_prompt_tokens


def test_prefix_hits_are_counted_and_change_nothing(model: Model) -> None:
    core, runner = make_core(model)
    request = make_request("first", PROMPTS["long"], seed=3)
    core.submit(request)
    first = run_all(core)["first"]
    num_tokens_before = sum(len(step.token_ids) for step in runner.steps)
    core.submit(make_request("again", PROMPTS["long"], seed=3))
    again = run_all(core)["again"]
    num_tokens_after = sum(len(step.token_ids) for step in runner.steps) - num_tokens_before
    assert token_ids(again) == token_ids(first)
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 56)
    assert num_tokens_after == num_tokens_before - 56


def test_another_tenants_prompt_is_no_hit(model: Model) -> None:
    core, _ = make_core(model)
    core.submit(make_request("first", PROMPTS["long"], salt="a"))
    run_all(core)
    core.submit(make_request("other", PROMPTS["long"], salt="b"))
    core.submit(make_request("same", PROMPTS["long"], salt="a"))
    outcomes = run_all(core)
    assert (outcomes["other"].num_cached_tokens, outcomes["same"].num_cached_tokens) == (0, 56)


def test_choices_of_one_request_compute_its_prompt_once(model: Model) -> None:
    core, runner = make_core(model)
    core.submit(make_request("r", PROMPTS["long"], n=4, max_tokens=1))
    outcome = run_all(core)["r"]
    assert sum(len(step.token_ids) for step in runner.steps) == 57 + 3
    assert outcome.num_cached_tokens == 0, "nothing of the prompt was there before"


def test_end_of_sequence_stops_and_is_a_token_without_text(model: Model) -> None:
    eos = next(iter(model.tokenizer.eos_token_ids))
    request = make_request("r", PROMPTS["short"], ignore_eos=False, logit_bias={eos: 100.0}, logprobs=0)
    (choice,) = answer(model, request)["r"].choices
    assert (choice.token_ids, choice.text, choice.finish_reason, choice.logprobs) == ([eos], "", "stop", [])


def test_end_of_sequence_can_be_ignored(model: Model) -> None:
    eos = next(iter(model.tokenizer.eos_token_ids))
    outcome = answer(model, make_request("r", PROMPTS["short"], logit_bias={eos: 100.0}))["r"]
    assert outcome.choices[0].token_ids == [eos] * 12
    assert outcome.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_answer_before_it(model: Model) -> None:
    whole = answer(model, make_request("r", PROMPTS["short"], temperature=0.0, max_tokens=30))["r"].choices[0]
    stop = whole.text[9:13]
    stopped = answer(model, make_request("r", PROMPTS["short"], temperature=0.0, max_tokens=30, stop=(stop,)))["r"]
    choice = stopped.choices[0]
    assert choice.text == whole.text[: whole.text.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.token_ids == whole.token_ids[: len(choice.token_ids)]
    assert len(choice.token_ids) < 30
    assert stopped.num_completion_tokens == len(choice.token_ids)


def test_logprobs_are_those_of_the_model(model: Model) -> None:
    request = make_request("r", PROMPTS["short"], seed=8, logprobs=3, temperature=0.5, max_tokens=4)
    (choice,) = answer(model, request)["r"].choices
    context = torch.tensor(PROMPTS["short"] + choice.token_ids)
    with torch.inference_mode():
        hidden = model.decoder(context, torch.arange(len(context)), CausalAttention(1, len(context)))
        logprobs = model.decoder.logits(hidden).log_softmax(-1)
    assert choice.logprobs is not None
    for position, entry in enumerate(choice.logprobs):
        expected = logprobs[len(PROMPTS["short"]) - 1 + position]
        assert entry.sampled.token_id == choice.token_ids[position]
        assert entry.sampled.logprob == pytest.approx(float(expected[entry.sampled.token_id]), abs=1e-4)
        assert [top.token_id for top in entry.top] == expected.topk(3).indices.tolist()
        assert bytes(entry.sampled.bytes).decode(errors="replace") == entry.sampled.token


def test_an_abort_frees_the_blocks_at_once_and_leaves_the_others_alone(model: Model) -> None:
    expected = token_ids(answer(model, make_request("stays", PROMPTS["short"], seed=1))["stays"])
    core, _ = make_core(model)
    core.submit(make_request("goes", PROMPTS["long"], n=2))
    core.submit(make_request("stays", PROMPTS["short"], seed=1))
    core.run(core.plan())
    used = core.scheduler.num_tokens_used
    (aborted,) = core.abort(["goes", "unknown"])
    assert (aborted.id, aborted.status, aborted.choices) == ("goes", OutcomeStatus.ABORTED, [])
    assert core.scheduler.num_tokens_used < used
    core.scheduler.check_integrity()
    assert token_ids(run_all(core)["stays"]) == expected
    assert core.abort(["stays"]) == []


def test_a_row_that_is_not_finite_fails_its_request_alone(model: Model) -> None:
    requests = [make_request(name, PROMPTS[name], temperature=0.0, n=2) for name in ("one", "short", "longer")]
    expected = answer(model, *requests)
    core, runner = make_core(model)
    for request in requests:
        core.submit(request)
    runner.poison = {2: 3}  # the second choice of the second request
    outcomes = run_all(core)
    failed = outcomes.pop("short")
    assert (failed.status, failed.error_code, failed.choices) == (OutcomeStatus.FAILED, "invalid_logits", [])
    for name, outcome in outcomes.items():
        assert token_ids(outcome) == token_ids(expected[name])
    core.submit(make_request("again", PROMPTS["short"]))
    assert run_all(core)["again"].num_cached_tokens == 0, "what it left in the cache is not to be trusted"


def test_a_request_larger_than_the_cache_fails_by_itself(model: Model) -> None:
    outcomes = answer(
        model,
        make_request("prompt", PROMPTS["longer"]),
        make_request("grows", PROMPTS["long"], max_tokens=40),
        make_request("fits", PROMPTS["short"]),
        num_blocks=20,
    )
    for name in ("prompt", "grows"):
        assert (outcomes[name].status, outcomes[name].error_code) == (OutcomeStatus.FAILED, "kv_cache_exceeded")
        assert "80" in (outcomes[name].error_message or "")
    assert outcomes["fits"].status is OutcomeStatus.FINISHED


def test_the_time_of_every_step_is_shared_out_by_tokens(model: Model) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.5  # from the plan to the end of each step
        return now

    core, _ = make_core(model)
    core._clock = clock
    core.submit(make_request("large", range(10, 40), max_tokens=2))
    core.submit(make_request("small", range(50, 60), max_tokens=2))
    outcomes = run_all(core)
    assert outcomes["large"].engine_ms == 500 * 30 / 40 + 250
    assert outcomes["small"].engine_ms == 500 * 10 / 40 + 250


def test_a_dynamic_rope_shares_prefixes_of_one_prompt_length_alone(tmp_path: Path) -> None:
    folder = random_llama(
        tmp_path, context_length=16, rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10_000.0}
    )
    assert ModelConfig.from_pretrained(folder).context_length == 128
    stretched = Model.load(folder)
    core, _ = make_core(stretched)
    requests = [make_request(str(length), PROMPTS["long"][:length], temperature=0.0) for length in (30, 40, 40, 14)]
    alone = [token_ids(answer(stretched, request)[request.id]) for request in requests]
    for position, request in enumerate(requests):
        core.submit(request)
        outcome = run_all(core)[request.id]
        assert token_ids(outcome) == alone[position]
        assert outcome.num_cached_tokens == (36 if position == 2 else 0)
