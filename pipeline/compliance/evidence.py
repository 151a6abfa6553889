"""What a check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from sqlalchemy import Engine

from pipeline.settings import Settings


class State(StrEnum):
    MET = "met"  #: Seen to be so.
    GAP = "gap"  #: Seen not to be so; a setting or a person can close it.
    UNKNOWN = "not checked"  #: It could not be looked at from here.


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that was looked at. Holds ids, names and figures; neither content nor secrets."""

    state: State
    found: str
    #: What closes the gap, or how to look; empty where there is nothing to do.
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What checks look at."""

    settings: Settings
    engine: Engine
    #: Whether the sums of model files are taken, which reads all of them.
    hashes_models: bool = True


#: May raise what SQLAlchemy and redis-py raise where a server is away: that is then the evidence.
Check = Callable[[Inspection], Iterator[Evidence]]


def met(found: str) -> Evidence:
    return Evidence(state=State.MET, found=found)


def gap(found: str, advice: str) -> Evidence:
    return Evidence(state=State.GAP, found=found, advice=advice)


def unknown(found: str, advice: str = "") -> Evidence:
    return Evidence(state=State.UNKNOWN, found=found, advice=advice)


def is_loopback(host: str) -> bool:
    """Whether this name or address is this machine's own, so that nothing on the way to it can be overheard."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
