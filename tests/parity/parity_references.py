"""Small random models of every family, and what transformers answers with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from parity_cases import BASE, CASES, NUM_NEW_TOKENS, PROMPT_LENGTHS, Answer, Case, Reference
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def make_reference(case: Case, folder: Path) -> Reference:
    """Save a random model of the case to `folder`, and let transformers answer its prompts one by one."""
    model = random_model(case, seed=CASES.index(case))
    model.save_pretrained(folder, max_shard_size=case.max_shard_size)
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS
    ]
    return Reference(case, folder, prompts, [_answer(model, prompt) for prompt in prompts])


def random_model(case: Case, seed: int) -> Any:
    config_class, model_class = FAMILIES[case.family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**BASE, **case.options}, eos_token_id=None, bos_token_id=None)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # transformers starts norms at one and biases at zero, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@torch.inference_mode()
def _answer(model: Any, prompt: list[int]) -> Answer:
    ids = torch.tensor([prompt])
    _forget_lengths(model)
    prompt_logits = model(ids, attention_mask=torch.ones_like(ids)).logits[0]
    _forget_lengths(model)
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        ),
    )
    return Answer(prompt_logits, generated.sequences[0, len(prompt) :].tolist(), torch.cat(generated.logits))


def _forget_lengths(model: Any) -> None:
    """A dynamic rope keeps the frequencies of the longest sequence that it saw; a fresh one has seen none."""
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
