from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import LLAMA, read_config, write_config

from models.config import ModelConfig
from models.errors import InvalidConfig, UnsupportedModel
from models.rope import RopeType

QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 8}
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ({"model_type": "x" * 10_000}, "model_type is 'xxx"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config is {'quant",
        ),
        ({"num_experts": 8}, "num_experts is 8"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"vision_config": {}}, "vision_config is {}"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_parameters.rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling.rope_type is 'su'"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]}}, "rope_scaling.mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({**QWEN3, "layer_types": ["linear_attention", "full_attention"]}, "layer_types holds 'linear_attention'"),
        ({**MISTRAL, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'"),
    ],
)
def test_what_is_not_built_is_refused_by_the_name_of_its_field(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        read_config(tmp_path, **changes)
    assert field in str(refusal.value)
    assert "supported" in str(refusal.value) or "has none" in str(refusal.value) or "the same" in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type must be a text, but it is missing"),
        ({"model_type": 7}, "model_type must be a text, but it is 7"),
        ({"vocab_size": None}, "vocab_size must be a whole number from 1 to 2147483647, but it is missing"),
        ({"vocab_size": "11"}, "vocab_size must be a whole number from 1 to 2147483647, but it is '11'"),
        ({"hidden_size": 8.0}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"intermediate_size": -1}, "intermediate_size must be a whole number"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers must be a whole number from 1 to 4096"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ({"num_attention_heads": 3}, "hidden_size (8) must be a multiple of num_attention_heads (3)"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "must be a multiple of num_key_value_heads (3)"),
        ({"num_key_value_heads": 4}, "num_key_value_heads must be a whole number from 1 to 2"),
        ({"head_dim": 3}, "head_dim must be even to be rotated, but it is 3"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be above 0, but it is 0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number no larger than 1e+12"),
        ({"rms_norm_eps": [1e-6]}, "rms_norm_eps must be a number no larger than 1e+12"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, but it is 'yes'"),
        ({"attention_bias": 1}, "attention_bias must be true or false, but it is 1"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of texts"),
        ({"rope_theta": -1.0}, "rope_theta must be above 0"),
        ({"rope_theta": 1.0}, "rope_theta must be other than 1"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object, but it is [1]"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor must be a number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor must be at least 1, but it is 0.5"),
        ({"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, "high_freq_factor must be above low_freq"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim must be above 2"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate must be true or false"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor must be a number"),
        ({**QWEN3, "layer_types": ["full_attention"]}, "layer_types must be a list of 2 entries"),
        ({**QWEN3, "layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, "sliding_window must be set"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window must be a whole number"),
        ({"eos_token_id": 11}, "eos_token_id must be a token id below vocab_size (11)"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id must be a token id"),
    ],
)
def test_a_broken_field_is_named_with_its_value(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        read_config(tmp_path, **changes)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"rms_norm_eps": NaN}', "not valid JSON: NaN is not a number"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b" " * (16 * 1024**2 + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidConfig) as refusal:
        ModelConfig.from_pretrained(tmp_path)
    assert message in str(refusal.value)


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.json is missing; the folder must be a Hugging Face checkpoint"):
        ModelConfig.from_pretrained(tmp_path)


def test_what_a_file_leaves_out_is_what_transformers_assumes(tmp_path: Path) -> None:
    bare = {name: None for name in LLAMA if name in ("num_key_value_heads", "rms_norm_eps", "dtype", "eos_token_id")}
    llama = read_config(tmp_path, **bare)
    assert (llama.num_kv_heads, llama.rms_norm_eps, llama.rope.theta) == (2, 1e-6, 10_000.0)
    assert (llama.dtype, llama.eos_token_ids, llama.tie_word_embeddings) == (None, (), False)

    assert read_config(tmp_path, **MISTRAL).sliding_windows == (4096, 4096)
    assert read_config(tmp_path, **MISTRAL, sliding_window=None).sliding_windows == (None, None)
    assert read_config(tmp_path, **{**QWEN3, "head_dim": None}).head_dim == 4
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"head_dim": null', '"x": 0'))
    assert ModelConfig.from_pretrained(tmp_path).head_dim == 128


def test_biases_and_norms_follow_the_family(tmp_path: Path) -> None:
    llama = read_config(tmp_path, attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias, llama.qk_norm) == (True, True, True, False)
    mistral = read_config(tmp_path, **MISTRAL)
    assert (mistral.qkv_bias, mistral.output_bias, mistral.mlp_bias, mistral.qk_norm) == (False,) * 4
    qwen2 = read_config(tmp_path, **QWEN2)
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias, qwen2.qk_norm) == (True, False, False, False)
    qwen3 = read_config(tmp_path, **QWEN3, attention_bias=True)
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.mlp_bias, qwen3.qk_norm) == (True, True, False, True)


def test_the_window_of_qwen_begins_at_max_window_layers_unless_layer_types_say_otherwise(tmp_path: Path) -> None:
    window = {**QWEN2, "sliding_window": 4, "max_window_layers": 1}
    assert read_config(tmp_path, **window).sliding_windows == (None, None)
    assert read_config(tmp_path, **window, use_sliding_window=True).sliding_windows == (None, 4)
    types = ["sliding_attention", "full_attention"]
    assert read_config(tmp_path, **window, use_sliding_window=True, layer_types=types).sliding_windows == (4, None)


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 32),
        ({"rope_type": "default"}, 32),
        ({"rope_type": "linear", "factor": 4.0}, 128),
        ({"rope_type": "dynamic", "factor": 2.5}, 80),
        ({**LLAMA3_ROPE, "original_max_position_embeddings": 8}, 32),
        ({"rope_type": "yarn", "factor": 4.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 32),
        ({"rope_type": "yarn", "original_max_position_embeddings": 8}, 32),
    ],
)
def test_the_context_is_what_the_rope_was_stretched_to(
    scaling: dict[str, Any] | None, length: int, tmp_path: Path
) -> None:
    assert read_config(tmp_path, rope_parameters=scaling).context_length == length


def test_a_prefix_is_shared_unless_a_dynamic_rope_turns_it_by_the_length_of_its_prompt(tmp_path: Path) -> None:
    plain = read_config(tmp_path)
    dynamic = read_config(tmp_path, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    assert dynamic.rope.type is RopeType.DYNAMIC
    assert {plain.prefix_salt(n) for n in (1, 32, 33, 60)} == {""}
    assert dynamic.prefix_salt(32) == ""
    assert len({dynamic.prefix_salt(n) for n in (32, 33, 34)}) == 3


def test_the_end_of_sequence_is_that_of_generation_config_where_it_names_one(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=[2, 3])
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (2, 3)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (2, 3)
    (tmp_path / "generation_config.json").write_text("no JSON")
    with pytest.raises(InvalidConfig, match=r"generation_config\.json is not valid JSON"):
        ModelConfig.from_pretrained(tmp_path)
