"""What the files of a model folder say about its tokenizer, read with the meaning that transformers gives to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers

from pipeline.errors import UserError
from pipeline.tokenization.chat_template import ChatTemplate, ChatTemplateError
from pipeline.tokenization.token_bytes import TokenDecoder, UnsupportedDecoderError, longest_token_bytes

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(UserError):
    """The tokenizer of a model folder can't be read."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    backend: tokenizers.Tokenizer
    decoder: TokenDecoder
    #: None where the model has none.
    chat_template: ChatTemplate | None
    #: The tokenizer's own, with which a turn of a chat ends; the network's configuration may name others.
    eos_token_ids: frozenset[int]
    #: Positions of the network.
    context_length: int
    #: Rows of its embedding.
    num_network_tokens: int
    #: `longest_token_bytes`.
    max_token_bytes: int | None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, config.json, and, where they are there, tokenizer_config.json, special_tokens_map.json and
    chat_template.jinja. Raises TokenizerError.
    """
    content = _read_json(folder / "tokenizer.json")
    config = _read_json(folder / "config.json")
    # Older folders keep the names of special tokens in a file of their own.
    tokenizer_config = {
        **_read_json(folder / "special_tokens_map.json", is_optional=True),
        **_read_json(folder / "tokenizer_config.json", is_optional=True),
    }
    special_tokens = _special_tokens(tokenizer_config)

    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        decoder = TokenDecoder.from_json(content.get("decoder"))
    except UnsupportedDecoderError as error:
        raise TokenizerError(f"{folder}: {error}.") from None
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for a file that it can't read
        raise TokenizerError(f"{folder / 'tokenizer.json'} can't be read: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    _add_tokens(backend, tokenizer_config, special_tokens)

    vocabulary = backend.get_vocab(with_added_tokens=True)
    return TokenizerFiles(
        backend=backend,
        decoder=decoder,
        chat_template=_chat_template(folder, tokenizer_config, special_tokens),
        eos_token_ids=frozenset(vocabulary[token] for name, token in special_tokens.items() if name == "eos_token"),
        context_length=_positive(folder, config, "max_position_embeddings"),
        num_network_tokens=_positive(folder, config, "vocab_size"),
        max_token_bytes=longest_token_bytes(content, decoder, vocabulary),
    )


def _read_json(path: Path, is_optional: bool = False) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_optional:
            return {}
        raise TokenizerError(f"{path} is missing; a model folder in the Hugging Face layout has it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object.")
    return content


def _positive(folder: Path, config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or value <= 0:
        raise TokenizerError(f"{folder / 'config.json'}: {field} must be a positive integer, not {value!r}.")
    return value


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Names to tokens, each written as text or as an object with its `content`."""
    extra = tokenizer_config.get("extra_special_tokens")
    named = {name: tokenizer_config.get(name) for name in _NAMED_TOKENS} | (extra if isinstance(extra, dict) else {})
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _add_tokens(
    backend: tokenizers.Tokenizer, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Tokens that tokenizer_config.json knows and tokenizer.json does not, as transformers adds them."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = cast(dict[str, dict[str, Any]], tokenizer_config.get("added_tokens_decoder", {}))
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            backend.add_tokens([tokenizers.AddedToken(**token)])
            known.add(token["content"])
    extra = tokenizer_config.get("extra_special_tokens", tokenizer_config.get("additional_special_tokens"))
    texts = [token.get("content") if isinstance(token, dict) else token for token in extra or []]
    missing = [text for text in (*special_tokens.values(), *texts) if isinstance(text, str) and text not in known]
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in missing])


def _chat_template(
    folder: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """chat_template.jinja, else the template (of several, the one named `default`) in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    try:
        source = path.read_text(encoding="utf-8") if path.exists() else tokenizer_config.get("chat_template")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} can't be read: {error}") from None
    if isinstance(source, list):
        source = {template["name"]: template["template"] for template in source}.get("default")
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens)
    except ChatTemplateError as error:
        raise TokenizerError(f"{folder}: {error}") from None
