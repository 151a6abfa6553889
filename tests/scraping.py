"""Metrics as Prometheus reads them."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pipeline.telemetry.metrics.registry import render


@dataclass(frozen=True)
class Scraped:
    """All samples of one scrape, by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, text: str) -> Scraped:
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in found, f"{sample.name} {sample.labels} is there twice"
                found[key] = sample.value
        return cls(found)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    def all(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Every sample of this name that has these labels, by all of its labels."""
        wanted = frozenset(labels.items())
        return {
            tuple(sorted(found)): value
            for (known, found), value in self.samples.items()
            if known == name and wanted <= found
        }

    def value(self, name: str, **labels: str) -> float:
        """The only sample of this name that has these labels."""
        found = self.all(name, **labels)
        assert len(found) == 1, f"{name} {labels} is {found}"
        return next(iter(found.values()))

    def total(self, name: str, **labels: str) -> float:
        return sum(self.all(name, **labels).values())

    def values_of(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for labels in self.all(name)}


def scrape(url: str) -> Scraped:
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return Scraped.of(answer.read().decode())


def scrape_registry(registry: CollectorRegistry) -> Scraped:
    """Without a server."""
    return Scraped.of(render(registry).decode())
