"""What `ryzanstein up` was asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.errors import UserError


class Engine(StrEnum):
    NATIVE = "native"  #: Ours: generates.
    ECHO = "echo"  #: For tests and benchmarks: repeats the prompt.


class Dtype(StrEnum):
    AUTO = "auto"  #: As the checkpoint has it; float32 on a CPU.
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantize(StrEnum):
    NONE = "none"
    INT8 = "int8"  #: On a CPU: weights per output, activations per token.


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


#: Used where nothing was asked for, if it is free.
DEFAULT_PORT = 8000


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    data_dir: Path
    #: A folder in the Hugging Face layout.
    model: Path
    #: What requests call it.
    model_name: str
    host: str = "127.0.0.1"
    #: 0 takes any free port; None the usual one if it is free.
    port: int | None = None
    #: Ranks per group.
    tp: int = 1
    groups: int = 1
    dtype: Dtype = Dtype.AUTO
    quantize: Quantize = Quantize.NONE
    device: Device = Device.CPU
    engine: Engine = Engine.NATIVE
    #: How long the model may take to load, in seconds.
    load_seconds: float = 600.0


def example_model() -> Path | None:
    """The model of the demo, where this runs from a checkout."""
    folder = Path(__file__).parents[2] / "examples" / "invoices" / "invoice-reader"
    return folder if (folder / "config.json").is_file() else None


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    nodes = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
    return [str(index) for index in range(len(nodes))]


def devices_of_group(options: StackOptions, group: int) -> list[str] | None:
    """The GPUs of one group, `tp` of them and no other group's; None leaves it to the group.

    Raises UserError if there are too few.
    """
    if options.device is not Device.CUDA or options.engine is Engine.ECHO:
        return None
    devices, wanted = visible_devices(), options.groups * options.tp
    if len(devices) < wanted:
        raise UserError(
            f"--groups {options.groups} --tp {options.tp} needs {wanted} GPUs, and {len(devices)} can be seen. "
            "Lower --groups or --tp, or set CUDA_VISIBLE_DEVICES."
        )
    return devices[group * options.tp : (group + 1) * options.tp]
