from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import random_llama
from running_groups import GROUP, make_settings, running_group, wait_for
from seeds import SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.cli.groups import drain, resume
from pipeline.errors import UserError
from pipeline.tables.migrating import describe_lack, revisions
from workers.backends.echo import EchoEngine

OTHER = "group-1@here"


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), context_length=512)


def claimed_by(database: Engine) -> set[str]:
    return {row[0] for row in sql(database, "SELECT group_id FROM slices WHERE status = 'claimed'")}


def num_unfinished(database: Engine) -> int:
    return int(sql(database, "SELECT count(*) FROM requests WHERE outcome IS NULL")[0][0])


def test_a_drained_group_holds_nothing_until_it_resumes_and_the_others_go_on(
    database: Engine, tenant: SeededTenant, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed_batch(database, tenant, [4] * 10, params={"max_tokens": 60})
    settings = make_settings(drain_seconds=0.2, group_slices=3)  # none of them takes all that there is
    with (
        running_group(database, EchoEngine(folder, tokens_per_second=1_200), settings),
        running_group(database, EchoEngine(folder, tokens_per_second=1_200), settings, OTHER),
    ):
        wait_for(lambda: claimed_by(database) == {GROUP, OTHER})
        drain(group="group-0", wait=True, data_dir=None)
        assert f"{GROUP} is drained: it holds nothing." in capsys.readouterr().out
        assert GROUP not in claimed_by(database)
        seed_batch(database, tenant, [4] * 10, params={"max_tokens": 60})  # the other may have finished the first
        num_before = num_unfinished(database)
        wait_for(lambda: num_unfinished(database) < num_before)
        assert GROUP not in claimed_by(database)
        assert sql(database, "SELECT state FROM groups ORDER BY id") == [("drained",), ("ready",)]

        drain(group=OTHER, wait=True, data_dir=None)
        resume(group=GROUP, data_dir=None)
        seed_batch(database, tenant, [4] * 10, params={"max_tokens": 60})
        wait_for(lambda: claimed_by(database) == {GROUP})
        wait_for(lambda: num_unfinished(database) == 0, timeout=60)
    # Nothing was generated twice, and no finished request was answered again.
    assert sql(database, "SELECT sum(quantity) FROM metered_usage WHERE meter = 'output'") == [(120 * 60,)]
    assert sql(database, "SELECT count(*) FROM attempts WHERE \"end\" = 'lost'") == [(0,)]


def test_a_group_that_starts_while_its_drain_is_wanted_takes_nothing(
    database: Engine, tenant: SeededTenant, folder: Path
) -> None:
    with running_group(database, EchoEngine(folder)):
        drain(group=GROUP, wait=True, data_dir=None)
    seed_batch(database, tenant, [2])
    with running_group(database, EchoEngine(folder)):
        wait_for(lambda: sql(database, "SELECT 1 FROM groups WHERE state = 'drained'"))
        assert num_unfinished(database) == 2
        resume(group=GROUP, data_dir=None)
        wait_for(lambda: num_unfinished(database) == 0)


def test_a_name_that_is_no_group_or_several_is_refused(database: Engine, tenant: SeededTenant, folder: Path) -> None:
    with (
        running_group(database, EchoEngine(folder)),
        running_group(database, EchoEngine(folder), None, "group-0@there"),
    ):
        with pytest.raises(UserError, match="more than one group; name one of group-0@here, group-0@there"):
            drain(group="group-0", wait=True, data_dir=None)
        with pytest.raises(UserError, match="No group 'group-7' runs; there are: group-0@here, group-0@there"):
            resume(group="group-7", data_dir=None)


def test_a_newer_schema_will_do_and_an_older_one_will_not(database: Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    current, wanted = revisions(url)
    assert describe_lack(current, wanted) is None
    assert describe_lack("9999", wanted) is None
    assert describe_lack("0001", wanted) == f"schema 0001, {wanted} wanted"
    assert describe_lack(None, wanted) == f"schema missing, {wanted} wanted"
