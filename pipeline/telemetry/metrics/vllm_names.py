"""vLLM's names for what a group measures, as of vLLM 0.32, so that dashboards made for it work."""

from __future__ import annotations

from typing import Final

from pipeline.telemetry.metrics import group_names as ours
from pipeline.telemetry.metrics.metric import Kind, Metric, Source

#: `engine` is always 0: a group has one.
VLLM_LABELS: Final = ("model_name", "engine")


def _named(name: str, metric: Metric) -> tuple[Metric, Metric]:
    labels = (*VLLM_LABELS, *(_RENAMED.get(label, label) for label in metric.labels if label not in ours.GROUP_LABELS))
    return metric, Metric(f"vllm:{name}", metric.kind, metric.help, Source.GROUP, labels, metric.buckets)


_RENAMED: Final = {"finish_reason": "finished_reason"}

#: What has a name of ours, too: (ours, vLLM's).
ALIASES: Final = (
    _named("num_requests_running", ours.ENGINE_RUNNING),
    _named("num_requests_waiting", ours.ENGINE_WAITING),
    _named("kv_cache_usage_perc", ours.KV_USAGE),
    _named("prefix_cache_queries_total", ours.PREFIX_QUERIES),
    _named("prefix_cache_hits_total", ours.PREFIX_HITS),
    _named("num_preemptions_total", ours.PREEMPTIONS),
    _named("prompt_tokens_total", ours.PROMPT_TOKENS),
    _named("generation_tokens_total", ours.GENERATION_TOKENS),
    _named("request_success_total", ours.ENGINE_REQUESTS),
    _named("iteration_tokens_total", ours.STEP_TOKENS),
    _named("inter_token_latency_seconds", ours.INTER_TOKEN),
    _named("time_to_first_token_seconds", ours.FIRST_TOKEN),
    _named("request_time_per_output_token_seconds", ours.TIME_PER_TOKEN),
    _named("e2e_request_latency_seconds", ours.DURATION),
    _named("request_queue_time_seconds", ours.QUEUE_TIME),
    _named("request_inference_time_seconds", ours.INFERENCE_TIME),
    _named("request_prefill_time_seconds", ours.PREFILL_TIME),
    _named("request_decode_time_seconds", ours.DECODE_TIME),
    _named("request_prompt_tokens", ours.REQUEST_PROMPT),
    _named("request_generation_tokens", ours.REQUEST_GENERATION),
)
CACHE_CONFIG: Final = Metric(
    "vllm:cache_config_info",
    Kind.GAUGE,
    "1; the size of the KV cache.",
    Source.GROUP,
    (*VLLM_LABELS, "block_size", "num_gpu_blocks", "enable_prefix_caching"),
)

VLLM_METRICS: Final = (*(theirs for _, theirs in ALIASES), CACHE_CONFIG)
