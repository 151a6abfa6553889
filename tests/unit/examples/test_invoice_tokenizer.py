from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer

from examples.invoices.generate import Side, examples
from examples.invoices.tokenizer import (
    END,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    render_prompt,
    save_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    training = islice(examples(Side.TRAINING, seed=0), 2000)
    save_tokenizer(train_tokenizer(text for e in training for text in (e.sentence, e.invoice.answer)), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_no_entry_holds_a_digit_beside_anything_else(tokenizer: Tokenizer) -> None:
    with_digits = [entry for entry in tokenizer.get_vocab() if any(char in "0123456789" for char in entry)]

    assert sorted(with_digits) == list("0123456789")


def test_the_vocabulary_has_512_entries_special_tokens_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCAB_SIZE == 512
    assert [tokenizer.id_to_token(index) for index in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)


@pytest.mark.parametrize("text", ["  two  spaces ", "zł 1 234,50", "Bjørk & Wójcik", "日本 ¥5 🙂", "a\nb\tc", "'1'"])
def test_any_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_transformers_reads_the_same_tokens_and_template(folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))

    assert theirs.eos_token == END
    for example in islice(examples(Side.HELD_OUT, seed=0), 50):
        conversation = [{"role": "user", "content": example.sentence}]
        rendered = theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert rendered == render_prompt(example.sentence)
        assert theirs.encode(rendered, add_special_tokens=True) == tokenizer.encode(rendered).ids


def test_the_template_refuses_a_role_that_the_model_never_saw(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))

    with pytest.raises(TemplateError, match="not tool"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_files_need_no_code_of_ours(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())

    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in config
