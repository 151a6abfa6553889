"""The embedded stack: every process of the service on one machine, started, watched and stopped by `ryzanstein up`."""

from __future__ import annotations
