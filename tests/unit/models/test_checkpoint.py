from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_decoder, read_config, write_checkpoint
from safetensors.torch import save_file

from models.checkpoint import checkpoint_tensors, load_decoder, resolve_dtype
from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import CheckpointError, UnsupportedModel
from models.layers.attention import CausalAttention

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def write_two_files(folder: Path) -> tuple[ModelConfig, dict[str, str]]:
    """A checkpoint over two files and its index; returns the weight map too."""
    config, tensors = write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for file, part in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return config, weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refusal(folder: Path, config: ModelConfig) -> str:
    with pytest.raises(CheckpointError) as error:
        load_decoder(folder, config)
    return str(error.value)


def logits(decoder: Decoder) -> torch.Tensor:
    positions = torch.arange(7)
    return decoder.logits(decoder(positions, positions, CausalAttention(1, 7)))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_what_was_written_is_read_again(changes: dict[str, Any], tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path, **changes)
    decoder = load_decoder(tmp_path, config)
    again = checkpoint_tensors(decoder)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    torch.testing.assert_close(logits(decoder), logits(random_decoder(config)))


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    config, _ = write_two_files(tmp_path)
    torch.testing.assert_close(logits(load_decoder(tmp_path, config)), logits(random_decoder(config)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path)
    del tensors[DOWN]
    save(tmp_path, tensors)
    assert f"{DOWN} is missing from model.safetensors" in refusal(tmp_path, config)


def test_a_wrong_shape_is_named_with_the_expected_one(tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path)
    save(tmp_path, tensors | {DOWN: torch.zeros(8, 13)})
    message = refusal(tmp_path, config)
    assert f"{DOWN} in model.safetensors has the shape [8, 13], but config.json asks for [8, 12]" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float64])
def test_quantised_weights_are_refused_by_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path)
    save(tmp_path, tensors | {DOWN: tensors[DOWN].to(dtype)})
    message = refusal(tmp_path, config)
    assert DOWN in message
    assert "supported are F32, BF16 and F16" in message


@pytest.mark.parametrize("kept", [0, 4, 100, 2000])
def test_a_truncated_file_is_named(kept: int, tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    assert kept < path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is truncated or no safetensors file" in refusal(tmp_path, config)


def test_a_bad_header_is_named(tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 8 + b"not a header at all" * 100)
    assert "is truncated or no safetensors file" in refusal(tmp_path, config)


def test_a_message_about_a_long_name_is_bearable(tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path)
    save(tmp_path, tensors | {"x" * 100_000: torch.zeros(8)})
    message = refusal(tmp_path, config)
    assert len(message) < 1000
    assert message.startswith("The checkpoint holds the tensor xxx")
    assert message.endswith("num_hidden_layers and tie_word_embeddings.")


def test_a_tensor_that_no_layer_uses_is_refused(tmp_path: Path) -> None:
    """It may be part of the mathematics, such as a bias that config.json does not mention."""
    config, tensors = write_checkpoint(tmp_path)
    save(tmp_path, tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(8)})
    assert "model.layers.0.self_attn.q_proj.bias, which no model of this config.json has" in refusal(tmp_path, config)


def test_rotary_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path)
    save(tmp_path, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)})
    load_decoder(tmp_path, config)


def test_tied_weights_may_be_under_either_name_or_both(tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path, tie_word_embeddings=True)
    expected = logits(random_decoder(config))
    both = tensors | {"lm_head.weight": tensors[EMBEDDING].clone()}
    for stored in (both, {name: tensor for name, tensor in both.items() if name != EMBEDDING}):
        save(tmp_path, stored)
        torch.testing.assert_close(logits(load_decoder(tmp_path, config)), expected)
    save(tmp_path, tensors | {"lm_head.weight": tensors[EMBEDDING] + 1})
    assert "tie_word_embeddings true, but" in refusal(tmp_path, config)


def test_an_untied_head_is_never_taken_from_the_embedding(tmp_path: Path) -> None:
    config, tensors = write_checkpoint(tmp_path)
    for name in (EMBEDDING, "lm_head.weight"):
        save(tmp_path, {other: tensor for other, tensor in tensors.items() if other != name})
        assert f"{name} is missing" in refusal(tmp_path, config)


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path: Path) -> None:
    message = refusal(tmp_path, read_config(tmp_path))
    assert "holds neither model.safetensors nor model.safetensors.index.json" in message


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    config = read_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = refusal(tmp_path, config)
    assert "pytorch_model.bin, a pickle" in message
    assert "Convert it to safetensors" in message


def test_a_file_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    config, _ = write_two_files(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert "b.safetensors is missing; the checkpoint is incomplete" in refusal(tmp_path, config)


def test_a_tensor_must_be_in_the_file_that_the_index_names(tmp_path: Path) -> None:
    config, weight_map = write_two_files(tmp_path)
    write_index(tmp_path, weight_map | {DOWN: "a.safetensors"})
    assert f"says that tensor {DOWN} is in a.safetensors, but it is not" in refusal(tmp_path, config)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "sub/b.safetensors", "b.bin", 7])
def test_an_index_can_not_lead_out_of_its_folder(file: Any, tmp_path: Path) -> None:
    config, weight_map = write_two_files(tmp_path)
    write_index(tmp_path, weight_map | {DOWN: file})
    assert "is not a safetensors file of this folder" in refusal(tmp_path, config)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(content: str, tmp_path: Path) -> None:
    config, _ = write_two_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(tmp_path, config)


def test_one_file_wins_over_an_index(tmp_path: Path) -> None:
    config, _ = write_two_files(tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    write_checkpoint(whole)
    shutil.copy(whole / "model.safetensors", tmp_path)
    (tmp_path / "a.safetensors").unlink()
    load_decoder(tmp_path, config)


def test_auto_is_float32_on_a_cpu_and_the_type_of_the_checkpoint_elsewhere(tmp_path: Path) -> None:
    half, brain, unsaid = (read_config(tmp_path, dtype=dtype) for dtype in ("float16", "bfloat16", None))
    assert {resolve_dtype("auto", config, "cpu") for config in (half, brain, unsaid)} == {torch.float32}
    assert resolve_dtype("auto", half, "cuda:0") is torch.float16
    assert resolve_dtype("auto", brain, "cuda:0") is torch.bfloat16
    assert resolve_dtype("auto", unsaid, "cuda:0") is torch.float32
    assert resolve_dtype("bfloat16", half, "cpu") is torch.bfloat16
    with pytest.raises(UnsupportedModel, match="dtype is 'int8'; supported are 'auto', 'float32'"):
        resolve_dtype("int8", half, "cpu")


def test_weights_are_read_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    decoder = load_decoder(tmp_path, config, dtype="bfloat16")
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    result = logits(decoder)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, logits(random_decoder(config)), rtol=0.05, atol=0.05)
