"""A small network that reads the fields of an invoice out of free text, and the demo that puts it to work."""

from __future__ import annotations
