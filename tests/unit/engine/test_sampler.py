from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels.interface import PLAIN
from pipeline.schemas.generation import GenerationParams
from workers.engine.randomness import draw_key, exponentials
from workers.engine.sampler import Sample, draw, draw_of, sample
from workers.engine.sequence import Sequence

CPU = torch.device("cpu")


def make_sequence(generated: tuple[int, ...] = (), seed: int = 1, index: int = 0, **params: Any) -> Sequence:
    sequence = Sequence(
        request_id="r",
        index=index,
        params=GenerationParams(max_tokens=100, **params),
        seed=seed,
        cache_salt="",
        token_ids=[0, 1, 2],
        num_prompt_tokens=3,
    )
    for token_id in generated:
        sequence.append(token_id)
    return sequence


def sample_rows(logits: Tensor, sequences: list[Sequence]) -> list[Sample | None]:
    return sample(logits, sequences, PLAIN.greatest(logits).tolist())


def sample_one(logits: Tensor, sequence: Sequence) -> Sample:
    (one,) = sample_rows(logits.unsqueeze(0), [sequence])
    assert one is not None
    return one


def draw_many(logits: Tensor, num: int = 4000, **params: Any) -> Tensor:
    """How often each token is drawn, over so many seeds."""
    sequences = [make_sequence(seed=seed, **params) for seed in range(num)]
    samples = sample_rows(logits.expand(num, -1), sequences)
    token_ids = torch.tensor([one.token_id for one in samples if one is not None])
    return torch.bincount(token_ids, minlength=len(logits))


def allowed_by_plain_rule(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> set[int]:
    """top_k, then top_p, written token by token; where rounding decides about a token, it is allowed."""
    order = sorted(range(len(logits)), key=lambda token_id: (-float(logits[token_id]), token_id))
    order = order[: top_k or len(order)]
    weights = [math.exp((float(logits[token_id]) - float(logits.max())) / temperature) for token_id in order]
    kept: set[int] = set()
    reached = 0.0
    for token_id, weight in zip(order, weights, strict=True):
        if kept and reached >= top_p + 1e-5:
            break
        kept.add(token_id)
        reached += weight / sum(weights)
    return kept


def test_temperature_zero_is_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    samples = sample_rows(logits, [make_sequence(temperature=0.0)] * 2)
    assert [one and one.token_id for one in samples] == [1, 0]


@pytest.mark.parametrize(
    "params",
    [
        {"top_p": 0.9},
        {"top_k": 5},
        {"logit_bias": {3: 1.0}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logprobs": 0},
        {"temperature": 0.0, "logprobs": 0},
        {"temperature": 0.0, "logit_bias": {3: 1.0}},
    ],
)
def test_no_draw_alone_decides_where_more_is_asked_for(params: dict[str, Any]) -> None:
    assert draw_of(make_sequence(**params), 0) is None


def test_a_draw_alone_decides_as_all_of_sampling_does() -> None:
    logits = torch.randn(60, 500, generator=torch.Generator().manual_seed(0))
    sequences = [make_sequence((7,) * (row % 4), seed=row, temperature=0.4 + row / 50) for row in range(60)]
    draws = [draw_of(sequence, sequence.num_generated_tokens) for sequence in sequences]
    temperatures, *keys = zip(*[one for one in draws if one is not None], strict=True)
    drawn = draw(logits, torch.tensor(temperatures), torch.tensor(keys, dtype=torch.int32).T)
    assert drawn.tolist() == [one and one.token_id for one in sample_rows(logits, sequences)]


def test_the_likeliest_is_a_draw_at_no_temperature() -> None:
    assert draw_of(make_sequence(temperature=0.0, top_p=0.5), 3) == (0.0, 0, 0)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -3.0])
    counts = draw_many(logits, num=20_000)
    expected = logits.softmax(-1) * counts.sum()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 23.5, "4 degrees of freedom: one in ten thousand is above"


def test_temperature_sharpens_and_flattens() -> None:
    logits = torch.tensor([1.0, 0.0])
    for temperature in (0.5, 1.0, 2.0):
        counts = draw_many(logits, num=20_000, temperature=temperature)
        expected = float((logits / temperature).softmax(-1)[0])
        assert float(counts[0]) / 20_000 == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("temperature", [1e-4, 1e-30])
