"""Small model folders, as far as a tokenizer needs them, one for each kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again, until the dog gets up.",
    "Invoice 2026-041 from Müller & Söhne GmbH: 1,250.00 EUR, due on the 3rd of May.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))",
    "価格は千円です。いつもありがとうございます。 naïve café — “quoted” … 100%",
] * 4

CHATML = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' -}}{%- endif -%}\n"
    "{% for message in messages %}\n"
    "    {%- if message.role == 'tool' %}{% continue %}{% endif %}\n"
    "    {% generation %}\n"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' }}\n"
    "    {% endgeneration %}\n"
    "{% endfor %}\n"
    "{% if tools %}{{ tools | tojson }}{% endif %}\n"
    "{{ {'count': messages | length, 'text': 'é<&>'} | tojson(indent=1) }}\n"
    "{%- set ns = namespace(last='') %}"
    "{% for m in messages %}{% set ns.last = m.name | default('nobody') %}{% endfor %}\n"
    "{{ ns.last }}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

#: Llama 2's manner: roles must alternate, and the template writes `<s>` itself.
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def save_folder(
    folder: Path, tokenizer: Tokenizer, tokenizer_config: dict[str, Any], context_length: int = 256, **config: Any
) -> Path:
    """Write the files that `Tokenizer.load` and transformers read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    config = {"model_type": "llama", "vocab_size": size, "max_position_embeddings": context_length, **config}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def byte_level(folder: Path, **options: Any) -> Path:
    """As GPT-2 and Llama 3: byte-level BPE; `<|begin|>` comes from the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, ["<|begin|>", "<|im_start|>", "<|im_end|>"], alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_tokens(["<think>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    names = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    return save_folder(folder, tokenizer, names, **options)


def qwen_like(folder: Path, **options: Any) -> Path:
    """As Qwen2: NFC, a regular expression, no first token; the end of a turn is not the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, ["<|endoftext|>"], alphabet=pre_tokenizers.ByteLevel.alphabet())
    size = tokenizer.get_vocab_size()
    added = {
        str(size): {"content": "<|im_start|>", "special": True, "normalized": False},
        str(size + 1): {"content": "<|im_end|>", "special": True, "normalized": False},
        str(size + 2): {"content": "<tool>", "special": False, "normalized": False},
    }
    names = {"eos_token": "<|im_end|>", "add_bos_token": False, "added_tokens_decoder": added, "chat_template": CHATML}
    options = {"vocab_size": size + 64, "eos_token_id": 0, **options}
    return save_folder(folder, tokenizer, names, **options)


def byte_fallback(folder: Path, **options: Any) -> Path:
    """As Llama 2 and Mistral: metaspace, byte tokens for what the vocabulary lacks, `<s>` in front."""
    tokenizer = _with_byte_tokens()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": ALTERNATING}
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # transformers goes by tokenizer.json where there is one, whatever these say.
    flags = {"add_bos_token": False, "add_eos_token": True}
    return save_folder(folder, tokenizer, names | flags, **options)


def metaspace(folder: Path, **options: Any) -> Path:
    """As older conversions of sentencepiece: the Metaspace pre-tokenizer and decoder; special tokens named apart."""
    tokenizer = _with_byte_tokens()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
    )
    save_folder(folder, tokenizer, {}, **options)
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(ALTERNATING)
    return folder


def words(folder: Path, **options: Any) -> Path:
    """A vocabulary of whole words, and no decoder."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": ALTERNATING}
    return save_folder(folder, tokenizer, names, **options)


KINDS: dict[str, Callable[[Path], Path]] = {
    "byte_level": byte_level,
    "qwen_like": qwen_like,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
}


def _train(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def _with_byte_tokens() -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(learner, [], alphabet=[])
    learnt = json.loads(learner.to_str())["model"]
    # Rare characters are left to the byte tokens.
    lacks = set("価格千円“”…—%&")
    pieces = [piece for piece in learnt["vocab"] if not lacks & set(piece)]
    merges = [(left, right) for left, right in learnt["merges"] if not lacks & set(left + right)]
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {piece: position for position, piece in enumerate(order)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in order[:3]])
    return tokenizer
