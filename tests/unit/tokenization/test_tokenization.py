from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_folders import CORPUS, KINDS, byte_fallback, byte_level, metaspace, qwen_like, words
from transformers import AutoTokenizer

from pipeline.tokenization import (
    ChatTemplateError,
    Detokenizer,
    Tokenizer,
    TokenizerError,
    pack_token_ids,
    unpack_token_ids,
)

TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "  two  spaces ",
    "\n\n\t tab",
    "e\u0301 and \u1112\u1161\u11ab (decomposed)",
    "🙂👩‍👩‍👧 ☃ \x00 nul",
    "<s> </s> <|im_start|>user<|im_end|><think>hm</think><tool>",
    "▁▁ literal metaspace <0x41>",
    "a" * 500,
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello!"}],
    [
        {"role": "user", "content": " “Hi” <&> ☃ "},
        {"role": "assistant", "content": "Yes?", "refusal": None},
        {"role": "user", "content": "Price, please: 価格\n", "name": "ann"},
    ],
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_texts_become_the_ids_that_transformers_gives(ours: Tokenizer, theirs: Any, add_special_tokens: bool) -> None:
    expected = [theirs.encode(text, add_special_tokens=add_special_tokens) for text in TEXTS]
    assert ours.encode_batch(TEXTS, add_special_tokens) == expected
    assert ours.encode(TEXTS[0], add_special_tokens) == expected[0]


@pytest.mark.parametrize("chat", CHATS)
def test_chats_become_the_prompt_that_transformers_gives(
    ours: Tokenizer, theirs: Any, chat: list[dict[str, Any]]
) -> None:
    prompt = ours.render_chat(chat)
    assert prompt == theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.encode(prompt, add_special_tokens=False) == ids


def test_an_answer_becomes_the_text_that_transformers_gives(ours: Tokenizer, theirs: Any) -> None:
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=True)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_any_tokens_become_the_text_that_transformers_gives(ours: Tokenizer, theirs: Any) -> None:
    rng = random.Random(0)
    unknown = len(theirs) + 5
    for length in [1, 2, 3, 5, 20] * 200:
        ids = [rng.randrange(len(theirs)) if rng.random() < 0.97 else unknown for _ in range(length)]
        expected = theirs.decode(ids, skip_special_tokens=True)
        text = ours.decode(ids)
        if "<0x41>" not in theirs.get_vocab() or "\ufffd" not in expected:
            assert text == expected


def test_words_without_a_decoder_are_read_and_written_as_transformers_does(tmp_path: Path) -> None:
    folder = words(tmp_path)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=True)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert [ours.token_text(i) for i in ids] == [theirs.decode(i) for i in ids]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_pieces_are_never_half_a_character(text: str) -> None:
    for tokenizer in _LOADED.values():
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.append(token_id) for token_id in tokenizer.encode(text, add_special_tokens=False)]
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
        assert detokenizer.flush() == ""


def test_an_unfinished_character_is_withheld_and_replaced_at_the_end(tmp_path: Path) -> None:
    for tokenizer in (Tokenizer.load(byte_level(tmp_path / "a")), Tokenizer.load(byte_fallback(tmp_path / "b"))):
        ids = [i for i in tokenizer.encode("x🙂", add_special_tokens=False) if tokenizer.token_bytes(i).strip()]
        detokenizer = Detokenizer(tokenizer)
        assert [detokenizer.append(i) for i in ids] == ["x", "", "", "", "🙂"]
        detokenizer = Detokenizer(tokenizer)
        assert [detokenizer.append(i) for i in ids[:-1]] == ["x", "", "", ""]
        assert detokenizer.flush() == "\ufffd"


def test_a_continuation_keeps_the_space_that_a_whole_text_loses(tmp_path: Path) -> None:
    for tokenizer in (Tokenizer.load(byte_fallback(tmp_path / "a")), Tokenizer.load(metaspace(tmp_path / "b"))):
        token_id = tokenizer.encode("the", add_special_tokens=False)[0]
        assert Detokenizer(tokenizer).append(token_id)[0] == "t"
        assert Detokenizer(tokenizer, is_continuation=True).append(token_id)[:2] == " t"


