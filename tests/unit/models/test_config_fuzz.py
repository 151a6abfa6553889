from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from checkpoint_files import LLAMA
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import FAMILIES, ModelConfig
from models.errors import ModelError
from models.layers.rotary import Rotary

FIELDS = sorted(
    LLAMA.keys()
    | {
        "attention_bias",
        "generation",
        "head_dim",
        "hidden_act",
        "layer_types",
        "max_window_layers",
        "mlp_bias",
        "num_experts",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "quantization_config",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "use_sliding_window",
    }
)
ROPE_KEYS = ["rope_type", "type", "factor", "rope_theta", "beta_fast", "mscale", "low_freq_factor", "high_freq_factor"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "float32", "full_attention"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(ROPE_KEYS), SCALARS, max_size=8)


@settings(max_examples=400, deadline=None)
@given(family=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_whatever_a_file_says_it_is_read_or_refused_by_an_error_of_ours(family: str, changes: dict[str, Any]) -> None:
    written = {name: value for name, value in LLAMA.items() if name != "architectures"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**written, "model_type": family, **changes}))
        try:
            config = ModelConfig.from_pretrained(Path(folder))
        except ModelError:
            return
    assert config.context_length >= 1
    assert len(config.sliding_windows) == config.num_layers
    assert config.num_heads % config.num_kv_heads == 0
    if config.head_dim <= 64:
        rotary = Rotary(config.rope, config.head_dim, config.max_position_embeddings, device="cpu")
        assert rotary.inverse_frequencies.shape == (config.head_dim // 2,)
