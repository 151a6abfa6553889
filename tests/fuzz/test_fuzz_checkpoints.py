"""Model folders with bytes and values changed: they load, or are refused by an error of ours, and nothing else."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from budget import Budget
from model_folders import random_llama
from spoiling import spoil
from tokenizer_folders import KINDS, words

Load = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Loads a folder in a process apart."""
    # The folder of this file is the script's own; those that it needs besides are the project and `tests`.
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("loader_process.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def load(folder: Path) -> dict[str, Any]:
        stdin.write(f"{folder}\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    with process:
        yield load
        stdin.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Whole model folders, one for each kind of tokenizer."""
    root = tmp_path_factory.mktemp("whole")
    whole = random_llama(root / "weights", tie_word_embeddings=True)
    (whole / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "temperature": 0.5}))
    found = [whole]
    for kind, make in {**KINDS, "words": words}.items():
        folder = make(root / kind)
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        other = random_llama(root / f"{kind}-weights", vocab_size=size)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(other / name, folder / name)
        shutil.copy(whole / "generation_config.json", folder)
        found.append(folder)
    return found


def test_every_kind_of_folder_loads_as_it_is(folders: list[Path], load: Load) -> None:
    assert [load(folder) for folder in folders] == [{"outcome": "loaded", "detail": ""}] * len(folders)


def test_a_spoilt_folder_loads_or_is_refused_by_an_error_of_ours(
    folders: list[Path], load: Load, tmp_path: Path, budget: Budget
) -> None:
    outcomes: Counter[str] = Counter()
    for number in budget.seeds():
        rng = random.Random(number)
        folder = tmp_path / "spoilt"
        shutil.copytree(rng.choice(folders), folder)
        done = spoil(folder, rng)
        found = load(folder)
        budget.num_inputs += 1
        outcomes[found["outcome"]] += 1
        assert found["outcome"] in ("loaded", "refused"), f"seed {number}: {done}\n{found['detail']}"
        if found["outcome"] == "refused":
            assert len(found["detail"]) < 1000, f"seed {number}: {done}\n{found['detail']}"
        shutil.rmtree(folder)
    assert outcomes["refused"] > 0
