from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from tokenizers import Tokenizer

from examples.invoices.demo import unseen_sentences
from examples.invoices.generate import Side, examples
from examples.invoices.reading import FOLDER, load, measure
from examples.invoices.tokenizer import render_prompt
from models.decoder import Decoder
from models.layers.attention import CausalAttention

MAX_BYTES = 12 * 1024**2


@pytest.fixture(scope="module")
def checkpoint() -> tuple[Decoder, Tokenizer]:
    torch.set_num_threads(1)
    return load(FOLDER)


def test_it_is_a_small_hugging_face_folder() -> None:
    names = {path.name for path in FOLDER.iterdir()}

    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "llama"


def test_it_reads_unseen_sentences(checkpoint: tuple[Decoder, Tokenizer]) -> None:
    held_out = list(islice(examples(Side.HELD_OUT, seed=20), 50))

    assert measure(*checkpoint, held_out) >= 0.95


def test_transformers_computes_the_same_logits(checkpoint: tuple[Decoder, Tokenizer]) -> None:
    from transformers import AutoModelForCausalLM

    decoder, tokenizer = checkpoint
    theirs = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    prompt = render_prompt(next(examples(Side.HELD_OUT, seed=21)).sentence)
    token_ids = torch.tensor(tokenizer.encode(prompt).ids)

    with torch.inference_mode():
        hidden = decoder(token_ids, torch.arange(len(token_ids)), CausalAttention(1, len(token_ids)))
        torch.testing.assert_close(decoder.logits(hidden), theirs(token_ids[None]).logits[0], atol=1e-4, rtol=0)


def test_the_demo_asks_about_sentences_that_the_training_never_saw() -> None:
    asked = unseen_sentences(50, seed=1)

    assert len(asked) == 50
