"""From logits to the next token of every sequence of a step."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.messages import Draw
from workers.engine.randomness import draw_key, exponentials
from workers.engine.sequence import Sequence

#: A temperature below it is greedy: no softmax tells it from 0.
MIN_TEMPERATURE = 1e-5
#: So many of the likeliest tokens are looked at first for top_p; nearly always they reach it.
_NUM_LIKELY = 256


@dataclass(frozen=True, slots=True)
class Sample:
    """The next token of one sequence."""

    token_id: int
    #: Natural logarithm, before bias, penalties, temperature and truncation; None where not asked for.
    logprob: float | None = None
    #: The likeliest tokens with theirs, likeliest first; of equals, the lower id.
    top_logprobs: tuple[tuple[int, float], ...] = ()


def sample(logits: Tensor, sequences: Rows[Sequence], likeliest: list[int]) -> list[Sample | None]:
    """Choose a token per row of logits [rows, vocab_size] float32; None for a row that is not finite.

    In the order of OpenAI's and vLLM's: bias and penalties, temperature, top_k, top_p, draw. Every row is treated by
    itself, and drawn by (seed, choice, position) alone. `likeliest` are the rows' tokens, as of `Kernels.greatest`.
    """
    samples = [Sample(token_id) if token_id >= 0 else None for token_id in likeliest]
    rows = [row for row, sequence in enumerate(sequences) if likeliest[row] >= 0 and not is_plain(sequence)]
    if rows:
        at, chosen_from = _index(rows, logits), [sequences[row] for row in rows]
        for row, one in zip(rows, _choose(logits[at], chosen_from), strict=True):
            samples[row] = one
    return samples


def is_plain(sequence: Sequence) -> bool:
    """Whether the likeliest token is all that is asked for."""
    params = sequence.params
    return (
        params.temperature < MIN_TEMPERATURE
        and not params.logit_bias
        and not sequence.has_penalties
        and params.logprobs is None
    )


def draw_of(sequence: Sequence, position: int) -> Draw | None:
    """What alone decides the token at `position` of the answer; None where more does, or more than it is asked for."""
    if is_plain(sequence):
        return 0.0, 0, 0
    params = sequence.params
    if _is_truncated(sequence) or params.logit_bias or sequence.has_penalties or params.logprobs is not None:
        return None
    return params.temperature, *draw_key(sequence.seed, sequence.index, position)


def draw(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """Token ids [rows] by an exponential race: the token with the least draw / probability wins.

    logits [rows, vocab_size] and temperatures [rows] float32, above 0; keys [rows, 2] int32. Unlike a search in
    cumulated probabilities it looks at each token by itself: rounding that shifts a probability by a millionth changes
    about one draw in a million.
    """
    return _race(_scale(logits, temperatures), keys)


def _choose(logits: Tensor, sequences: Rows[Sequence]) -> list[Sample]:
    adjusted = _adjust(logits, sequences)
    chosen = adjusted.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.params.temperature >= MIN_TEMPERATURE]
    if drawn:
        chosen[_index(drawn, logits)] = _draw(adjusted[_index(drawn, logits)], [sequences[row] for row in drawn])
    token_ids: list[int] = chosen.tolist()
    samples = [Sample(token_id) for token_id in token_ids]
    _report_logprobs(samples, logits, chosen, sequences)
    return samples


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
    """As `draw`, of what top_k and top_p leave."""
    scaled = _scale(logits, torch.tensor([sequence.params.temperature for sequence in sequences], device=logits.device))
    truncated = [row for row, sequence in enumerate(sequences) if _is_truncated(sequence)]
    if truncated:
        at = _index(truncated, logits)
        scaled[at] = _truncate(scaled[at], [sequences[row] for row in truncated])
    keys = [draw_key(sequence.seed, sequence.index, sequence.num_generated_tokens) for sequence in sequences]
    return _race(scaled, torch.tensor(keys, dtype=torch.int32, device=logits.device))


def _scale(logits: Tensor, temperatures: Tensor) -> Tensor:
    return (logits - logits.max(dim=-1, keepdim=True).values) / temperatures.unsqueeze(-1)


def _race(scaled: Tensor, keys: Tensor) -> Tensor:
    # argmin(draw / probability), taken in logarithms, where nothing underflows.
    return (scaled - exponentials(keys, scaled.shape[-1]).log_()).argmax(dim=-1)


def _is_truncated(sequence: Sequence) -> bool:
    return sequence.params.top_p < 1 or sequence.params.top_k > 0


def _truncate(scaled: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Rule out (-inf) all but the top_k likeliest, and of these all but the likeliest that together reach top_p."""
    truncated = torch.full_like(scaled, -torch.inf)
    for row, sequence in enumerate(sequences):
        kept = _kept(scaled[row], sequence.params.top_k, sequence.params.top_p)
        truncated[row, kept] = scaled[row, kept]
    return truncated


def _kept(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """[vocab_size] -> the token ids that top_k and top_p leave, at least one; a top_k of 0 is none."""
    limit = min(top_k or len(scaled), len(scaled))
    if top_p >= 1:
        return _likeliest(scaled, limit)
    total = scaled.logsumexp(0) if limit == len(scaled) else scaled[_likeliest(scaled, limit)].logsumexp(0)
    num = min(limit, _NUM_LIKELY)
    while True:
        ids = _likeliest(scaled, num)
        probabilities = (scaled[ids] - total).exp()
        is_in = probabilities.cumsum(0) - probabilities < top_p
        is_in[0] = True
        if num == limit or not is_in[-1]:
            return ids[is_in]
        num = min(limit, 8 * num)


def _likeliest(values: Tensor, num: int) -> Tensor:
    """[vocab_size] -> the ids of the greatest values, greatest first; of equals, the lower id first."""
    least = values.topk(num).values[-1]
    ids = (values >= least).nonzero().flatten()  # all that equal the last one, of which topk takes any
    return ids[values[ids].sort(descending=True, stable=True).indices[:num]]


def _report_logprobs(samples: list[Sample], logits: Tensor, chosen: Tensor, sequences: Rows[Sequence]) -> None:
    rows = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    if not rows:
        return
    at = _index(rows, logits)
    logprobs = logits[at].log_softmax(dim=-1)
    sampled = logprobs.gather(1, chosen[at].unsqueeze(-1)).squeeze(-1).tolist()
    for position, row in enumerate(rows):
        num = min(sequences[row].params.logprobs or 0, logprobs.shape[-1])
        ids = _likeliest(logprobs[position], num) if num else torch.empty(0, dtype=torch.int64)
        top = tuple(zip(ids.tolist(), logprobs[position][ids].tolist(), strict=True))
        samples[row] = Sample(samples[row].token_id, sampled[position], top)


def _index(values: Rows[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
