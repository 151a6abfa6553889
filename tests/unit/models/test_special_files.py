"""A pipe in a model folder has no end to read to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint

from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.errors import CheckpointError, InvalidConfig


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_a_configuration_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    make_pipe(tmp_path / "config.json")
    with pytest.raises(InvalidConfig, match=r"config\.json is not a file"):
        ModelConfig.from_pretrained(tmp_path)


def test_weights_that_are_no_file_are_not_waited_for(tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    make_pipe(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a file"):
        load_decoder(tmp_path, config)


def test_an_index_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    config, _ = write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    make_pipe(tmp_path / "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"index\.json is no file"):
        load_decoder(tmp_path, config)


def test_a_context_that_no_counter_holds_is_refused(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 1e12}
    with pytest.raises(InvalidConfig, match="make a context of 32000000000000 tokens"):
        write_checkpoint(tmp_path, rope_scaling=scaling)
