"""Metrics for Prometheus: their names, and where every process takes them from."""

from __future__ import annotations
