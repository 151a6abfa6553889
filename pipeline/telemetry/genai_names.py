"""Names of span attributes: those of OpenTelemetry's conventions for generative AI, and ours beside them.

The conventions moved to a repository of their own in 2026 and are still called "Development": names change. Whatever
says one of them takes it from here.
"""

from __future__ import annotations

from typing import Final

# --- OpenTelemetry, generative AI
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"

# --- OpenTelemetry, in general
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"

# --- ours, for what the conventions have no word for
TENANT: Final = "ryzanstein.tenant"
BATCH: Final = "ryzanstein.batch"
BATCH_STATUS: Final = "ryzanstein.batch.status"
SLICE: Final = "ryzanstein.slice"
ATTEMPT: Final = "ryzanstein.attempt"
ATTEMPT_END: Final = "ryzanstein.attempt.end"
GROUP: Final = "ryzanstein.group"
HAS_TICKET: Final = "ryzanstein.ticket"  #: False where a group looked into SQL by itself.
NUM_REQUESTS: Final = "ryzanstein.requests"
NUM_SUCCEEDED: Final = "ryzanstein.requests.succeeded"
NUM_UNSUCCESSFUL: Final = "ryzanstein.requests.unsuccessful"

#: What we are called in `PROVIDER`.
OUR_NAME: Final = "ryzanstein"

_OPERATIONS: Final = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}


def operation(endpoint: str) -> str:
    """`OPERATION` of requests to an endpoint."""
    return _OPERATIONS.get(endpoint, "text_completion")
