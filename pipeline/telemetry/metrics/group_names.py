"""The metrics of a group. Its engine's come from rank 0, and go on counting when the ranks are replaced."""

from __future__ import annotations

from typing import Final

from pipeline.telemetry.metrics.metric import Kind, Metric, Source

#: Every metric of a group has these labels: `NAME@HOST`, and the name that requests call the model by.
GROUP_LABELS: Final = ("group", "model")

#: From a decode step on a GPU to a batch request that waits for hours, in seconds.
STEP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_SECONDS: Final = (0.01, 0.04, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300.0, 1800.0)
TOKENS: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 16384.0, 65536.0)
_RECORDING_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"ryzanstein_{name}", Kind.GAUGE, help, Source.GROUP, (*GROUP_LABELS, *labels))


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"ryzanstein_{name}_total", Kind.COUNTER, help, Source.GROUP, (*GROUP_LABELS, *labels))


def _histogram(name: str, help: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"ryzanstein_{name}", Kind.HISTOGRAM, help, Source.GROUP, GROUP_LABELS, buckets)


# --- the group and its ranks
GROUP_INFO: Final = _gauge("group_info", "1; what the group runs.", "engine", "tp", "device", "dtype", "quantize")
GROUP_UP: Final = _gauge("group_up", "1 while the engine is ready, 0 while it starts, restarts or has given up.")
GROUP_RANKS: Final = _gauge("group_ranks", "Ranks that the group is to have.")
RANK_UP: Final = _gauge("rank_up", "1 while the process of the rank lives, else 0.", "rank")
RANK_MEMORY: Final = _gauge(
    "rank_memory_bytes", "Memory of the rank: `resident` of its process; gone with the rank.", "rank", "kind"
)
ENGINE_RESTARTS: Final = _counter("engine_restarts", "Times that the ranks were replaced because one died or hung.")

# --- the engine
ENGINE_STEPS: Final = _counter("engine_steps", "Steps of the engine.")
ENGINE_BUSY: Final = _counter("engine_busy_seconds", "Time in steps; the rest of the time the engine was idle.")
ENGINE_RUNNING: Final = _gauge("engine_requests_running", "Requests that the engine works on.")
ENGINE_WAITING: Final = _gauge("engine_requests_waiting", "Requests in the engine that wait to be admitted.")
KV_TOKENS: Final = _gauge("engine_kv_tokens", "Tokens that the KV cache holds.")
KV_TOKENS_USED: Final = _gauge("engine_kv_tokens_used", "Of these, those in use by running requests.")
KV_USAGE: Final = _gauge("engine_kv_usage_ratio", "Part of the KV cache in use, 0 to 1.")
PREFIX_QUERIES: Final = _counter("engine_prefix_query_tokens", "Prompt tokens that were looked for in the KV cache.")
PREFIX_HITS: Final = _counter("engine_prefix_hit_tokens", "Of these, those that were found.")
PREEMPTIONS: Final = _counter("engine_preemptions", "Times that a running request gave its KV cache to an older one.")
PROMPT_TOKENS: Final = _counter("engine_prompt_tokens", "Prompt tokens of admitted requests, found or computed.")
GENERATION_TOKENS: Final = _counter("engine_generation_tokens", "Tokens that were generated.")
ENGINE_REQUESTS: Final = _counter(
    "engine_requests",
    "Requests that left the engine: stop, length, abort (stopped by the group), error, crash.",
    "finish_reason",
)
STEP_TIME: Final = _histogram("engine_step_seconds", "Time of a step.", STEP_SECONDS)
STEP_TOKENS: Final = _histogram("engine_step_tokens", "Tokens that a step computed.", TOKENS)
INTER_TOKEN: Final = _histogram("inter_token_latency_seconds", "Between two tokens of a choice.", STEP_SECONDS)

# --- requests, as they leave the engine
QUEUE_TIME: Final = _histogram(
    "request_queue_seconds", "From its coming to the engine to its first step.", REQUEST_SECONDS
)
FIRST_TOKEN: Final = _histogram(
    "request_time_to_first_token_seconds", "From its coming to the engine to its first token.", REQUEST_SECONDS
)
PREFILL_TIME: Final = _histogram("request_prefill_seconds", "From its first step to its first token.", REQUEST_SECONDS)
DECODE_TIME: Final = _histogram("request_decode_seconds", "From its first token to its last.", REQUEST_SECONDS)
INFERENCE_TIME: Final = _histogram(
    "request_inference_seconds", "From its first step to its last token.", REQUEST_SECONDS
)
DURATION: Final = _histogram("request_duration_seconds", "From its coming to the engine to its end.", REQUEST_SECONDS)
TIME_PER_TOKEN: Final = _histogram(
    "request_time_per_output_token_seconds", "Decode time over the tokens after the first.", STEP_SECONDS
)
REQUEST_PROMPT: Final = _histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
REQUEST_GENERATION: Final = _histogram("request_generation_tokens", "Tokens generated for a request.", TOKENS)

# --- slices and outcomes
SLICES_HELD: Final = _gauge("group_slices_held", "Slices that the group has a lease on.")
ATTEMPTS: Final = _counter("attempts", "Attempts of this group that ended: finished, lost, returned.", "end")
LEASE_LOSSES: Final = _counter("lease_losses", "Leases that this group found lost.")
OUTCOMES: Final = _counter("outcomes", "Outcomes that this group recorded.", "outcome")
UNRECORDED: Final = _gauge("unrecorded_outcomes", "Outcomes that wait to be recorded.")
RECORDING_TIME: Final = _histogram("recording_seconds", "Time of a recording transaction.", _RECORDING_SECONDS)
WASTE: Final = _counter("waste_tokens", "Tokens that this group computed for nothing.", "cause")
WASTE_TIME: Final = _counter("waste_engine_seconds", "Engine time of these, as far as it is known.", "cause")
HEARTBEAT_AGE: Final = _gauge("lease_renewal_age_seconds", "Since the group last renewed its leases.")

GROUP_METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
