"""What the files of a model folder say about its tokenizer, read with the meaning that transformers gives to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers

from pipeline.errors import UserError
from pipeline.tokenization.chat_template import MAX_SOURCE_CHARS, ChatTemplate, ChatTemplateError
from pipeline.tokenization.limits import check_added_tokens, check_steps
from pipeline.tokenization.token_bytes import TokenDecoder, UnsupportedDecoderError, longest_token_bytes

#: No vocabulary comes near it; it keeps a wrong file from filling the memory.
MAX_FILE_BYTES: Final = 256 * 1024**2
#: Largest number that config.json may say, as the network's own reading of it has it.
MAX_INTEGER: Final = 2**31 - 1
#: Of a value in an error message.
_MAX_SHOWN_CHARS: Final = 200

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Of an added token.
_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerError(UserError):
    """The tokenizer of a model folder can't be used."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    #: Of tokenizer.json.
    path: Path
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

    path = folder / "tokenizer.json"
    with refused(path):
        check_steps(content)
        backend = tokenizers.Tokenizer.from_file(str(path))
        check_added_tokens(backend)
        decoder = TokenDecoder.from_json(content.get("decoder"))
        backend.no_truncation()
        backend.no_padding()
    with refused(folder / "tokenizer_config.json"):
        _add_tokens(backend, tokenizer_config, special_tokens)
    with refused(path):
        vocabulary = backend.get_vocab(with_added_tokens=True)
        max_token_bytes = longest_token_bytes(content, decoder, vocabulary)
    return TokenizerFiles(
        path=path,
        backend=backend,
        decoder=decoder,
        chat_template=_chat_template(folder, tokenizer_config, special_tokens),
        eos_token_ids=frozenset(
            vocabulary[token]
            for name, token in special_tokens.items()
            if name == "eos_token" and token in vocabulary  # an empty one is none
        ),
        context_length=_positive(folder, config, "max_position_embeddings"),
        num_network_tokens=_positive(folder, config, "vocab_size"),
        max_token_bytes=max_token_bytes,
    )


@contextmanager
def refused(path: Path, *, is_secret: bool = False) -> Iterator[None]:
    """Whatever goes wrong becomes a TokenizerError that names the file, and says why unless that may quote a prompt.

    The files are foreign, and their shapes the library's: it raises plain Exception for what it can't read, and what
    its native part did not foresee comes as an exception that is none.
    """
    try:
        yield
    except MemoryError:  # there may be more of it at another time
        raise
    except UnsupportedDecoderError as error:
        raise TokenizerError(f"{path.parent}: {error}.") from None
    except Exception as error:  # noqa: BLE001
        reason = type(error).__name__ if is_secret else _shown(error)
        raise TokenizerError(f"{path} can't be read: {reason}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{path} can't be read: the tokenizers library broke down over it.") from None


def _read_json(path: Path, is_optional: bool = False) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path} is no file, or larger than {MAX_FILE_BYTES} bytes.")
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
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_INTEGER:
        raise TokenizerError(
            f"{folder / 'config.json'}: {field} must be a positive integer up to {MAX_INTEGER}, not {_shown(value)}."
        )
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
    listed: dict[str, dict[str, Any]] = tokenizer_config.get("added_tokens_decoder") or {}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            # The library prints what it does not know, in the midst of our log.
            backend.add_tokens(
                [tokenizers.AddedToken(**{name: token[name] for name in _TOKEN_FIELDS if name in token})]
            )
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
        source = _read_template(path) if path.exists() else tokenizer_config.get("chat_template")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} can't be read: {error}") from None
    if isinstance(source, list):
        named = [template for template in source if isinstance(template, dict) and template.get("name") == "default"]
        source = named[0].get("template") if named else None
    if source is None:
        return None
    if not isinstance(source, str):
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: chat_template must be a text, or a list of them.")
    try:
        return ChatTemplate(source, special_tokens)
    except ChatTemplateError as error:
        raise TokenizerError(f"{folder}: {error}") from None


def _read_template(path: Path) -> str:
    """At most one character more than a template may have, so that the length can be refused."""
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_SOURCE_CHARS + 1)


def _shown(value: object) -> str:
    """For an error message, cut to a bearable length."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"
