"""The log of administrative acts: who did what to this installation, in a chain that shows whether it was changed.

Each entry holds the hash of the one before, and its own covers all of it: whoever changes, removes or adds an entry
must write every later one anew, and the head of the chain is then another. Note the head now and then where nobody who
can write to the database can: `verify` compares. A trigger refuses changes by mistake; it can't keep out the owner of
the database, and the chain is what shows him.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.orm import Session

from pipeline.tables import AuditEntry

#: Before the first entry.
NO_HASH: Final = bytes(32)

#: Of the chain's advisory lock: any number that nothing else locks.
_LOCK: Final = 7_263_010
_COLUMNS: Final = ("seq", "at", "actor", "act", "object", "details", "previous_hash", "hash")
#: Entries that are in memory at once while the chain is verified.
_PAGE: Final = 1_000


@dataclass(frozen=True)
class Fault:
    """An entry that is not as it was written."""

    seq: int
    #: What is wrong with it.
    found: str


@dataclass(frozen=True)
class Verification:
    """What the chain is."""

    num_entries: int
    #: Of the last entry; `NO_HASH` where there is none.
    head: bytes
    faults: tuple[Fault, ...]


def record(
    session: Session | Connection,
    *,
    act: str,
    object: str,
    details: Mapping[str, Any] | None = None,
    actor: str | None = None,
) -> AuditEntry:
    """Add an entry in the caller's transaction, which it is part of: neither is there without the other.

    `act` is `THING.VERB`, such as `key.revoke`; `object` an id or a name; `details` JSON of strings, integers,
    booleans, lists and objects: an amount of money is a string, and a secret has no place here. The actor is the user
    of this process unless told otherwise; a route gives the id of its caller's key. Call it last: whoever records after
    this waits for the transaction to end. Raises TypeError for other details.
    """
    _check(details or {})
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    # A statement of its own: it sees what was committed while the lock was waited for.
    last = session.execute(
        select(AuditEntry.seq, AuditEntry.hash).order_by(AuditEntry.seq.desc()).limit(1)
    ).one_or_none()
    at = session.execute(select(func.clock_timestamp())).scalar_one()
    entry = AuditEntry(
        seq=last.seq + 1 if last else 1,
        at=at,
        actor=actor or user_of_this_process(),
        act=act,
        object=object,
        details=dict(details or {}),
        previous_hash=last.hash if last else NO_HASH,
    )
    entry.hash = hash_of(entry)
    session.execute(insert(AuditEntry).values({name: getattr(entry, name) for name in _COLUMNS}))
    return entry


def verify(session: Session, *, seq: int | None = None, head: bytes | None = None) -> Verification:
    """Go through the whole chain. With `seq` and `head`, the entry of this number must be the one of this hash."""
    faults: list[Fault] = []
    num_entries, before = 0, NO_HASH
    query = select(AuditEntry).order_by(AuditEntry.seq).execution_options(yield_per=_PAGE)
    for entry in session.execute(query).scalars():
        num_entries += 1
        if entry.seq != num_entries:
            faults.append(Fault(entry.seq, f"entries {num_entries} to {entry.seq - 1} are missing"))
            num_entries = entry.seq
        elif entry.previous_hash != before:
            faults.append(Fault(entry.seq, "it does not follow from the entry before"))
        if entry.hash != hash_of(entry):
            faults.append(Fault(entry.seq, "its content is not what was written"))
        if entry.seq == seq and entry.hash != head:
            faults.append(Fault(entry.seq, "it is not the entry that was noted"))
        before = entry.hash
    if seq is not None and num_entries < seq:
        faults.append(Fault(seq, f"entries {num_entries + 1} to {seq} are missing from the end"))
    return Verification(num_entries, before, tuple(faults))


def list_entries(
    session: Session,
    *,
    act: str | None = None,
    object: str | None = None,
    limit: int = 100,
) -> Sequence[AuditEntry]:
    """The last entries, the newest first; of one act (or of a thing, as `key`), or about one object."""
    query = select(AuditEntry).order_by(AuditEntry.seq.desc()).limit(limit)
    if act is not None:
        query = query.where((AuditEntry.act == act) | AuditEntry.act.startswith(f"{act}.", autoescape=True))
    if object is not None:
        query = query.where(AuditEntry.object == object)
    return session.execute(query).scalars().all()


def hash_of(entry: AuditEntry) -> bytes:
    """SHA-256 of an entry's JSON: keys in order, no spaces, moments in UTC with microseconds, bytes in hex."""
    content = {
        "seq": entry.seq,
        "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": entry.actor,
        "act": entry.act,
        "object": entry.object,
        "details": entry.details,
        "previous_hash": entry.previous_hash.hex(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()


def user_of_this_process() -> str:
    """`USER@HOST`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _check(value: Any) -> None:
    """What JSONB gives back as it was."""
    match value:
        case None | bool() | int():
            return
        case str() if "\x00" not in value:
            return
        case list() | tuple():
            for item in value:
                _check(item)
        case Mapping():
            for name, item in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"A name of a detail is a string, and not {type(name).__name__}.")
                _check(item)
        case _:
            raise TypeError(f"A detail of an audit entry can't be {type(value).__name__}: write it as a string.")
