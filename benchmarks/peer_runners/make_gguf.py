"""Writes a GGUF file with the bfloat16 weights of a model folder; llama.cpp's environment's Python runs this.

python make_gguf.py FOLDER FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main() -> None:
    folder, path = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, config["model_type"])
    write_fields(writer, config)
    for name, bits in read_bfloat16(folder / "model.safetensors"):
        write_tensor(writer, config, name, bits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def write_fields(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")  # prompts come as token ids


def write_tensor(writer: gguf.GGUFWriter, config: dict[str, Any], name: str, bits: NDArray[np.uint16]) -> None:
    if config["model_type"] == "llama" and ".q_proj." in name:
        bits = interleave(bits, config["num_attention_heads"])
    if config["model_type"] == "llama" and ".k_proj." in name:
        bits = interleave(bits, config["num_key_value_heads"])
    if bits.ndim == 1:  # llama.cpp wants norms in float32
        writer.add_tensor(gguf_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
    else:
        writer.add_tensor(gguf_name(name), bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)


def interleave(bits: NDArray[np.uint16], num_heads: int) -> NDArray[np.uint16]:
    """Of the llama family, llama.cpp rotates neighbours where Hugging Face rotates halves of a head."""
    rows, columns = bits.shape
    halves = bits.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def read_bfloat16(path: Path) -> list[tuple[str, NDArray[np.uint16]]]:
    """NumPy has no bfloat16: its bits."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
    tensors = []
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
        begin, end = entry["data_offsets"]
        tensors.append((name, data[begin:end].view(np.uint16).reshape(entry["shape"])))
    return tensors


if __name__ == "__main__":
    main()
