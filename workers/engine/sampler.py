"""From logits to the next token of every sequence of a step."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.randomness import draw_key, exponentials
from workers.engine.sequence import Sequence

#: A temperature below it is greedy: no softmax tells it from 0.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class Sample:
    """The next token of one sequence."""

    token_id: int
    #: Natural logarithm, before bias, penalties, temperature and truncation; None where not asked for.
    logprob: float | None = None
    #: The likeliest tokens with theirs, likeliest first; of equals, the lower id.
    top_logprobs: tuple[tuple[int, float], ...] = ()


def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[Sample | None]:
    """Choose a token per row of logits [rows, vocab_size] float32; None for a row that is not finite.

    In the order of OpenAI's and vLLM's: bias and penalties, temperature, top_k, top_p, draw. Every row is treated by
    itself, and drawn by (seed, choice, position) alone.
    """
    is_valid = torch.isfinite(logits).all(dim=-1)
    logits = logits.masked_fill(~is_valid.unsqueeze(-1), 0.0)
    adjusted = _adjust(logits, sequences)
    chosen = adjusted.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.params.temperature >= MIN_TEMPERATURE]
    if drawn:
        chosen[_index(drawn, logits)] = _draw(adjusted[_index(drawn, logits)], [sequences[row] for row in drawn])
    token_ids: list[int] = chosen.tolist()
    samples = [Sample(token_id) for token_id in token_ids]
    _report_logprobs(samples, logits, chosen, sequences)
    return [one if valid else None for one, valid in zip(samples, is_valid.tolist(), strict=True)]


def _adjust(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Add the biases, and subtract the penalties of what was generated before."""
    rows: list[int] = []
    token_ids: list[int] = []
    amounts: list[float] = []
    for row, sequence in enumerate(sequences):
        params = sequence.params
        change = dict(params.logit_bias)
        if sequence.has_penalties:
            for token_id, count in sequence.generated_counts.items():
                penalty = params.presence_penalty + count * params.frequency_penalty
                change[token_id] = change.get(token_id, 0.0) - penalty
        rows.extend([row] * len(change))
        token_ids.extend(change.keys())
        amounts.extend(change.values())
    if not rows:
        return logits
    at = (_index(rows, logits), _index(token_ids, logits))
    return logits.index_put(at, torch.tensor(amounts, dtype=logits.dtype, device=logits.device), accumulate=True)


def _draw(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Token ids [rows] by an exponential race: the token with the least draw / probability wins.

    Unlike a search in cumulated probabilities it looks at each token by itself: rounding that shifts a probability
    by a millionth changes about one draw in a million.
    """
    temperatures = torch.tensor([[sequence.params.temperature] for sequence in sequences], device=logits.device)
    scaled = (logits - logits.max(dim=-1, keepdim=True).values) / temperatures
    truncated = [
        row for row, sequence in enumerate(sequences) if sequence.params.top_p < 1 or sequence.params.top_k > 0
    ]
    if truncated:
        at = _index(truncated, logits)
        scaled[at] = _truncate(scaled[at], [sequences[row] for row in truncated])
    keys = [draw_key(sequence.seed, sequence.index, sequence.num_generated_tokens) for sequence in sequences]
    # argmin(draw / probability), taken in logarithms, where nothing underflows.
    return (scaled - exponentials(keys, logits.shape[-1], logits.device).log_()).argmax(dim=-1)


def _truncate(scaled: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Rule out (-inf) all but the top_k likeliest, and of these all but the likeliest that together reach top_p."""
    vocab_size = scaled.shape[-1]
    top_k = torch.tensor([[sequence.params.top_k or vocab_size] for sequence in sequences], device=scaled.device)
    top_p = torch.tensor([[sequence.params.top_p] for sequence in sequences], device=scaled.device)
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(torch.arange(vocab_size, device=scaled.device) >= top_k, -torch.inf)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    is_out = (before >= top_p) | ordered.isinf()
    is_out[:, 0] = False
    return scaled.masked_fill(torch.zeros_like(is_out).scatter_(1, order, is_out), -torch.inf)


def _report_logprobs(samples: list[Sample], logits: Tensor, chosen: Tensor, sequences: Rows[Sequence]) -> None:
    rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    if not rows:
        return
    at = _index(rows, logits)
    logprobs = logits[at].log_softmax(dim=-1)
    sampled = logprobs.gather(1, chosen[at].unsqueeze(-1)).squeeze(-1).tolist()
    num_top = max(sequences[row].params.logprobs or 0 for row in rows)
    # A stable sort, unlike topk, has one order for equals.
    values, ids = (part[:, :num_top].tolist() for part in logprobs.sort(dim=-1, descending=True, stable=True))
    for position, row in enumerate(rows):
        num = sequences[row].params.logprobs or 0
        top = tuple(zip(ids[position][:num], values[position][:num], strict=True))
        samples[row] = Sample(samples[row].token_id, sampled[position], top)


def _index(values: Rows[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
