"""What each token id stands for in text, read from the vocabulary and the decoder of a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: How byte-level vocabularies write a byte that has no printable character of its own (GPT-2's table).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + position): byte
    for position, byte in enumerate(byte for byte in range(0x100) if byte not in set(_PRINTABLE))
}
BYTE_LEVEL_ALPHABET = frozenset(_BYTE_OF_CHAR)
#: Applied to every token of the vocabulary; real decoders replace one character by another.
_MAX_REPLACEMENT_CHARS = 64


class UnsupportedDecoderError(ValueError):
    """The decoder of tokenizer.json is of a kind that is not supported."""


@dataclass(frozen=True, kw_only=True)
class TokenDecoder:
    """The decoder of a tokenizer.json, for one token at a time: byte-level, metaspace with byte fallback, or none."""

    is_byte_level: bool = False
    has_byte_fallback: bool = False
    #: Replacements of text within a token, in order: `▁` by a space.
    replacements: tuple[tuple[str, str], ...] = ()
    #: A character of which the first token of a text loses every one: `▁` of the Metaspace decoder.
    first_token_drops: str = ""
    #: A character of which the text loses the first few.
    strip_char: str = ""
    num_strip_chars: int = 0
    #: Stands between two tokens: a space where there is no decoder, whose tokens are whole words.
    separator: str = ""

    @classmethod
    def from_json(cls, decoder: Mapping[str, Any] | None) -> TokenDecoder:
        """Of the object at `decoder`. Raises UnsupportedDecoderError, which names the part that is not known."""
        if decoder is None:
            return cls(separator=" ")
        known: dict[str, Any] = {"replacements": ()}
        is_fused = False
        for part in _flatten(decoder):
            match part:
                case {"type": "ByteLevel"}:
                    known["is_byte_level"] = True
                case {"type": "ByteFallback"}:
                    known["has_byte_fallback"] = True
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                    old and len(new) <= _MAX_REPLACEMENT_CHARS
                ):
                    known["replacements"] += ((old, new),)
                case {"type": "Metaspace", "replacement": str(mark)}:
                    known["replacements"] += ((mark, " "),)
                    if part.get("prepend_scheme", "always") != "never":
                        known["first_token_drops"] = mark
                case {"type": "Fuse"}:
                    is_fused = True
                case {"type": "Strip", "content": str(char), "start": int(start), "stop": 0} if is_fused:
                    known |= {"strip_char": char, "num_strip_chars": start}
                case _:
                    raise UnsupportedDecoderError(f"decoder {part.get('type')!r} of tokenizer.json is not supported")
        return cls(**known)

    def token_bytes(self, token: str) -> bytes:
        """UTF-8 bytes of a token in the middle of a text; a byte token may be part of a character."""
        if self.is_byte_level:
            try:
                return bytes([_BYTE_OF_CHAR[char] for char in token])
            except KeyError:  # An added token is written as it is.
                return token.encode()
        if self.has_byte_fallback and (byte := _fallback_byte(token)) is not None:
            return bytes([byte])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()

    def first_token_bytes(self, token: str) -> bytes:
        """The same for the first token of a text."""
        if self.first_token_drops:
            token = token.replace(self.first_token_drops, "")
        return self.token_bytes(token)


def _flatten(decoder: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if decoder.get("type") == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flatten(inner)]
    return [decoder]


def _fallback_byte(token: str) -> int | None:
    """`<0xE4>` is the byte 0xE4."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


def longest_token_bytes(tokenizer: Mapping[str, Any], decoder: TokenDecoder, tokens: Iterable[str]) -> int | None:
    """Most bytes of a text that one token can cover; None where a token can cover any number of them.

    `tokenizer` is the content of tokenizer.json. A text of B bytes has at least B / this many tokens, which only
    holds if nothing of the text is dropped or shortened on its way; whatever is not known to be so counts as not.
    """
    shrink = _most_shrinking(tokenizer.get("normalizer"))
    added = tokenizer.get("added_tokens", [])
    swallows = any(token.get("lstrip") or token.get("rstrip") for token in added)
    if shrink is None or swallows or not _keeps_text(tokenizer.get("pre_tokenizer")) or not _covers_text(tokenizer):
        return None
    # Byte-level: one character per byte. Else a `▁` of the text itself has all its bytes in the token as written.
    lengths = (len(decoder.token_bytes(token) if decoder.is_byte_level else token.encode()) for token in tokens)
    return shrink * max(lengths, default=1)


def _most_shrinking(normalizer: Mapping[str, Any] | None) -> int | None:
    match normalizer:
        case None | {"type": "Prepend"}:
            return 1
        case {"type": "NFC"}:
            return 3  # Three Hangul jamo of 3 bytes each become one syllable of 3 bytes.
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return 1 if len(new.encode()) >= len(old.encode()) else None
        case {"type": "Sequence", "normalizers": [*parts]}:
            shrink = 1
            for part in parts:
                factor = _most_shrinking(part)
                if factor is None:
                    return None
                shrink *= factor
            return shrink
        case _:
            return None


def _keeps_text(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    match pre_tokenizer:
        case None | {"type": "ByteLevel" | "Metaspace" | "Digits"}:
            return True
        case {"type": "Split", "behavior": str(behavior)}:
            return behavior != "Removed"
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return all(_keeps_text(part) for part in parts)
        case _:
            return False


def _covers_text(tokenizer: Mapping[str, Any]) -> bool:
    """Whether every text has tokens of its own, so that none is dropped or hidden in an unknown token."""
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE":
        return False
    vocabulary = model["vocab"]
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(0x100))
    return _is_byte_level(tokenizer.get("pre_tokenizer")) and all(char in vocabulary for char in BYTE_LEVEL_ALPHABET)


def _is_byte_level(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    match pre_tokenizer:
        case {"type": "ByteLevel"}:
            return True
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return any(_is_byte_level(part) for part in parts)
        case _:
            return False
