"""What the engine counts and measures while it works."""

from __future__ import annotations

import msgspec
import pytest
import torch
from engine_cores import Model, make_core, make_request, run_all
from model_folders import random_llama

from pipeline.telemetry.metrics.names import METRICS
from workers.backends.measures import COUNTERS, DISTRIBUTIONS, Measures
from workers.backends.protocol import Partial, PartialChoice

PROMPT = [(31 * position) % 300 + 3 for position in range(57)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return Model.load(random_llama(tmp_path_factory.mktemp("model")))


def test_steps_tokens_and_prefix_hits_are_counted(model: Model) -> None:
    core, runner = make_core(model)
    core.submit(make_request("first", PROMPT, max_tokens=12, n=2))
    run_all(core)
    core.submit(make_request("again", PROMPT, max_tokens=3))
    run_all(core)
    measures = core.take_measures()
    steps = measures.distribution("step_seconds")
    assert steps.num_values == measures.distribution("step_tokens").num_values == len(runner.steps)
    assert measures.distribution("step_tokens").total == sum(len(step.token_ids) for step in runner.steps)
    assert measures.counts["num_generation_tokens"] == 2 * 12 + 3
    assert measures.counts["num_prompt_tokens"] == 2 * 57, "a prompt counts once, however many choices it has"
    assert measures.counts["num_prefix_queries"] == 3 * 57
    assert measures.counts["num_prefix_hits"] >= 56, "the prompt was there, but for what a block can't hold"
    assert core.take_measures() == Measures(), "what was taken is not counted twice"


def test_a_request_is_measured_from_its_coming_to_its_last_token(model: Model) -> None:
    core, _ = make_core(model)
    core._clock = iter(range(1000)).__next__  # one second from a look to the next
    core.submit(make_request("one", PROMPT, max_tokens=5))
    run_all(core)
    measures = core.take_measures()
    # Looked at: when it came (0); before and after each of five steps (1 to 10); when it ended (11).
    totals = {field: measures.distribution(field).total for field in DISTRIBUTIONS}
    assert (totals["queue_seconds"], totals["prefill_seconds"], totals["first_token_seconds"]) == (1, 1, 2)
    assert (totals["decode_seconds"], totals["inference_seconds"], totals["duration_seconds"]) == (9, 10, 11)
    assert totals["token_seconds"] == 9 / 4
    assert (totals["inter_token_seconds"], measures.distribution("inter_token_seconds").num_values) == (8, 4)


def test_tokens_of_earlier_attempts_took_no_time_of_this_one(model: Model) -> None:
    core, _ = make_core(model)
    core._clock = iter(range(1000)).__next__
    earlier = Partial(choices=[PartialChoice([9, 8, 7]), PartialChoice([9, 8, 7, 6, 5])])
    core.submit(msgspec.structs.replace(make_request("on", PROMPT, max_tokens=5, n=2), partial=earlier))
    run_all(core)
    # Two tokens of the first choice, the second of them in the step after the first (3 and 4), and the end (5).
    assert core.take_measures().distribution("token_seconds").total == 3


def test_the_time_between_two_requests_is_between_no_tokens(model: Model) -> None:
    core, _ = make_core(model)
    now = 0
    core._clock = lambda: now
    for name in ("one", "other"):
        core.submit(make_request(name, PROMPT, max_tokens=2))
        while not core.is_idle:
            now += 1
            core.run(core.plan())
        now += 1000
    between = core.take_measures().distribution("inter_token_seconds")
    assert (between.num_values, between.total) == (2, 2)


def test_preemptions_are_counted(model: Model) -> None:
    core, _ = make_core(model, num_blocks=28)
    for number in range(4):
        core.submit(make_request(f"r{number}", [number + 5, *PROMPT[:40]], max_tokens=30))
    num_preempted = 0
    while not core.is_idle:
        plan = core.plan()
        num_preempted += len(plan.preempted)
        core.run(plan)
    assert core.take_measures().counts["num_preemptions"] == num_preempted > 0


def test_measures_add_up_over_pipes_and_parts() -> None:
    first, second = Measures(), Measures()
    for measures, seconds in ((first, 0.02), (second, 300.0)):
        measures.count("num_preemptions", 2)
        measures.observe("decode_seconds", seconds, times=3)
        measures.end("stop")
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(second), type=Measures)
    first.add(sent)
    assert first.counts["num_preemptions"] == 4
    assert first.ends == {"stop": 2}
    decode = first.distribution("decode_seconds")
    assert (decode.num_values, decode.total) == (6, pytest.approx(900.06))
    assert decode.counts[1] == decode.counts[12] == 3, "each under the first bound that is not below it"


def test_every_measure_has_a_metric_with_a_name() -> None:
    for metric in (*COUNTERS.values(), *DISTRIBUTIONS.values()):
        assert METRICS[metric.name] is metric
