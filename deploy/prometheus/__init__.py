"""Scraping, alerts, and a Prometheus for a stack on this machine."""

from __future__ import annotations
