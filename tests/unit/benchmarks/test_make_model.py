from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.make_model import find_model, make_tokenizer, write_model
from models.checkpoint import load_decoder
from models.config import ModelConfig
from pipeline.tokenization import Tokenizer

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 2_000,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def test_a_model_is_written_as_our_loader_and_tokenizer_read_it(tmp_path: Path) -> None:
    write_model(tmp_path, SHAPE)
    config = ModelConfig.from_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, config)
    assert config.vocab_size == 2_000
    assert decoder.head.weight.std().item() == pytest.approx(0.04, rel=0.05)
    assert Tokenizer.load(tmp_path).eos_token_ids == {2_000 - 16}


def test_the_same_shape_gives_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        write_model(folder, SHAPE)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("vocab_size", [300, 32_000])
def test_a_tokenizer_has_exactly_as_many_entries_and_gives_back_its_texts(vocab_size: int) -> None:
    tokenizer = make_tokenizer(vocab_size)
    assert tokenizer.get_vocab_size() == vocab_size
    assert tokenizer.decode(tokenizer.encode("Wörter, and 17 more.").ids) == "Wörter, and 17 more."


def test_a_model_that_is_there_is_found_and_not_made_again(tmp_path: Path) -> None:
    there = tmp_path / "llama-110m"
    there.mkdir()
    (there / "config.json").write_text(json.dumps(SHAPE))
    assert find_model("llama-110m", tmp_path) == there
    assert [path.name for path in there.iterdir()] == ["config.json"]


def test_an_unknown_model_is_refused_with_the_names_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'llama-7b'.*llama-110m"):
        find_model("llama-7b", tmp_path)
