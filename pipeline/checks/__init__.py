"""What the service stands on, looked at when a process starts and by `ryzanstein doctor`."""

from __future__ import annotations
