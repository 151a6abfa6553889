"""What runs beside the service: Grafana and Prometheus, and what they read."""

from __future__ import annotations
