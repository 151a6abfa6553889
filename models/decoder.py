"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families: only mathematics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import ModelConfig
from models.layers.attention import Attention
from models.layers.embedding import Embedding, Head
from models.layers.linear import Linear, RowLinear
from models.layers.norm import RMSNorm
from models.layers.rotary import Rotary, rotate
from models.sharding import Communicator, LocalCommunicator, Sharding


class Decoder(nn.Module):
    """This rank's part of a decoder; a whole one with the default communicator."""

    def __init__(
        self,
        config: ModelConfig,
        communicator: Communicator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Weights are not set: load them (`checkpoint.load_decoder`) or draw them (`initialise`).

        Raises UnsupportedModel where the model can't be split over the communicator's ranks.
        """
        super().__init__()
        communicator = communicator or LocalCommunicator()
        self.config = config
        self.sharding = Sharding.of(config, communicator.rank, communicator.world_size)
        part = _Part(config, self.sharding, communicator, dtype, device)
        self.embedding = Embedding(config.hidden_size, self.sharding, communicator, dtype=dtype, device=device)
        self.rotary = Rotary(config.rope, config.head_dim, config.max_position_embeddings, device=device)
        self.layers = nn.ModuleList(DecoderLayer(part, layer) for layer in range(config.num_layers))
        self.norm = part.norm(config.hidden_size)
        tied = self.embedding.weight
        head = tied if config.tie_word_embeddings else nn.Parameter(torch.zeros_like(tied))
        self.head = Head(head, config.vocab_size, communicator)

    def forward(
        self, token_ids: Tensor, positions: Tensor, attention: Attention, prompt_lengths: Tensor | None = None
    ) -> Tensor:
        """token_ids and positions [tokens] int64, flat over all sequences -> hidden states [tokens, hidden].

        `prompt_lengths` [tokens] int64 is the length of the prompt of each token's sequence. Only a dynamic rope reads
        it, and then it must be given.
        """
        hidden: Tensor = self.embedding(token_ids)
        cosine, sine = self.rotary(positions, prompt_lengths)
        for layer in self.layers:
            hidden = layer(hidden, cosine, sine, attention)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab_size] float32 on rank 0, [0, vocab_size] on the others. All ranks call it."""
        logits: Tensor = self.head(hidden)
        return logits

    @torch.no_grad()
    def initialise(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Draw new weights for training: normal matrices, no biases, norms of one."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to what it read."""

    def __init__(self, part: _Part, layer: int) -> None:
        super().__init__()
        self.attention_norm = part.norm(part.config.hidden_size)
        self.attention = SelfAttention(part, layer)
        self.mlp_norm = part.norm(part.config.hidden_size)
        self.mlp = FeedForward(part)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, attention: Attention) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), cosine, sine, attention)
        return hidden + self.mlp(self.mlp_norm(hidden))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Query, key and value come from one matrix, in this order."""

    def __init__(self, part: _Part, layer: int) -> None:
        super().__init__()
        config, sharding = part.config, part.sharding
        self._layer = layer
        self._window = config.sliding_windows[layer]
        self._head_dim = config.head_dim
        self._heads = (len(sharding.heads), len(sharding.kv_heads), len(sharding.kv_heads))
        width = len(sharding.heads) * config.head_dim
        self.qkv = part.linear(config.hidden_size, sum(self._heads) * config.head_dim, bias=config.qkv_bias)
        self.output = part.row_linear(width, config.hidden_size, bias=config.output_bias)
        self.query_norm = part.norm(config.head_dim) if config.qk_norm else None
        self.key_norm = part.norm(config.head_dim) if config.qk_norm else None

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, attention: Attention) -> Tensor:
        heads = self.qkv(hidden).unflatten(-1, (-1, self._head_dim))  # [tokens, all heads, head_dim]
        query, key, value = heads.split(self._heads, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        attended = attention(self._layer, query, key, value, self._window)
        return self.output(attended.flatten(1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU; gate and up come from one matrix, in this order."""

    def __init__(self, part: _Part) -> None:
        super().__init__()
        config, width = part.config, len(part.sharding.intermediate)
        self.gate_up = part.linear(config.hidden_size, 2 * width, bias=config.mlp_bias)
        self.down = part.row_linear(width, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class _Part:
    """What every layer of this rank is made from."""

    def __init__(
        self,
        config: ModelConfig,
        sharding: Sharding,
        communicator: Communicator,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.config = config
        self.sharding = sharding
        self._communicator = communicator
        self._dtype = dtype
        self._device = device

    def norm(self, size: int) -> RMSNorm:
        return RMSNorm(size, self.config.rms_norm_eps, dtype=self._dtype, device=self._device)

    def linear(self, inputs: int, outputs: int, *, bias: bool) -> Linear:
        return Linear(inputs, outputs, bias=bias, dtype=self._dtype, device=self._device)

    def row_linear(self, inputs: int, outputs: int, *, bias: bool) -> RowLinear:
        return RowLinear(inputs, outputs, self._communicator, bias=bias, dtype=self._dtype, device=self._device)