def test_bytes_of_tokens_make_up_the_text(ours: Tokenizer) -> None:
    text = "naïve 価格 🙂"
    joined = b"".join(ours.token_bytes(i) for i in ours.encode(text, add_special_tokens=False))
    assert joined.decode().strip() == text
    assert ours.token_bytes(10**6) == ours.token_bytes(-1) == b""
    assert ours.token_text(10**6) == ""


def test_no_text_has_fewer_tokens_than_its_bytes_allow(ours: Tokenizer) -> None:
    assert ours.max_token_bytes is not None
    for text in [*TEXTS, "\u1112\u1161\u11ab" * 50, "▁" * 50, " " * 50]:
        num_tokens = len(ours.encode(text, add_special_tokens=False))
        assert num_tokens * ours.max_token_bytes >= len(text.encode())


def test_a_tokenizer_that_drops_text_has_no_most_bytes(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    for change in (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"added_tokens": [{**token, "rstrip": True} for token in content["added_tokens"]]},
    ):
        (folder / "tokenizer.json").write_text(json.dumps(content | change))
        assert Tokenizer.load(folder).max_token_bytes is None


def test_a_text_far_beyond_the_limit_is_known_without_its_tokens(ours: Tokenizer) -> None:
    assert ours.surely_exceeds("x" * 1_000_000, 100)
    assert not ours.surely_exceeds("x" * 100, 100)
    assert not ours.surely_exceeds("the fox " * 100_000, 10**6)


def test_a_tokenizer_without_a_limit_still_knows_far_too_long_texts(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.max_token_bytes is None
    assert tokenizer.surely_exceeds("Zq" * 500_000, 1000)
    assert not tokenizer.surely_exceeds("Zq" * 500_000, 1_000_000)


def test_the_end_of_a_turn_ends_an_answer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(qwen_like(tmp_path))
    assert tokenizer.eos_token_ids == set(tokenizer.encode("<|im_end|>", add_special_tokens=False))


def test_the_network_alone_bounds_the_ids(tmp_path: Path) -> None:
    padded = Tokenizer.load(qwen_like(tmp_path / "padded"))
    assert padded.vocab_size > len(AutoTokenizer.from_pretrained(tmp_path / "padded"))
    assert padded.decode([padded.vocab_size - 1]) == ""
    assert Tokenizer.load(byte_level(tmp_path / "small", vocab_size=300)).vocab_size == 300


def test_the_named_template_default_is_used(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(folder).render_chat([]) == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(folder).render_chat([]) == "J"


def test_a_model_without_a_template_says_which_endpoint_to_use(tmp_path: Path) -> None:
    folder = metaspace(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match="/v1/completions"):
        Tokenizer.load(folder).render_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{", "tokenizer.json can't be read"),
        ("tokenizer.json", '{"model": {}}', "decoder|can't be read"),
        ("config.json", None, "config.json is missing"),
        ("config.json", "[]", "must hold a JSON object"),
        (
            "config.json",
            '{"vocab_size": 9}',
            "max_position_embeddings must be a positive integer up to 2147483647, not None",
        ),
        ("chat_template.jinja", "{% if %}", "chat template is wrong in line 1"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja can't be read"),
    ],
)
def test_a_broken_folder_is_refused_by_file_and_field(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    folder = byte_level(tmp_path)
    match content:
        case None:
            (folder / name).unlink()
        case bytes():
            (folder / name).write_bytes(content)
        case str():
            (folder / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(folder)


def test_an_unknown_decoder_is_refused_by_name(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="'WordPiece'"):
        Tokenizer.load(folder)


def test_the_order_of_packed_ids_is_the_order_of_ids() -> None:
    rows = [[], [0], [0, 5], [1], [255, 1], [256], [70_000, 2], [2**32 - 1]]
    packed = [pack_token_ids(row) for row in rows]
    assert packed == sorted(packed)
    assert [unpack_token_ids(row) for row in packed] == rows
    assert pack_token_ids([1]) == b"\0\0\0\1"


_LOADED: dict[str, Tokenizer] = {}


@pytest.fixture(scope="module", autouse=True)
def _load_all(tmp_path_factory: pytest.TempPathFactory) -> None:
    _LOADED.update({kind: Tokenizer.load(make(tmp_path_factory.mktemp(kind))) for kind, make in KINDS.items()})
