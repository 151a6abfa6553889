from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tokenizer_folders import byte_level

from pipeline.errors import UserError
from pipeline.jobs.recounting import prompts_of
from pipeline.settings import Settings
from pipeline.tokenization import Tokenizer, pack_token_ids

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def line(custom_id: str, url: str, **body: object) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "tiny", **body}})


def test_prompts_are_those_that_intake_makes_and_bad_lines_have_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level(tmp_path / "tiny"))
    messages = [{"role": "user", "content": "The fox"}]
    lines = [
        line("chat", CHAT, messages=messages),
        "",
        line("text", TEXT, prompt="The fox"),
        line("ids", TEXT, prompt=[5, 6, 7]),
        line("bad", TEXT, prompt=17),
        "{",
        line("again", CHAT, messages=messages),
    ]

    prompts = prompts_of(io.BytesIO("\n".join(lines).encode()), tokenizer, Settings())

    chat = pack_token_ids(tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False))
    assert prompts == {
        "chat": chat,
        "text": pack_token_ids(tokenizer.encode("The fox", add_special_tokens=True)),
        "ids": pack_token_ids([5, 6, 7]),
        "again": chat,
    }


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level(tmp_path / "tiny"))
    with pytest.raises(UserError, match="UTF-16"):
        prompts_of(io.BytesIO("{}".encode("utf-16")), tokenizer, Settings())
