from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from seeds import sql
from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import NO_HASH, Fault, list_entries, record, user_of_this_process, verify


def act(number: int) -> None:
    with transaction() as session:
        record(session, act="key.create", object=f"key_{number}", details={"number": number, "names": ["é", None]})


def faults(seq: int | None = None, head: bytes | None = None) -> tuple[Fault, ...]:
    with transaction() as session:
        return verify(session, seq=seq, head=head).faults


def tamper(database: Engine, *statements: str) -> None:
    """As the owner of the database can."""
    sql(database, "ALTER TABLE audit_log DISABLE TRIGGER ALL")
    for statement in statements:
        sql(database, statement)
    sql(database, "ALTER TABLE audit_log ENABLE TRIGGER ALL")


def test_each_act_follows_from_the_one_before(database: Engine) -> None:
    with transaction() as session:
        assert (verify(session).num_entries, verify(session).head) == (0, NO_HASH)
    for number in range(3):
        act(number)

    with transaction() as session:
        found = verify(session)
        newest, *_ = entries = list_entries(session)
    assert (found.num_entries, found.faults) == (3, ())
    assert found.head == newest.hash
    assert [entry.seq for entry in entries] == [3, 2, 1]
    assert (newest.actor, newest.object) == (user_of_this_process(), "key_2")
    assert newest.details == {"number": 2, "names": ["é", None]}


def test_acts_of_many_at_once_are_one_chain(database: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(40)))
    with transaction() as session:
        found = verify(session)
    assert (found.num_entries, found.faults) == (40, ())


def test_an_act_that_is_rolled_back_leaves_no_entry_and_no_gap(database: Engine) -> None:
    act(1)
    with transaction() as session:
        record(session, act="key.create", object="key_2")
        session.rollback()
    act(3)
    with transaction() as session:
        assert [entry.object for entry in list_entries(session)] == ["key_3", "key_1"]
    assert faults() == ()


def test_rows_are_only_ever_added(database: Engine) -> None:
    for change in ("UPDATE {} SET {} = now()", "DELETE FROM {}", "TRUNCATE {}"):
        for table, moment in (("audit_log", "at"), ("erasures", "created_at")):
            with pytest.raises(ProgrammingError, match=f"Rows of {table} are only ever added"):
                sql(database, change.format(table, moment))


@pytest.mark.parametrize(
    ("change", "seq", "found"),
    [
        ("UPDATE audit_log SET actor = 'nobody' WHERE seq = 2", 2, "its content is not what was written"),
        ("UPDATE audit_log SET details = '{}' WHERE seq = 3", 3, "its content is not what was written"),
        ("UPDATE audit_log SET at = at + interval '1 microsecond' WHERE seq = 1", 1, "its content is not"),
        ("DELETE FROM audit_log WHERE seq = 2", 3, "entries 2 to 2 are missing"),
        ("UPDATE audit_log SET hash = sha256('x') WHERE seq = 2", 3, "it does not follow from the entry before"),
    ],
)
def test_a_chain_that_was_changed_names_the_place(database: Engine, change: str, seq: int, found: str) -> None:
    for number in range(4):
        act(number)
    tamper(database, change)
    assert any(fault.seq == seq and fault.found.startswith(found) for fault in faults()), faults()


def test_a_chain_that_was_cut_short_or_written_anew_differs_from_the_head_that_was_noted(database: Engine) -> None:
    for number in range(3):
        act(number)
    with transaction() as session:
        head = verify(session).head
    assert faults(3, head) == ()
    tamper(database, "DELETE FROM audit_log WHERE seq = 3")
    assert faults() == ()
    assert faults(3, head) == (Fault(3, "entries 3 to 3 are missing from the end"),)
    act(7)
    assert faults(3, head) == (Fault(3, "it is not the entry that was noted"),)


def test_a_detail_that_would_not_come_back_as_it_was_is_refused(database: Engine) -> None:
    wrong: list[dict[Any, object]] = [{"price": 0.1}, {"key": b"x"}, {1: "x"}, {"name": "\x00"}, {"deep": [{"x": 0.5}]}]
    for details in wrong:
        with transaction() as session, pytest.raises(TypeError):
            record(session, act="rates.publish", object="card", details=details)


def test_entries_are_found_by_act_and_object(database: Engine) -> None:
    with transaction() as session:
        for name, thing in (("key.create", "key_1"), ("key.revoke", "key_1"), ("keyring.open", "x")):
            record(session, act=name, object=thing)
        assert [entry.act for entry in list_entries(session, act="key")] == ["key.revoke", "key.create"]
        assert [entry.act for entry in list_entries(session, object="key_1", act="key.create")] == ["key.create"]
