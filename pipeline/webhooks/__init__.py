"""Webhooks: events of batches, signed as standard webhooks are, and sent until somebody has taken them."""

from __future__ import annotations