def test_a_tiny_temperature_is_the_likeliest_token_and_no_error(temperature: float) -> None:
    assert sample_one(torch.tensor([0.0, 80.0, 79.0]), make_sequence(temperature=temperature)).token_id == 1


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-32, 32).map(lambda eighths: eighths / 8), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.3, 0.7, 0.95, 1.0]),
)
def test_nothing_is_drawn_that_a_plain_rule_excludes(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    row = torch.tensor(logits)
    counts = draw_many(row, num=64, temperature=temperature, top_k=top_k, top_p=top_p)
    allowed = allowed_by_plain_rule(row, temperature=temperature, top_k=top_k, top_p=top_p)
    assert set(counts.nonzero().flatten().tolist()) <= allowed


def test_what_truncation_keeps_keeps_its_proportions() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    counts = draw_many(logits, num=20_000, top_k=2)
    assert counts[2:].sum() == 0
    assert float(counts[0]) / 20_000 == pytest.approx(float(logits[:2].softmax(-1)[0]), abs=0.015)


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert set(draw_many(logits, num=500, top_p=0.6).nonzero().flatten().tolist()) == {0, 1}
    assert set(draw_many(logits, num=500, top_p=0.01).nonzero().flatten().tolist()) == {0}


def test_a_bias_of_100_forces_and_of_minus_100_bans() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert draw_many(logits, num=200, logit_bias={7: 100.0})[7] == 200
    best = int(logits.argmax())
    assert sample_one(logits, make_sequence(temperature=0.0, logit_bias={best: -100.0})).token_id != best


def test_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    logits = torch.tensor([1.0, 0.9, 0.5, 0.0])
    greedy: dict[str, Any] = {"temperature": 0.0}
    assert sample_one(logits, make_sequence(presence_penalty=0.2, **greedy)).token_id == 0
    assert sample_one(logits, make_sequence((0,), presence_penalty=0.2, **greedy)).token_id == 1
    assert sample_one(logits, make_sequence((0, 1), presence_penalty=0.2, **greedy)).token_id == 0
    assert sample_one(logits, make_sequence((0, 0, 0, 1), frequency_penalty=0.2, **greedy)).token_id == 1
    assert sample_one(logits, make_sequence((1, 2, 3), frequency_penalty=-2.0, **greedy)).token_id == 1


def test_a_draw_depends_on_seed_choice_and_position_alone() -> None:
    logits = torch.zeros(1000)
    rng = torch.Generator().manual_seed(0)
    wanted = make_sequence((5, 6), seed=42, index=1)
    alone = sample_one(logits, wanted)
    others = [make_sequence(seed=seed, temperature=0.5, top_k=3, logprobs=2) for seed in range(7)]
    crowd = torch.cat([torch.randn(7, 1000, generator=rng), logits.unsqueeze(0)])
    assert sample_rows(crowd, [*others, wanted])[-1] == alone
    for changed in (
        make_sequence((5, 6), seed=43, index=1),
        make_sequence((5, 6), seed=42, index=0),
        make_sequence((5, 6, 7), seed=42, index=1),
    ):
        assert sample_one(logits, changed) != alone


@pytest.mark.parametrize("seed", [0, -1, 2**63, -(2**63), 10**30])
def test_any_integer_is_a_seed(seed: int) -> None:
    logits = torch.zeros(100)
    assert sample_one(logits, make_sequence(seed=seed)) == sample_one(logits, make_sequence(seed=seed))


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    raw = logits.log_softmax(-1)
    one = sample_one(logits, make_sequence(temperature=0.0, logprobs=3, logit_bias={0: 100.0}))
    assert one.token_id == 0
    assert one.logprob == pytest.approx(float(raw[0]))
    assert [token_id for token_id, _ in one.top_logprobs] == [1, 3, 2]
    assert [value for _, value in one.top_logprobs] == pytest.approx([float(raw[i]) for i in (1, 3, 2)])


def test_each_row_reports_as_many_logprobs_as_it_asked_for() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    samples = sample_rows(logits, [make_sequence(), make_sequence(logprobs=0), make_sequence(logprobs=5)])
    assert [one and one.logprob is None for one in samples] == [True, False, False]
    assert [one and len(one.top_logprobs) for one in samples] == [0, 0, 5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_has_no_token_and_changes_no_other(bad: float, temperature: float) -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    sequences = [make_sequence(seed=seed, temperature=temperature, top_p=0.9, logprobs=1) for seed in range(3)]
    whole = sample_rows(logits, sequences)
    logits[1, 17] = bad
    assert sample_rows(logits, sequences) == [whole[0], None, whole[2]]


def test_draws_of_many_keys_are_exponential_and_uncorrelated() -> None:
    keys = [draw_key(seed, 0, 0) for seed in range(500)]
    draws = exponentials(torch.tensor(keys, dtype=torch.int32), 1000).double()
    assert float(draws.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(draws.var()) == pytest.approx(1.0, abs=0.03)
    assert float((draws > 3).double().mean()) == pytest.approx(math.exp(-3), abs=0.002)
    rows, columns = torch.corrcoef(draws[:200]), torch.corrcoef(draws.T[:200])
    for correlations in (rows, columns):
        off_diagonal = correlations - torch.eye(200)
        assert float(off_diagonal.abs().max()) < 0.25
        assert float(off_diagonal.mean().abs()) < 0.01


def test_draws_are_positive_and_finite_for_a_large_vocabulary() -> None:
    keys = [draw_key(seed, 1, 2) for seed in range(8)]
    draws = exponentials(torch.tensor(keys, dtype=torch.int32), 200_000)
    assert bool((draws > 0).all())
    assert bool(draws.isfinite().all())
