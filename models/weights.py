"""Which tensors of a Hugging Face checkpoint fill which parameter of a decoder, and which part a rank holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.config import ModelConfig
from models.sharding import Sharding

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a checkpoint's tensor, and the rows of a decoder's parameter that it fills."""

    #: In the checkpoint.
    tensor: str
    #: Of the whole tensor.
    shape: tuple[int, ...]
    #: In the decoder.
    parameter: str
    #: First row of the parameter.
    row: int = 0
    #: Rows of the tensor that this rank holds.
    rows: range
    #: Columns of the tensor that this rank holds; None is all.
    columns: range | None = None


def pieces(config: ModelConfig, sharding: Sharding) -> Iterator[Piece]:
    """Everything that this rank reads, in the order of a forward pass."""
    vocabulary = (config.vocab_size, config.hidden_size)
    yield Piece(tensor=EMBEDDING, shape=vocabulary, parameter="embedding.weight", rows=sharding.vocabulary)
    for layer in range(config.num_layers):
        source, target = f"model.layers.{layer}", f"layers.{layer}"
        yield _whole(f"{source}.input_layernorm.weight", config.hidden_size, f"{target}.attention_norm.weight")
        yield from _attention(config, sharding, f"{source}.self_attn", f"{target}.attention")
        yield _whole(f"{source}.post_attention_layernorm.weight", config.hidden_size, f"{target}.mlp_norm.weight")
        yield from _feed_forward(config, sharding, f"{source}.mlp", f"{target}.mlp")
    yield _whole("model.norm.weight", config.hidden_size, "norm.weight")
    if not config.tie_word_embeddings:
        yield Piece(tensor=HEAD, shape=vocabulary, parameter="head.weight", rows=sharding.vocabulary)


def _attention(config: ModelConfig, sharding: Sharding, source: str, target: str) -> Iterator[Piece]:
    projections = (
        ("q_proj", config.num_heads, sharding.heads),
        ("k_proj", config.num_kv_heads, sharding.kv_heads),
        ("v_proj", config.num_kv_heads, sharding.kv_heads),
    )
    row = 0
    for name, num_heads, heads in projections:
        rows = range(heads.start * config.head_dim, heads.stop * config.head_dim)
        outputs = num_heads * config.head_dim
        yield from _columns(
            f"{source}.{name}", (outputs, config.hidden_size), f"{target}.qkv", row, rows, config.qkv_bias
        )
        row += len(rows)
    inputs = range(sharding.heads.start * config.head_dim, sharding.heads.stop * config.head_dim)
    shape = (config.hidden_size, config.num_heads * config.head_dim)
    yield from _rows(f"{source}.o_proj", shape, f"{target}.output", inputs, config.output_bias)
    if config.qk_norm:
        yield _whole(f"{source}.q_norm.weight", config.head_dim, f"{target}.query_norm.weight")
        yield _whole(f"{source}.k_norm.weight", config.head_dim, f"{target}.key_norm.weight")


def _feed_forward(config: ModelConfig, sharding: Sharding, source: str, target: str) -> Iterator[Piece]:
    shape = (config.intermediate_size, config.hidden_size)
    part = sharding.intermediate
    yield from _columns(f"{source}.gate_proj", shape, f"{target}.gate_up", 0, part, config.mlp_bias)
    yield from _columns(f"{source}.up_proj", shape, f"{target}.gate_up", len(part), part, config.mlp_bias)
    yield from _rows(f"{source}.down_proj", shape[::-1], f"{target}.down", part, config.mlp_bias)


def _columns(source: str, shape: tuple[int, int], target: str, row: int, rows: range, bias: bool) -> Iterator[Piece]:
    """A projection split by output; its bias is split with it."""
    yield Piece(tensor=f"{source}.weight", shape=shape, parameter=f"{target}.weight", row=row, rows=rows)
    if bias:
        yield Piece(tensor=f"{source}.bias", shape=shape[:1], parameter=f"{target}.bias", row=row, rows=rows)


def _rows(source: str, shape: tuple[int, int], target: str, inputs: range, bias: bool) -> Iterator[Piece]:
    """A projection split by input; its bias is whole on every rank and added after the sum."""
    yield Piece(
        tensor=f"{source}.weight", shape=shape, parameter=f"{target}.weight", rows=range(shape[0]), columns=inputs
    )
    if bias:
        yield _whole(f"{source}.bias", shape[0], f"{target}.bias")


def _whole(tensor: str, size: int, parameter: str) -> Piece:
    return Piece(tensor=tensor, shape=(size,), parameter=parameter, rows=range(size))
