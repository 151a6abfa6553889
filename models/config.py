"""One configuration for every decoder family, read from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.errors import InvalidConfig, UnsupportedModel
from models.fields import MAX_INTEGER, Fields, read_fields, shown
from models.rope import Rope, RopeType, read_rope

#: Families, each with what its config.json leaves out: the defaults of transformers' class.
FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {},
        "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
        "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
        "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    }
)
ARCHITECTURES = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
)
DTYPES = ("float32", "bfloat16", "float16")
MAX_LAYERS = 4096

#: Fields that change the mathematics in a way that is not built here: any value but these is refused.
_REFUSED = MappingProxyType(
    {
        "quantization_config": ("quantised weights", ()),
        "compression_config": ("quantised weights", ()),
        "num_experts": ("a mixture of experts", (0,)),
        "num_local_experts": ("a mixture of experts", (0,)),
        "n_routed_experts": ("a mixture of experts", (0,)),
        "num_experts_per_tok": ("a mixture of experts", (0,)),
        "moe_intermediate_size": ("a mixture of experts", (0,)),
        "attn_logit_softcapping": ("soft-capped attention", ()),
        "final_logit_softcapping": ("soft-capped logits", ()),
        "dual_chunk_attention_config": ("dual chunk attention", ()),
        "text_config": ("a model of more than text", ()),
        "vision_config": ("a model of more than text", ()),
        "is_encoder_decoder": ("an encoder", (False,)),
        "use_mrope": ("multimodal rotary embedding", (False,)),
    }
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama, Mistral, Qwen2 or Qwen3 family."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: Rope = field(default_factory=Rope)
    #: Bias of the query, key and value projections; of the attention's output; of the feed-forward projections.
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    #: Whether queries and keys are normalised per head before they are rotated.
    qk_norm: bool = False
    #: Per layer: the number of last positions that a position attends to, its own among them; None is all.
    sliding_windows: tuple[int | None, ...] = ()
    tie_word_embeddings: bool = False
    #: In which the weights were saved; None where config.json does not say.
    dtype: str | None = None
    #: Any of them ends a sequence: those of generation_config.json or, where it names none, of config.json.
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.sliding_windows:
            object.__setattr__(self, "sliding_windows", (None,) * self.num_layers)
        if len(self.sliding_windows) != self.num_layers:
            raise InvalidConfig(
                f"sliding_windows must have {self.num_layers} entries, not {len(self.sliding_windows)}."
            )
        if self.num_heads % self.num_kv_heads:
            raise InvalidConfig(
                f"config.json: num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})."
            )
        if self.head_dim % 2:
            raise InvalidConfig(f"config.json: head_dim must be even to be rotated, but it is {self.head_dim}.")
        if self.context_length > MAX_INTEGER:
            raise InvalidConfig(
                f"config.json: max_position_embeddings and the factor of the rope type {self.rope.type.value!r} make a "
                f"context of {self.context_length} tokens; {MAX_INTEGER} are the most."
            )
        if self.rope.type is RopeType.DYNAMIC and self.head_dim == 2:
            raise InvalidConfig("config.json: head_dim must be above 2 for the rope type 'dynamic'.")

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens.

        `linear` and `dynamic` stretch max_position_embeddings by their factor and `yarn` the original length, whereas
        `llama3` already states the stretched one.
        """
        match self.rope.type:
            case RopeType.LINEAR | RopeType.DYNAMIC:
                return int(self.max_position_embeddings * self.rope.factor)
            case RopeType.YARN:
                stretched = int(self.rope.original_max_position_embeddings * self.rope.factor)
                return max(self.max_position_embeddings, stretched)
            case _:
                return self.max_position_embeddings

    def prefix_salt(self, num_prompt_tokens: int) -> str:
        """What keeps apart prompts whose keys differ though their tokens are the same.

        A dynamic rope rotates a prompt longer than max_position_embeddings by frequencies of the prompt's own length,
        so that its prefix is of use to prompts of the same length alone. Empty for all others.
        """
        if self.rope.type is RopeType.DYNAMIC and num_prompt_tokens > self.max_position_embeddings:
            return f"rope:{num_prompt_tokens}"
        return ""

    @classmethod
    def from_pretrained(cls, folder: Path) -> ModelConfig:
        """Read `config.json` and `generation_config.json`.

        Raises InvalidConfig for a broken file and UnsupportedModel for a model that is not built here; both name the
        field.
        """
        fields = read_fields(folder / "config.json")
        family = _family(fields)
        _refuse_unsupported(fields)
        fields = fields.with_defaults(FAMILIES[family])
        num_layers = fields.integer("num_hidden_layers", maximum=MAX_LAYERS)
        num_heads = fields.integer("num_attention_heads")
        hidden_size = fields.integer("hidden_size")
        max_position_embeddings = fields.integer("max_position_embeddings")
        vocab_size = fields.integer("vocab_size")
        # Qwen2 fixes its biases; Mistral has none.
        attention_bias = family in ("llama", "qwen3") and fields.flag("attention_bias", False)
        return cls(
            family=family,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads, maximum=num_heads),
            head_dim=_head_dim(fields, hidden_size, num_heads),
            max_position_embeddings=max_position_embeddings,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=read_rope(fields, max_position_embeddings),
            qkv_bias=attention_bias or family == "qwen2",
            output_bias=attention_bias,
            mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
            qk_norm=family == "qwen3",
            sliding_windows=_sliding_windows(fields, family, num_layers),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            dtype=_dtype(fields),
            eos_token_ids=_eos_token_ids(folder, fields, vocab_size),
        )


