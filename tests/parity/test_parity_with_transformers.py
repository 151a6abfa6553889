from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from parity_cases import CASES, Answer, Reference
from parity_ranks import answer, run_rank
from parity_references import make_reference

from models.config import ModelConfig
from models.sharding import LocalCommunicator
from workers.rendezvous import Rendezvous

#: Seconds that the ranks of one world get for all cases.
LIMIT = 240


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    return {case.name: make_reference(case, tmp_path_factory.mktemp(case.name)) for case in CASES}


@pytest.fixture(scope="module")
def answers(
    references: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, bool], dict[str, list[Answer]]]:
    """By world size and kernels; the ranks of a world are spawned once for all cases."""

    @cache
    def of_world(world_size: int, with_kernels: bool) -> dict[str, list[Answer]]:
        if world_size == 1:
            return {
                name: answer(reference, LocalCommunicator(), with_kernels) for name, reference in references.items()
            }
        output = tmp_path_factory.mktemp("ranks") / "answers.pt"
        _spawn(world_size, list(references.values()), with_kernels, output)
        return {name: [Answer(*each) for each in of_case] for name, of_case in torch.load(output).items()}

    return of_world


def _spawn(world_size: int, references: list[Reference], with_kernels: bool, output: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with Rendezvous() as rendezvous:
        ranks = [
            context.Process(target=run_rank, args=(rendezvous.path, rank, world_size, references, with_kernels, output))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            for process in ranks:
                process.join(LIMIT)
            assert [process.exitcode for process in ranks] == [0] * world_size
        finally:
            for process in ranks:
                process.kill()


@pytest.mark.parametrize("with_kernels", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_model_answers_as_transformers_does(
    name: str,
    world_size: int,
    with_kernels: bool,
    references: dict[str, Reference],
    answers: Callable[[int, bool], dict[str, list[Answer]]],
) -> None:
    reference = references[name]
    for ours, theirs in zip(answers(world_size, with_kernels)[name], reference.answers, strict=True):
        torch.testing.assert_close(ours.prompt_logits, theirs.prompt_logits, rtol=0, atol=1e-4)
        assert ours.token_ids == theirs.token_ids
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_config_of_transformers_4_reads_the_same(name: str, references: dict[str, Reference], tmp_path: Path) -> None:
    """It wrote rope_theta and rope_scaling beside each other, torch_dtype, and no layer_types."""
    config = json.loads((references[name].folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = None if scaling["type"] == "default" else scaling
    config["torch_dtype"] = config.pop("dtype")
    if name != "qwen3-layer-types":  # which those versions could not express
        config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert ModelConfig.from_pretrained(tmp_path) == ModelConfig.from_pretrained(references[name].folder)


def test_every_case_has_several_files_or_one_as_its_name_says(references: dict[str, Reference]) -> None:
    for name, reference in references.items():
        num_files = len(list(reference.folder.glob("*.safetensors")))
        assert (num_files > 1) == (name == "llama-several-files")
