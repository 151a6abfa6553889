"""The tokenizer of a model folder in the Hugging Face layout: text to token ids, and token ids to text.

Needs neither torch nor transformers, and agrees with transformers on every id.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from sys import byteorder
from typing import Any

from pipeline.tokenization.chat_template import ChatTemplate, ChatTemplateError
from pipeline.tokenization.files import TokenizerFiles, read_tokenizer_files, refused

#: Pieces in which a long text is looked at.
_PIECE_CHARS = 128 * 1024
#: More than any tokenizer gains by seeing both sides of a cut.
_MOST_TOKENS_OF_A_CUT = 1024


class Tokenizer:
    """Immutable after `load`, and thread-safe."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._path = files.path
        self._backend = files.backend
        self._chat_template = files.chat_template
        self._decoder = files.decoder
        #: Tokens that end an answer, beside those of the network's configuration.
        self.eos_token_ids = files.eos_token_ids
        #: Longest prompt + answer that the network was made for, in tokens.
        self.context_length = files.context_length
        #: Most bytes of a text that one token covers: B bytes are at least B / max_token_bytes tokens. None: no limit.
        self.max_token_bytes = files.max_token_bytes
        #: Tokens that are never part of an answer's text.
        self.special_token_ids = frozenset(
            token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special
        )
        self._tokens = {token_id: token for token, token_id in self._backend.get_vocab(with_added_tokens=True).items()}
        # By id. A mapping, since a vocabulary can have gaps of any size.
        self._bytes = {token_id: self._decoder.token_bytes(token) for token_id, token in self._tokens.items()}
        #: Ids below this are known to the network. It is often padded past the tokenizer, and may generate such ids.
        self.vocab_size = files.num_network_tokens

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Of a model folder. Raises TokenizerError, which names the file and the field."""
        files = read_tokenizer_files(folder)
        with refused(files.path):
            return cls(files)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text. `add_special_tokens` puts those of the model around it, such as a first `<s>`."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """The same for many texts, on all cores. Raises TokenizerError where the files turn out to be unusable."""
        with refused(self._path, is_secret=True):
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def surely_exceeds(self, text: str, max_tokens: int) -> bool:
        """Whether a text has more than `max_tokens` tokens, as far as little memory is enough to see it.

        The library spends some 200 bytes on each token, so that a few megabytes of text can cost a gigabyte. A text
        for which this is False has hardly more than `max_tokens`, or is short.
        """
        if self.max_token_bytes is not None and len(text.encode()) > max_tokens * self.max_token_bytes:
            return True
        if len(text) <= _PIECE_CHARS:
            return False
        num_tokens = 0
        for start in range(0, len(text), _PIECE_CHARS):
            num_tokens += len(self.encode(text[start : start + _PIECE_CHARS], add_special_tokens=False))
            # A cut can only change the tokens of the word that it goes through.
            num_tokens -= _MOST_TOKENS_OF_A_CUT
            if num_tokens > max_tokens:
                return True
        return False

    def render_chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt of a conversation, to be encoded without adding special tokens. Raises ChatTemplateError."""
        return self._template.render(messages)

    def render_chats(self, chats: Sequence[Sequence[dict[str, Any]]]) -> Generator[str | ChatTemplateError]:
        """The same for many, in less time: the prompt of each, or why it has none. Raises ChatTemplateError where there
        is no template at all.
        """
        return self._template.render_many(chats)

    @property
    def _template(self) -> ChatTemplate:
        if self._chat_template is None:
            raise ChatTemplateError("The model has no chat template; use /v1/completions.")
        return self._chat_template

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of an answer, without special tokens."""
        detokenizer = Detokenizer(self)
        return detokenizer.extend(token_ids) + detokenizer.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token, which may be part of a character; empty where only the network knows the id."""
        return self._bytes.get(token_id, b"")

    def token_text(self, token_id: int) -> str:
        """The text of one token; replacement characters stand for bytes that are no whole character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def has_text(self, token_id: int) -> bool:
        """Whether a token shows in an answer; special tokens do not, nor do ids that only the network knows."""
        return token_id in self._tokens and token_id not in self.special_token_ids

    def first_token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that begins a text; some decoders drop the space in front of it."""
        if not self._decoder.first_token_drops:
            return self.token_bytes(token_id)
        return self._decoder.first_token_bytes(self._tokens.get(token_id, ""))

    @property
    def first_strip(self) -> tuple[str, int]:
        """The character of which a text loses the first few, and how many of them."""
        return self._decoder.strip_char, self._decoder.num_strip_chars

    @property
    def separator(self) -> bytes:
        """What stands between two tokens of a text."""
        return self._decoder.separator.encode()


class Detokenizer:
    """The text of one answer as its tokens come, special tokens left out; never half a character.

    All pieces together equal the text of all tokens. The one exception is for byte tokens beside a metaspace
    vocabulary: where a run of them is not UTF-8, its whole characters are kept here, while transformers drops them.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_continuation: bool = False) -> None:
        """`is_continuation` keeps the space that some decoders strip from the beginning of a text."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_first = not is_continuation
        self._separator = b""
        self._strip_char, self._num_strip_chars = ("", 0) if is_continuation else tokenizer.first_strip

    def append(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        return self.extend((token_id,))

    def extend(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        tokenizer, separator = self._tokenizer, self._tokenizer.separator
        data: list[bytes] = []
        for token_id in token_ids:
            if tokenizer.has_text(token_id):
                own = tokenizer.first_token_bytes(token_id) if self._is_first else tokenizer.token_bytes(token_id)
                data += (self._separator, own)
                self._is_first, self._separator = False, separator
        return self._strip(self._utf8.decode(b"".join(data)))

    def flush(self) -> str:
        """What is left at the end: a replacement character for an unfinished one."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while self._num_strip_chars and text:
            if not text.startswith(self._strip_char):
                self._num_strip_chars = 0
                break
            self._num_strip_chars -= 1
            text = text[1:]
        return text


def pack_token_ids(token_ids: Iterable[int]) -> bytes:
    """Big-endian 32-bit ids, so that the order of bytes is the order of token ids."""
    packed = array("I", token_ids)
    if byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def unpack_token_ids(packed: bytes) -> list[int]:
    """The reverse of `pack_token_ids`."""
    token_ids = array("I", packed)
    if byteorder == "little":
        token_ids.byteswap()
    return token_ids.tolist()
