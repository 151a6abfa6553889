"""The HTTP API: one file per resource, authentication, errors."""

from __future__ import annotations

from pipeline.gateway.app import create_app
from pipeline.gateway.serving import run_gateway

__all__ = ["create_app", "run_gateway"]
