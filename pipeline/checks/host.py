"""What is wanted of the machine itself: open files, shared memory, ports, and the keys of the installation."""

from __future__ import annotations

import ipaddress
import resource
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline.checks.findings import Finding, failed, ok, warning
from pipeline.errors import UserError
from pipeline.settings import PREFIX, Settings
from pipeline.signing import key_path, signing_key
from pipeline.webhooks.addresses import private_networks

#: Open files for each process: connections to clients, to the servers, and pieces of weights.
_OPEN_FILES: Final = 4_096
#: What the ranks of a group exchange between CPUs goes through shared memory.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only looked at
_SHARED_BYTES: Final = 256 * 1024**2
#: Which memory Linux gives large pages to: `always [madvise] never`.
_LARGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: What no tenant should reach: this machine, and what clouds tell their machines.
_LOCAL: Final = tuple(map(ipaddress.ip_address, ("127.0.0.1", "::1", "169.254.169.254")))


def check_open_files() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        advice = "Raise it: `ulimit -n 65536`, or LimitNOFILE of the systemd unit. Uploads and streams fail without."
        yield warning("open files", f"a process may open {soft}, and {_OPEN_FILES} are wanted", advice)
    else:
        yield ok("open files", f"a process may open {'any number' if soft == resource.RLIM_INFINITY else soft}")


def check_shared_memory(folder: Path = _SHARED_MEMORY) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield warning("shared memory", f"{folder}: {error.strerror}", "Groups of several ranks on CPUs need it.")
        return
    if free < _SHARED_BYTES:
        advice = "Make room, or give a container more with --shm-size: groups of several ranks on CPUs need it."
        yield warning("shared memory", f"{free / 1024**2:.0f} MiB are free in {folder}", advice)
    else:
        yield ok("shared memory", f"{free / 1024**2:,.0f} MiB are free in {folder}")


def check_large_pages(setting: Path = _LARGE_PAGES) -> Iterator[Finding]:
    """Nothing where there is no such setting: another system than Linux, or a kernel without."""
    try:
        chosen = setting.read_text()
    except OSError:
        return
    if "[never]" in chosen:
        advice = f"`echo madvise > {setting}`, and start groups again: engines on CPUs read faster."
        yield warning("large pages", "the system gives none", advice)
    else:
        yield ok("large pages", "are given to those who ask for them")


def check_port(subject: str, host: str, port: int, setting: str) -> Iterator[Finding]:
    """Whether something that is none of ours listens where a process of ours would."""
    if port == 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(2)
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what it listens on
        try:
            is_taken = probe.connect_ex((target, port)) == 0
        except OSError:  # the name has no address: said by what wants to listen there
            return
    if is_taken:
        advice = f"End that program, or set {PREFIX}{setting} to another port."
        yield warning(subject, f"something else answers on {host}:{port}", advice)


def check_signing_key(settings: Settings) -> Iterator[Finding]:
    """One that is not there yet is no fault: it is made when it is needed."""
    try:
        path = key_path(settings)
        if not path.exists():
            yield ok("signing key", f"{path} is made when it is first needed")
            return
        key = signing_key(settings)
        mode = stat.S_IMODE(path.stat().st_mode)
    except (UserError, OSError) as error:
        advice = "Receipts, erasures and webhooks need it."
        yield warning("signing key", str(error), advice)
        return
    if mode & 0o077:
        advice = f"Run `chmod 600 {path}`: whoever reads it can sign in your name."
        yield failed("signing key", f"{path} may be used by others (mode {mode:o})", advice)
    else:
        yield ok("signing key", f"{path}, key {key.key_id}")


def check_webhooks(settings: Settings) -> Iterator[Finding]:
    """What tenants can reach through webhooks."""
    for network in private_networks(settings):
        holds_us = any(address in network for address in _LOCAL if address.version == network.version)
        if holds_us or network.prefixlen == 0:
            yield warning(
                "webhooks",
                f"tenants may have {network} called, which holds this machine",
                f"Take it out of {PREFIX}WEBHOOK_PRIVATE_NETWORKS unless all tenants are trusted.",
            )
    if settings.webhook_http:
        advice = f"Set {PREFIX}WEBHOOK_HTTP to false unless the network is trusted."
        yield warning("webhooks", "may go to http:// URLs, which anybody on the way can read", advice)
    elif not settings.webhook_private_networks:
        yield ok("webhooks", "go to public addresses alone, over https")
