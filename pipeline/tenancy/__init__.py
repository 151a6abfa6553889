"""Tenants and their keys."""

from __future__ import annotations
