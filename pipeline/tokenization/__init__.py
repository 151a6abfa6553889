"""The tokenizer and the chat template of a model folder, without torch and without transformers."""

from __future__ import annotations

from pipeline.tokenization.chat_template import ChatTemplateError, ChatTemplateLimitError
from pipeline.tokenization.files import TokenizerError
from pipeline.tokenization.tokenizer import Detokenizer, Tokenizer, pack_token_ids, unpack_token_ids

__all__ = [
    "ChatTemplateError",
    "ChatTemplateLimitError",
    "Detokenizer",
    "Tokenizer",
    "TokenizerError",
    "pack_token_ids",
    "unpack_token_ids",
]
