"""What a group runs on, for people who look at it: processors or GPUs, their memory, and how many."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil

from workers.backends.cores import usable_cores

#: Time for the driver to say what the GPUs are, in seconds; a GPU that has failed can keep it for long.
_DRIVER_SECONDS: Final = 10.0
_MIB: Final = 1024**2


def describe_hardware(device: str, tp: int) -> dict[str, Any]:
    """`{"hardware": name, "devices": how many, "memory_bytes": of all of them}`; what isn't known is left out.

    Devices are cores of this machine that the group may use, or the GPUs that its ranks take. No GPU is opened.
    """
    return _gpus(tp) if device == "cuda" else _processor()


def _processor() -> dict[str, Any]:
    return {
        "hardware": _processor_name(Path("/proc/cpuinfo")),
        "devices": len(usable_cores()),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _processor_name(cpuinfo: Path) -> str:
    """As the system names it, or `CPU`."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _gpus(tp: int) -> dict[str, Any]:
    """The first `tp` that this process may see."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        command += ["--id", visible]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {"hardware": "GPU", "devices": tp}
    return parse_gpus(told, tp)


def parse_gpus(told: str, tp: int) -> dict[str, Any]:
    """Of what `nvidia-smi` says: a line `NAME, MIB` for each GPU."""
    gpus = [line.rpartition(",") for line in told.splitlines() if "," in line][:tp]
    names = sorted({name.strip() for name, _, _ in gpus}) or ["GPU"]
    found: dict[str, Any] = {"hardware": ", ".join(names), "devices": tp}
    sizes = [size.strip() for _, _, size in gpus]
    if sizes and all(size.isdecimal() for size in sizes):
        found["memory_bytes"] = sum(map(int, sizes)) * _MIB
    return found