def _family(fields: Fields) -> str:
    family = fields.text("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"config.json: model_type is {shown(family)}; supported are {', '.join(map(repr, FAMILIES))}."
        )
    architectures = fields.texts("architectures")
    if architectures and ARCHITECTURES[family] not in architectures:
        raise UnsupportedModel(
            f"config.json: architectures is {shown(list(architectures))}; "
            f"supported for {family!r} is {ARCHITECTURES[family]!r}."
        )
    return family


def _refuse_unsupported(fields: Fields) -> None:
    for name, (meaning, harmless) in _REFUSED.items():
        if name in fields and fields.get(name) not in harmless:
            raise UnsupportedModel(
                f"config.json: {name} is {shown(fields.get(name))}, which means {meaning}; that is not supported. "
                "Supported are dense, unquantised text decoders."
            )
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"config.json: hidden_act is {shown(activation)}; supported is 'silu'.")


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if "head_dim" in fields:
        return fields.integer("head_dim")
    if hidden_size % num_heads:
        raise InvalidConfig(
            f"config.json: hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_heads}), "
            "or head_dim must be given."
        )
    return hidden_size // num_heads


def _sliding_windows(fields: Fields, family: str, num_layers: int) -> tuple[int | None, ...]:
    """Mistral: all layers. Qwen: `layer_types`, else the layers from `max_window_layers` on. Llama: none."""
    window = fields.integer("sliding_window") if "sliding_window" in fields else None
    if family.startswith("qwen") and not fields.flag("use_sliding_window", False):
        window = None
    if family == "llama" and window is not None:
        raise UnsupportedModel(f"config.json: sliding_window is {window}; a model of the family 'llama' has none.")
    # Mistral's layers all have the window, if there is one.
    first = fields.integer("max_window_layers", minimum=0) if family.startswith("qwen") else 0
    windows = tuple(window if layer >= first else None for layer in range(num_layers))
    layer_types = fields.texts("layer_types")
    if not layer_types:
        return windows
    unknown = [kind for kind in layer_types if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise UnsupportedModel(
            f"config.json: layer_types holds {shown(unknown[0])}; "
            "supported are 'full_attention' and 'sliding_attention'."
        )
    if len(layer_types) != num_layers:
        fields.fail("layer_types", f"a list of {num_layers} entries, one per layer (num_hidden_layers)")
    if "sliding_attention" in layer_types and window is None:
        fields.fail("sliding_window", "set (and use_sliding_window true), since layer_types has 'sliding_attention'")
    by_type = tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    if not family.startswith("qwen") and by_type != windows:
        raise UnsupportedModel(
            f"config.json: layer_types is {shown(list(layer_types))}; "
            f"the layers of the family {family!r} all have the same attention."
        )
    return by_type


def _dtype(fields: Fields) -> str | None:
    name = "dtype" if "dtype" in fields else "torch_dtype"
    if name not in fields:
        return None
    dtype = fields.text(name).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedModel(f"config.json: {name} is {shown(dtype)}; supported are {', '.join(map(repr, DTYPES))}.")
    return dtype


def _eos_token_ids(folder: Path, config: Fields, vocab_size: int) -> tuple[int, ...]:
    fields = config
    if (path := folder / "generation_config.json").exists():
        generation = read_fields(path)
        fields = generation if "eos_token_id" in generation else config
    value = fields.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            fields.fail("eos_token_id", f"a token id below vocab_size ({vocab_size}), or a list of such")
    return tuple(dict.fromkeys(ids))
