"""Files of a tokenizer that are broken, or made to break whoever reads them."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import byte_fallback, byte_level, words

from pipeline.tokenization import Tokenizer, TokenizerError


def edit(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": "a"}},
        {"added_tokens_decoder": {"1": {}}},
        {"added_tokens_decoder": {"1": {"content": 7}}},
        {"added_tokens_decoder": {"1": {"content": "new", "special": "red"}}},
        {"extra_special_tokens": 3},
        {"eos_token": "\ud800"},
        {"chat_template": 7},
        {"chat_template": {"default": "x"}},
        {"chat_template": [{"name": "default", "template": 7}]},
    ],
)
def test_a_broken_tokenizer_config_is_refused_by_name(changes: dict[str, Any], tmp_path: Path) -> None:
    assert "tokenizer_config.json" in refusal(edit(byte_level(tmp_path), "tokenizer_config.json", **changes))


@pytest.mark.parametrize("templates", [[], [7], [{"name": ["default"]}], [{"template": "x"}]])
def test_a_list_without_a_default_template_is_none(templates: list[Any], tmp_path: Path) -> None:
    Tokenizer.load(edit(byte_level(tmp_path), "tokenizer_config.json", chat_template=templates))


def test_what_is_not_known_of_a_token_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Old files call it `__type`; the library would write so into our log."""
    token = {"content": "<new>", "special": True, "__type": "AddedToken"}
    tokenizer = Tokenizer.load(edit(byte_level(tmp_path), "tokenizer_config.json", added_tokens_decoder={"900": token}))
    assert len(tokenizer.encode("<new>", add_special_tokens=False)) == 1
    assert capfd.readouterr().out == ""


def test_an_empty_end_token_ends_nothing(tmp_path: Path) -> None:
    assert Tokenizer.load(edit(byte_level(tmp_path), "tokenizer_config.json", eos_token="")).eos_token_ids == set()


@pytest.mark.parametrize("value", [True, 0, -1, 2**31, 10**30, 1.5, "9", None, [9]])
@pytest.mark.parametrize("field", ["vocab_size", "max_position_embeddings"])
def test_a_size_that_no_network_has_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    message = refusal(edit(byte_level(tmp_path), "config.json", **{field: value}))
    assert f"{field} must be a positive integer up to {2**31 - 1}, not {value!r}" in message


def test_a_gap_in_the_vocabulary_costs_no_memory(tmp_path: Path) -> None:
    folder = words(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 2**32 - 2
    tokenizer = Tokenizer.load(edit(folder, "tokenizer.json", model=content["model"]))
    assert tokenizer.token_bytes(2**32 - 2) == b"far"
    assert tokenizer.token_bytes(2**32 - 3) == b""


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 100_000},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "b"}] * 1000},
    ],
    ids=["empty", "long", "many"],
)
def test_a_decoder_that_multiplies_text_is_refused(decoder: dict[str, Any], tmp_path: Path) -> None:
    assert "decoder" in refusal(edit(byte_fallback(tmp_path), "tokenizer.json", decoder=decoder))


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 40}}, "1099511627776 times as long"),
        ({"normalizer": {**DOUBLING, "pattern": {"String": ""}}}, "times as long"),
        ({"normalizer": {**DOUBLING, "pattern": {"Regex": ""}, "content": "x" * 100}}, "101 times as long"),
        (
            {
                "normalizer": {
                    "type": "Precompiled",
                    "precompiled_charsmap": b64encode(b"\xff\xff\xff\xffaaaa").decode(),
                }
            },
            "shorter than it says",
        ),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "broke down over it"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}}, "normalizer has 65 steps"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 65}},
            "pre_tokenizer has 65 steps",
        ),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "z", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {"z": {"id": "z", "ids": [0] * 65, "tokens": ["z"] * 65}},
                }
            },
            "65 tokens around each text",
        ),
    ],
)
def test_what_the_library_would_not_survive_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(edit(byte_level(tmp_path), "tokenizer.json", **changes))


def test_a_regular_expression_that_never_ends_is_an_error(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.load(edit(byte_level(tmp_path), "tokenizer.json", pre_tokenizer=split))
    with pytest.raises(TokenizerError, match="broke down over it"):
        tokenizer.encode("a" * 3000 + "!", add_special_tokens=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_what_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} is no file" in refusal(folder)


def test_a_file_that_breaks_while_encoding_is_an_error_without_the_text(tmp_path: Path) -> None:
    folder = words(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    model = {**content["model"], "unk_token": "nowhere"}
    tokenizer = Tokenizer.load(edit(folder, "tokenizer.json", model=model))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json can't be read") as caught:
        tokenizer.encode("a secret text", add_special_tokens=False)
    assert "secret" not in str(caught.value)
