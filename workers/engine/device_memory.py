"""Memory of a host and of its device that copies pass between while both go on."""

from __future__ import annotations

import torch
from torch import Tensor


def host_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the host; page-locked where that is what lets a copy from or to the device need no wait."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


class Mirrored:
    """Zeros on the host, and the same on the device, which follows when it is told to."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._memory = host_memory(shape, dtype, device)
        self.host = self._memory.numpy()
        self.device = self._memory.to(device, copy=True)

    def send(self, rows: slice = slice(None)) -> None:
        """Begin to copy rows that lie together: in one piece, they need no kernel and no wait."""
        self.device[rows].copy_(self._memory[rows], non_blocking=True)


class StreamMark:
    """A place in the device's stream that the host can wait for. A CPU has done its work when it is asked to."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def set(self) -> None:
        """Here: behind all that was asked of the device so far."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until the device has come to where the mark was set last."""
        if self._event is not None:
            self._event.synchronize()
