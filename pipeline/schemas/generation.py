"""What is asked of an engine: the part of a request that survives validation, as SQL stores it and a group gets it."""

from __future__ import annotations

import msgspec

#: Largest number of alternatives that one position can report, as in OpenAI's API.
MAX_TOP_LOGPROBS = 20


class GenerationParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Sampling parameters of one request, checked by intake; the engine trusts them.

    Stored as JSON in `requests.params`. Defaults are OpenAI's and are left out of the JSON.
    """

    #: Tokens to generate at most, per choice; prompt + max_tokens never passes the context of the model.
    max_tokens: int
    #: 0 means greedy.
    temperature: float = 1.0
    top_p: float = 1.0
    #: 0 means off.
    top_k: int = 0
    stop: tuple[str, ...] = ()
    #: None: the group derives one from the request, so that a second attempt repeats the first.
    seed: int | None = None
    n: int = 1
    #: None: no log-probabilities; 0: of the sampled token alone; k: and of the k likeliest.
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    #: Token id to bias, each within [-100, 100].
    logit_bias: dict[int, float] = {}
    #: Extension, as in vLLM: go on past the end-of-sequence token until max_tokens.
    ignore_eos: bool = False
