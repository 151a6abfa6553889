"""Boards, and how Grafana finds them."""

from __future__ import annotations
