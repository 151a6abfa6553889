from __future__ import annotations

from pathlib import Path

import pytest

from workers import hardware
from workers.hardware import describe_hardware, parse_gpus

TWO_GPUS = "NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\n"


def test_a_processor_is_described_by_its_name_its_cores_and_its_memory() -> None:
    found = describe_hardware("cpu", tp=2)

    assert found["hardware"]
    assert found["devices"] >= 1
    assert found["memory_bytes"] > 1024**3


def test_the_gpus_of_the_ranks_are_described_and_no_others() -> None:
    assert parse_gpus(TWO_GPUS, tp=1) == {
        "hardware": "NVIDIA H100 80GB HBM3",
        "devices": 1,
        "memory_bytes": 81559 * 1024**2,
    }
    assert parse_gpus(TWO_GPUS, tp=2)["memory_bytes"] == 2 * 81559 * 1024**2


@pytest.mark.parametrize("told", ["", "No devices were found\n", "NVIDIA GB10, [N/A]\n"])
def test_memory_that_the_driver_does_not_know_is_left_out(told: str) -> None:
    found = parse_gpus(told, tp=1)

    assert found["hardware"]
    assert "memory_bytes" not in found


def test_a_machine_without_a_driver_still_has_a_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert describe_hardware("cuda", tp=2) == {"hardware": "GPU", "devices": 2}


def test_the_driver_is_asked_for_the_gpus_that_this_process_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "asked $*, 1000"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")

    assert "--id 2,3" in hardware.describe_hardware("cuda", tp=1)["hardware"]
