"""What an engine is started with."""

from __future__ import annotations

import msgspec


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Checked where it is made; the same for every rank."""

    #: Folder of the model in the Hugging Face layout.
    model_path: str
    #: Tensor parallelism: the number of ranks.
    tp: int = 1
    #: "cpu", or "cuda" for one GPU per rank, in the order of CUDA_VISIBLE_DEVICES.
    device: str = "cpu"
    #: "auto" (that of the checkpoint), "float32", "bfloat16" or "float16".
    dtype: str = "auto"
    #: "none", or "int8": weights per output and activations per token, on a CPU, made at loading.
    quantize: str = "none"
    #: Tokens that the KV cache holds; 0 sizes it from free memory.
    kv_cache_tokens: int = 0
    #: Tokens in one block of the KV cache.
    block_size: int = 16
    max_num_sequences: int = 256
    #: Token budget of one step.
    step_tokens: int = 2_048
    #: A step that takes longer counts as a hang; on a GPU, and for a slow model, it may take longer.
    step_seconds: float = 4.0
    #: A start that takes longer counts as a failure; a large checkpoint on a slow disk takes minutes.
    start_seconds: float = 1_800.0
    #: So many crashes within the window, and the engine takes nothing until a person looks.
    max_crashes: int = 5
    crash_window_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be 'cpu' or 'cuda'.")
        if self.quantize not in ("none", "int8"):
            raise ValueError(f"quantize is {self.quantize!r}; it must be 'none' or 'int8'.")
        if self.quantize != "none" and self.device != "cpu":
            raise ValueError(f"quantize is {self.quantize!r}, which runs on the device 'cpu' alone.")
        for name in ("tp", "block_size", "max_num_sequences", "step_tokens", "max_crashes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.kv_cache_tokens < 0:
            raise ValueError(
                f"kv_cache_tokens is {self.kv_cache_tokens}; it must be at least 0, where 0 means by itself."
            )
        for name in ("step_seconds", "start_seconds", "crash_window_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 seconds.")
