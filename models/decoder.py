"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families: only mathematics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.kernels.interface import PLAIN, Kernels
from models.layers.attention import Attention
from models.layers.embedding import Embedding, Head
from models.layers.linear import Linear, RowLinear
from models.layers.norm import RMSNorm
from models.layers.rotary import Rotary
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
        #: What everything here computes with; see `use`.
        self.kernels: Kernels = PLAIN
        self.sharding = Sharding.of(config, communicator.rank, communicator.world_size)
        part = _Part(config, self.sharding, communicator, dtype, device)
        self.embedding = Embedding(config.hidden_size, self.sharding, communicator, dtype=dtype, device=device)
        self.rotary = Rotary(config.rope, config.head_dim, config.max_position_embeddings, device=device)
        self.layers = nn.ModuleList(DecoderLayer(part, layer) for layer in range(config.num_layers))
        self.norm = part.norm(config.hidden_size)
        tied = self.embedding.weight
        assert tied is not None
        head = tied if config.tie_word_embeddings else nn.Parameter(torch.zeros_like(tied))
        self.head = Head(head, config.vocab_size, communicator)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention: Attention,
        prompt_lengths: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """token_ids and positions [tokens] int64, flat over all sequences -> hidden states [tokens, hidden].

        `prompt_lengths` [tokens] int64 is the length of the prompt of each token's sequence. Only a dynamic rope reads
        it, and then it must be given. `rows` [rows] int64 are the tokens whose hidden states are wanted: the others go
        no further than the last attention, and the result is [rows, hidden].
        """
        residual: Tensor = self.embedding(token_ids)
        rotation = self.rotary(positions, prompt_lengths)
        if rows is None and self.sharding.world_size == 1:
            delta, residual = self.kernels.run_layers(self._run_layers, residual, rotation, attention)
        else:
            delta, residual = self._run_layers(residual, rotation, attention, rows)
        normed: Tensor = self.norm(delta, residual)[0]
        return normed

    def _run_layers(
        self, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the last layer adds, and what it adds that to."""
        delta: Tensor | None = None
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, rotation, attention, rows if index == last else None)
        assert delta is not None
        return delta, residual

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab_size] float32 on rank 0, [0, vocab_size] on the others. All ranks call it."""
        logits: Tensor = self.head(hidden)
        return logits

    def greatest(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> as `Kernels.greatest` of `logits` on rank 0, [0] on the others. All ranks call it.

        With several ranks it is far less to exchange than logits.
        """
        greatest: Tensor = self.head.greatest(hidden, self.kernels, self.sharding.vocabulary)
        return greatest

    def use(self, kernels: Kernels) -> None:
        """Compute with these from now on. The weights are theirs then: nothing can be trained or saved any more."""
        self.kernels = kernels
        self.use_tables(kernels)
        for module in self.modules():
            if isinstance(module, Linear | RMSNorm | SelfAttention):
                module.use(kernels)

    def use_tables(self, kernels: Kernels) -> None:
        """The same for embedding and head alone. Idempotent."""
        if self.head.weight is None:
            return
        tied = self.head.use(kernels)
        self.embedding.use(kernels, tied if self.config.tie_word_embeddings else None)

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

    def forward(
        self,
        delta: Tensor | None,
        residual: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention: Attention,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What the layer before adds, and what it adds that to -> the same of this layer; of `rows` alone if given."""
        normed, residual = self.attention_norm(delta, residual)
        delta = self.attention(normed, rotation, attention, rows)
        if rows is not None:
            residual = residual[rows]
        normed, residual = self.mlp_norm(delta, residual)
        return self.mlp(normed), residual


class SelfAttention(nn.Module):
    """Query, key and value come from one matrix, in this order."""

    def __init__(self, part: _Part, layer: int) -> None:
        super().__init__()
        config, sharding = part.config, part.sharding
        self._layer = layer
        self._window = config.sliding_windows[layer]
        self._head_dim = config.head_dim
        self._num_heads = (len(sharding.heads), len(sharding.kv_heads))
        width = len(sharding.heads) * config.head_dim
        outputs = (len(sharding.heads) + 2 * len(sharding.kv_heads)) * config.head_dim
        self.qkv = part.linear(config.hidden_size, outputs, bias=config.qkv_bias)
        self.output = part.row_linear(width, config.hidden_size, bias=config.output_bias)
        self.query_norm = part.norm(config.head_dim) if config.qk_norm else None
        self.key_norm = part.norm(config.head_dim) if config.qk_norm else None
        self._eps = config.rms_norm_eps
        self._kernels: Kernels = PLAIN

    def use(self, kernels: Kernels) -> None:
        """Compute with these from now on."""
        self._kernels = kernels

    def forward(
        self, hidden: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention, rows: Tensor | None
    ) -> Tensor:
        heads = self.qkv(hidden).unflatten(-1, (-1, self._head_dim))  # [tokens, all heads, head_dim]
        query_norm = self.query_norm.weight if self.query_norm is not None else None
        key_norm = self.key_norm.weight if self.key_norm is not None else None
        query, key, value = self._kernels.norm_rotate(heads, query_norm, key_norm, self._eps, rotation, self._num_heads)
        attended = attention(self._layer, query, key, value, self._window).flatten(1)
        return self.output(attended if rows is None else attended[rows])  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU; gate and up come from one matrix, in this order."""

    def __init__(self, part: _Part) -> None:
        super().__init__()
        config, width = part.config, len(part.sharding.intermediate)
        self.gate_up = part.linear(config.hidden_size, 2 * width, bias=config.mlp_bias, is_gated=True)
        self.down = part.row_linear(width, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.gate_up(hidden))  # type: ignore[no-any-return]


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

    def linear(self, inputs: int, outputs: int, *, bias: bool, is_gated: bool = False) -> Linear:
        return Linear(inputs, outputs, bias=bias, is_gated=is_gated, dtype=self._dtype, device=self._device)

    def row_linear(self, inputs: int, outputs: int, *, bias: bool) -> RowLinear:
        return RowLinear(inputs, outputs, self._communicator, bias=bias, dtype=self._dtype, device=self._device)
