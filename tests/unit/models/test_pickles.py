"""Weights that are pickles run code when they are loaded: they are named and refused, and never opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoint_files import read_config, write_checkpoint

from models.checkpoint import load_decoder
from models.errors import CheckpointError


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "pytorch_model-00001.bin"])
def test_a_pickle_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    config = read_config(tmp_path)
    canary = tmp_path / "canary"
    torch.save(Exploit(canary), tmp_path / name)
    with pytest.raises(CheckpointError) as refusal:
        load_decoder(tmp_path, config)
    assert f"{name}, a pickle" in str(refusal.value)
    assert "Convert it to safetensors" in str(refusal.value)
    assert not canary.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    canary = tmp_path / "canary"
    torch.save(Exploit(canary), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        load_decoder(tmp_path, config)
    assert not canary.exists()


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    canary = tmp_path / "canary"
    torch.save(Exploit(canary), tmp_path / "pytorch_model.bin")
    load_decoder(tmp_path, config)
    assert not canary.exists()


def test_the_exploit_works_where_pickles_are_loaded(tmp_path: Path) -> None:
    """So that the tests above test something."""
    torch.save(Exploit(tmp_path / "canary"), tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "canary").exists()
