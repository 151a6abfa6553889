"""The tensors of a checkpoint folder, over one or many memory-mapped safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import CheckpointError
from models.weights import Piece

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
#: No index of a decoder comes near it; it keeps a wrong file from filling the memory.
MAX_INDEX_BYTES = 64 * 1024**2
#: Types of weights, as safetensors names them. Whatever else is whole numbers or 8 bits wide is quantised.
_FLOATS = frozenset({"F32", "BF16", "F16"})


class SafetensorFiles:
    """Nothing is read before a slice is asked for; then only its pages are."""

    def __init__(self, files: dict[str, Any], names: dict[str, str]) -> None:
        self._files = files  # by file name: an open safetensors file
        self._names = names  # by tensor name: its file's name

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def check(self, piece: Piece) -> None:
        """Raise CheckpointError unless the piece's tensor is there, of its shape and of a type that we compute in."""
        if piece.tensor not in self._names:
            raise CheckpointError(
                f"Tensor {piece.tensor} is missing from {', '.join(sorted(self._files))}; the checkpoint is incomplete "
                "or belongs to another config.json."
            )
        file = self._names[piece.tensor]
        view = self._files[file].get_slice(piece.tensor)
        if view.get_dtype() not in _FLOATS:
            raise CheckpointError(
                f"Tensor {piece.tensor} in {file} is of type {view.get_dtype()}; supported are F32, BF16 and F16, "
                "not quantised weights."
            )
        if tuple(view.get_shape()) != piece.shape:
            raise CheckpointError(
                f"Tensor {piece.tensor} in {file} has the shape {list(view.get_shape())}, "
                f"but config.json asks for {list(piece.shape)}."
            )

    def read(self, piece: Piece) -> Tensor:
        """This rank's part of the piece's tensor."""
        file = self._names[piece.tensor]
        view = self._files[file].get_slice(piece.tensor)
        rows = slice(piece.rows.start, piece.rows.stop)
        try:
            if piece.columns is None:
                part: Tensor = view[rows]
            else:
                part = view[rows, piece.columns.start : piece.columns.stop]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"Tensor {piece.tensor} can't be read from {file}: {error}.") from error
        return part


@contextmanager
def open_safetensors(folder: Path) -> Iterator[SafetensorFiles]:
    """Open `model.safetensors`, else the files that `model.safetensors.index.json` names.

    Raises CheckpointError: no such file, a file that is truncated or has a bad header, an index that is wrong.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        names: dict[str, str] = {}
        index = _index(folder)
        for file in sorted(set(index.values())) if index else [SINGLE_FILE]:
            files[file] = stack.enter_context(_open(folder / file))
            tensors = files[file].keys()
            names |= {tensor: file for tensor in tensors if not index or index.get(tensor) == file}
        lost = sorted(set(index) - set(names))
        if lost:
            raise CheckpointError(
                f"{INDEX_FILE} says that tensor {lost[0]} is in {index[lost[0]]}, but it is not; "
                "the files belong to different checkpoints."
            )
        yield SafetensorFiles(files, names)


def _index(folder: Path) -> dict[str, str]:
    """By tensor name: its file's name. Empty where one file holds everything."""
    path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).exists():
        return {}
    if not path.exists():
        _refuse_pickle(folder)
        raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; there are no weights to load.")
    if not path.is_file() or path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path} is no file, or larger than {MAX_INDEX_BYTES} bytes; it is no index.")
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index of safetensors files: {error!r}.") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must be an object that names a file for every tensor.")
    for tensor, file in weight_map.items():
        # An index is untrusted: it must not lead out of the folder.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {tensor} is in {file!r}, which is not a safetensors file of this folder.")
    return weight_map


def _open(path: Path) -> Any:
    if path.exists() and not path.is_file():  # reading from a pipe would never end
        raise CheckpointError(f"{path} is not a file.")
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}.") from error


def _refuse_pickle(folder: Path) -> None:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights in {pickles[0]}, a pickle, which could run any code when loaded. "
            "Convert it to safetensors, for example by save_pretrained of transformers, and load that."
        )
