"""Checkpoints in the Hugging Face layout: loading this rank's part, and writing a whole decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import CheckpointError, UnsupportedModel
from models.kernels.cpu.memory import returned_when_freed
from models.kernels.interface import Kernels
from models.layers.linear import Linear
from models.safetensor_files import SafetensorFiles, open_safetensors
from models.sharding import Communicator, LocalCommunicator, Sharding
from models.weights import EMBEDDING, HEAD, Piece, pieces

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Buffers that older checkpoints carry; they follow from the configuration.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)
#: What is read of a file stays mapped, and counts as memory of this process, until the file is closed.
_BYTES_PER_OPENING = 128 * 2**20


def resolve_dtype(name: str, config: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The type to compute in. "auto" is float32 on a CPU, and the checkpoint's type elsewhere.

    Many CPUs are slow at 16 bits. And what a token's logits are then depends, in the last of their few bits, on what
    else is in the batch: enough to sample another token in 1 of 200 cases, where in float32 it is 1 of a million.
    Whoever wants the speed of a CPU that has bfloat16 asks for it. Raises UnsupportedModel for an unknown name.
    """
    if name == "auto":
        name = "float32" if torch.device(device).type == "cpu" else config.dtype or "float32"
    if name not in _DTYPES:
        raise UnsupportedModel(f"dtype is {name!r}; supported are 'auto', {', '.join(map(repr, _DTYPES))}.")
    return _DTYPES[name]


def load_decoder(
    folder: Path,
    config: ModelConfig,
    *,
    communicator: Communicator | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    kernels: Kernels | None = None,
) -> Decoder:
    """Read this rank's part of the safetensors files in `folder`; ready for inference.

    With `kernels`, each layer is handed to them as soon as it is read, so that no second copy of all weights exists.
    Every tensor's name, shape and type is checked before memory is taken. Raises CheckpointError naming the tensor or
    the file, and UnsupportedModel where the model can't be split over the communicator's ranks.
    """
    if isinstance(dtype, str):
        dtype = resolve_dtype(dtype, config, device)
    communicator = communicator or LocalCommunicator()
    wanted = list(pieces(config, Sharding.of(config, communicator.rank, communicator.world_size)))
    with open_safetensors(folder) as files:
        if config.tie_word_embeddings:
            wanted = [_tied(wanted[0], files), *wanted[1:]]
        for piece in wanted:
            files.check(piece)
        _refuse_unexpected(files, config, {piece.tensor for piece in wanted})
    with returned_when_freed():
        decoder = Decoder(config, communicator, dtype=dtype, device=device).requires_grad_(False).eval()
        for part in _parts(wanted):
            with open_safetensors(folder) as files:
                for name, of_module in groupby(part, _module_name):
                    _fill(decoder, name, of_module, files)
                    if kernels is not None:
                        _hand_over(decoder, name, kernels)
    if kernels is not None:
        decoder.use(kernels)
    return decoder


def _parts(wanted: list[Piece]) -> Iterator[list[Piece]]:
    """Consecutive modules, whole, of about so many bytes as one opening of the files may read."""
    part: list[Piece] = []
    size = 0
    for _, of_module in groupby(wanted, _module_name):
        for piece in of_module:
            part.append(piece)
            size += math.prod(piece.shape) * 2  # as in bfloat16
        if size >= _BYTES_PER_OPENING:
            yield part
            part, size = [], 0
    if part:
        yield part


def _module_name(piece: Piece) -> str:
    return piece.parameter.rpartition(".")[0]


@torch.no_grad()
def _fill(decoder: Decoder, name: str, of_module: Iterable[Piece], files: SafetensorFiles) -> None:
    parameters = dict(decoder.get_submodule(name).named_parameters())
    for piece in of_module:
        parameter = parameters[piece.parameter.rpartition(".")[2]]
        parameter[piece.row : piece.row + len(piece.rows)].copy_(files.read(piece))


def _hand_over(decoder: Decoder, name: str, kernels: Kernels) -> None:
    module = decoder.get_submodule(name)
    if isinstance(module, Linear):
        module.use(kernels)
    elif module is decoder.embedding and decoder.config.tie_word_embeddings:
        decoder.use_tables(kernels)


def checkpoint_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """A whole decoder's weights by their names in a Hugging Face checkpoint, for safetensors' `save_file`."""
    if decoder.sharding.world_size != 1:
        raise ValueError("only a decoder that is not split over ranks can be written")
    parameters = dict(decoder.named_parameters())
    return {
        piece.tensor: parameters[piece.parameter].detach()[piece.row : piece.row + len(piece.rows)].contiguous()
        for piece in pieces(decoder.config, decoder.sharding)
    }


def _tied(embedding: Piece, files: SafetensorFiles) -> Piece:
    """Embedding and head are one matrix; it may be stored under either name, or under both if they are equal."""
    head = replace(embedding, tensor=HEAD)
    if EMBEDDING not in files and HEAD in files:
        return head
    if EMBEDDING in files and HEAD in files:
        files.check(embedding)
        files.check(head)
        if not torch.equal(files.read(embedding), files.read(head)):
            raise CheckpointError(
                f"config.json has tie_word_embeddings true, but {EMBEDDING} and {HEAD} differ; "
                "set it to false to use both."
            )
    return embedding


def _refuse_unexpected(files: SafetensorFiles, config: ModelConfig, wanted: set[str]) -> None:
    """A tensor that we would leave out may be part of the mathematics: better no answer than a wrong one."""
    tied_head = {HEAD} if config.tie_word_embeddings else set()
    unexpected = sorted(
        name for name in files if name not in wanted | tied_head and not name.endswith(_IGNORED_SUFFIXES)
    )
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise CheckpointError(
            f"The checkpoint holds the tensor {unexpected[0]}{more}, which no model of this config.json has; "
            "check its biases, num_hidden_layers and tie_word_embeddings."
        )
