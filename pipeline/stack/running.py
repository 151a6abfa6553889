"""`ryzanstein up`: brings a stack up, watches it, and takes it down."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from pipeline.billing.rate_cards import ensure_rate_card
from pipeline.embedded import DATABASE_NAME
from pipeline.settings import Settings, get_settings
from pipeline.stack.data_dir import DataDir
from pipeline.stack.fleet import Fleet
from pipeline.stack.leftovers import end_processes_of
from pipeline.stack.options import StackOptions, devices_of_group
from pipeline.stack.plan import FLOWER_USER, StackPlan
from pipeline.stack.report import own_report
from pipeline.stack.services import applications, servers, stop_stages
from pipeline.stack.state import StackPhase, StackState
from pipeline.stack.supervisor import StopRequests, Supervisor
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine, transaction
from pipeline.telemetry.metrics.targets import announce, forget_targets
from pipeline.tenancy.keys import InvalidKeyError, authenticate, create_key
from pipeline.tenancy.tenants import DEFAULT_TENANT, ensure_tenant

log = logging.getLogger(__name__)

#: How long orphans of a supervisor that was killed may take to end by themselves, in seconds.
_ORPHAN_SECONDS = 10.0


def run_stack(options: StackOptions, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Run a stack until SIGINT or SIGTERM; `on_ready` is given its report once everything answers.

    Nothing of it runs when this returns or raises. Call it from the main thread. Raises UserError if the stack runs
    already, or can't be started.
    """
    devices_of_group(options, options.groups - 1)  # an early word if there are too few
    data_dir = DataDir(options.data_dir)
    with data_dir.locked():
        stop = StopRequests()
        secrets = data_dir.ensure_secrets()
        if orphans := end_processes_of(secrets.stack_id, patience=_ORPHAN_SECONDS):
            log.info("ended %d processes of the last run", orphans)
        _Run(StackPlan.make(options, data_dir, secrets), stop).run(on_ready)


class _Run:
    """One life of a stack."""

    def __init__(self, plan: StackPlan, stop: StopRequests) -> None:
        self._plan = plan
        self._stop = stop
        self._phase = StackPhase.STARTING
        self._api_key = plan.secrets.api_key
        self._supervisor = Supervisor(stop, self._write_state)

    def run(self, on_ready: Callable[[dict[str, Any]], None]) -> None:
        os.environ.update(self._plan.settings())
        get_settings.cache_clear()
        settings = get_settings()  # a wrong one is told now, and not by every process
        fleet = Fleet(self._plan.postgres.url)
        forget_targets(self._plan.data_dir.root)
        try:
            self._supervisor.start(servers(self._plan))
            if not self._stop:
                self._prepare_database(settings)
                self._supervisor.start(applications(self._plan, fleet))
                announce(settings, "flower", "flower", "127.0.0.1", self._plan.flower_port)
            if not self._stop:
                self._phase = StackPhase.READY
                self._write_state()
                on_ready(own_report(self._state(), fleet))
                self._supervisor.run()
        finally:
            self._phase = StackPhase.STOPPING
            fleet.close()
            self._supervisor.stop(*stop_stages(self._plan))
            end_processes_of(self._plan.secrets.stack_id, patience=1.0)
            self._phase = StackPhase.STOPPED
            self._write_state()

    def _prepare_database(self, settings: Settings) -> None:
        """The schema, the first tenant with its key, and a price for the model."""
        self._plan.postgres.create_database(DATABASE_NAME)
        migrate(self._plan.postgres.url)
        engine = make_engine(self._plan.postgres.url, pool_size=1)
        with transaction(engine) as session:
            ensure_rate_card(session, self._plan.options.model_name, settings)
        self._api_key = self._ensure_key(engine)
        engine.dispose()

    def _ensure_key(self, engine: Engine) -> str:
        """The first key of the tenant `default`; another one if it was revoked."""
        with transaction(engine) as session:
            tenant = ensure_tenant(session, DEFAULT_TENANT)
            if self._api_key is not None:
                try:
                    authenticate(session, self._api_key)
                except InvalidKeyError:
                    log.warning("the first key was revoked; a new one is made")
                else:
                    return self._api_key
            # Whoever starts this stack operates it.
            _, key = create_key(session, tenant.id, "first key", is_operator=True)
        self._plan.data_dir.keep_api_key(self._plan.secrets, key)
        return key

    def _state(self) -> StackState:
        plan = self._plan
        return StackState(
            phase=self._phase,
            data_dir=str(plan.data_dir.root),
            model=plan.options.model_name,
            base_url=f"{plan.gateway_url}/v1",
            api_key=self._api_key,
            # Without the driver's name it is good for psql and every driver, ours included.
            database_url=plan.postgres.url.replace("postgresql+psycopg", "postgresql"),
            redis_url=plan.redis.url,
            flower_url=plan.flower_url,
            flower_user=FLOWER_USER,
            flower_password=plan.secrets.flower_password,
            processes=self._supervisor.states(),
        )

    def _write_state(self) -> None:
        try:
            self._state().write(self._plan.data_dir)
        except OSError as error:  # a full disk, say; the stack is worth more than what is said about it
            log.warning("the state of the stack could not be written: %s", error.strerror)
