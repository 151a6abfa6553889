"""What a measurement ran on, as far as its numbers depend on it. No names of hosts, and no paths."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

#: Instruction sets that kernels are chosen by, as Linux names them.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16", "amx_int8")


def describe_machine() -> dict[str, Any]:
    fields = _cpu_fields()
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(cpus()),
        "instruction_sets": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        #: Of the last minute, when the measurement began: anything much above 0 was somebody else's.
        "load_before": round(os.getloadavg()[0], 2),
    }


def cpus() -> list[int]:
    """Those that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def peak_bytes(pid: int) -> int:
    """The most memory that a process had at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = [row.split()[1] for row in status.splitlines() if row.startswith("VmHWM:")]
    return int(kilobytes) * 1024


def _cpu_fields() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    return {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in first.splitlines())}
