"""The controls: what is done, which clauses it serves, how it is looked at, and what is still missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pipeline.compliance import access, content, integrity, operations, transport
from pipeline.compliance.evidence import Check


class Framework(StrEnum):
    SOC2 = "SOC 2"  #: AICPA's Trust Services Criteria of 2017, with the points of focus of 2022.
    GDPR = "GDPR"  #: Regulation (EU) 2016/679.
    HIPAA = "HIPAA"  #: 45 CFR part 164, subpart C.


@dataclass(frozen=True, kw_only=True)
class Control:
    """One thing that is done about security."""

    #: For programs, and for the links of people.
    id: str
    title: str
    #: What is done, whatever the settings.
    statement: str
    soc2: tuple[str, ...] = ()
    gdpr: tuple[str, ...] = ()
    hipaa: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    #: What this version does not do about it, whatever the settings.
    missing: tuple[str, ...] = ()
    #: What no software can do.
    duties: tuple[str, ...] = field(default=())

    def clauses(self, framework: Framework) -> tuple[str, ...]:
        return {Framework.SOC2: self.soc2, Framework.GDPR: self.gdpr, Framework.HIPAA: self.hipaa}[framework]


CONTROLS: Final = (
    Control(
        id="tenant-access",
        title="A tenant reaches its own data, and nothing of another's",
        statement=(
            "Every call but those of health and of the API's description carries a key of one tenant; every query "
            "names that tenant; what belongs to another is answered like what is not there. Prefixes in a KV cache "
            "are shared within a tenant alone. A key can be limited to scopes, to a project and to a time, is "
            "kept as its SHA-256, compared in constant time, and refused from the first call after it was revoked or "
            "has expired; a test tries every route with ids of other tenants and projects. A session of the console is "
            "its key's and can do no more; it ends with it, and by itself."
        ),
        soc2=("CC6.1", "CC6.2", "CC6.3"),
        gdpr=("25", "32(1)(b)"),
        hipaa=("164.308(a)(4)(i)", "164.312(a)(1)", "164.312(a)(2)(i)", "164.312(a)(2)(iii)", "164.312(d)"),
        checks=(access.check_keys, access.check_sessions),
        missing=("Tenants are separated by our queries alone; PostgreSQL's row-level security is no second net.",),
        duties=("Hand keys out to people and programs whom you know, and review them.",),
    ),
    Control(
        id="guessed-keys",
        title="Keys can't be guessed",
        statement=(
            "A key has 192 random bits. An address that fails often is answered by 429; a right key passes all the "
            "same. What is wrong about a key is not said, and an unknown one is compared like a known one."
        ),
        soc2=("CC6.1", "CC6.6"),
        gdpr=("32(1)(b)",),
        hipaa=("164.312(d)",),
        checks=(access.check_guessing,),
        missing=("Each gateway process counts for itself, and nobody is told of an address that keeps failing.",),
    ),
    Control(
        id="operator-access",
        title="Operators and processes have what they need of the servers",
        statement=(
            "Operators act through the command line with the servers' passwords. A key that was made an operator's "
            "shows groups, the queue and all tenants' totals in the console, drains groups and sets budgets there, and "
            "reads nobody else's content; acts are logged by the id of the key. Flower shows and changes nothing. "
            "Groups fetch their work: the only port that they open to others is that of their health."
        ),
        soc2=("CC6.1", "CC6.2", "CC6.3", "CC6.6"),
        gdpr=("25", "29", "32(1)(b)", "32(4)"),
        hipaa=("164.308(a)(3)(i)", "164.308(a)(4)(i)", "164.312(a)(1)"),
        checks=(
            access.check_operator_keys,
            access.check_database_role,
            access.check_redis_user,
            access.check_flower,
            access.check_data_dir,
        ),
        missing=(
            "Operators have no accounts, roles or second factor here: whoever has the database's password may do "
            "everything.",
            "All processes share one role of PostgreSQL: a group may read what other models were asked.",
            "Flower's password may be tried without a limit.",
        ),
        duties=("Give the passwords to few, by a store of secrets; take them back from who leaves.",),
    ),
    Control(
        id="transport",
        title="What leaves a machine is encrypted on its way",
        statement=(
            "PostgreSQL and Redis are used over TLS where their addresses say so; certificates and hosts are then "
            "verified, and client certificates shown. Ranks of a group talk within their machine."
        ),
        soc2=("CC6.6", "CC6.7"),
        gdpr=("32(1)(a)",),
        hipaa=("164.312(e)(1)", "164.312(e)(2)(i)", "164.312(e)(2)(ii)"),
        checks=(
            transport.check_postgres_tls,
            transport.check_redis_tls,
            transport.check_gateway_tls,
            transport.check_storage_tls,
        ),
        missing=("The gateway, Flower and the health of groups speak plain HTTP: a proxy ends TLS before them.",),
    ),
    Control(
        id="encryption-at-rest",
        title="What is stored is encrypted",
        statement="Keys of tenants are stored as hashes. All else is stored as it is.",
        soc2=("CC6.1", "CC6.7", "C1.1"),
        gdpr=("32(1)(a)",),
        hipaa=("164.312(a)(2)(iv)",),
        checks=(content.check_rest,),
        missing=("Prompts, answers and uploads are not encrypted by this service, neither as a whole nor by tenant.",),
        duties=("Encrypt the disks, the bucket and the copies.",),
    ),
    Control(
        id="minimal-exposure",
        title="Content and secrets are only where they must be",
        statement=(
            "Redis carries ids of batches and names of models. Logs, errors, tasks, Flower, metrics and command lines "
            "hold neither prompts, answers, keys nor passwords; secrets come by the environment or by files of their "
            "owner's."
        ),
        soc2=("CC6.1", "C1.1"),
        gdpr=("5(1)(c)", "25", "32(1)(b)"),
        hipaa=("164.312(a)(1)",),
        checks=(content.check_logs, content.check_places),
    ),
    Control(
        id="retention",
        title="Content is kept no longer than it is needed",
        statement=(
            "An upload for a batch is deleted when its time has come, by default after 30 days; a tenant may say "
            "sooner, for output files too, and may delete files. Partial answers are deleted with the outcome. "
            "`ryzanstein tenants erase` removes all content of a tenant, keeps the numbers of its bills, and leaves a "
            "signed record; months that are no longer kept are dropped whole."
        ),
        soc2=("CC6.5", "C1.2", "P4.2", "P4.3"),
        gdpr=("5(1)(e)", "17", "28(3)(g)"),
        hipaa=("164.310(d)(2)(i)",),
        checks=(content.check_retention, content.check_erasures),
        missing=(
            "A prompt's token ids and its answer stay in SQL when their files are deleted or expire: such a file is "
            "only shown no more.",
            "There is no command that erases a single batch or request, and none that finds a person's data.",
        ),
        duties=("Answer people who ask for their data, or for its erasure.",),
    ),
    Control(
        id="integrity",
        title="Every request has one outcome and one bill, and nothing changes afterwards",
        statement=(
            "Result, usage, price and ledger are written in one transaction, under a lease whose epoch is checked. "
            "Usage and ledger are added to and never edited. `ryzanstein audit` holds all of it against itself."
        ),
        soc2=("PI1.1", "PI1.3", "PI1.4", "PI1.5"),
        gdpr=("5(1)(d)", "5(1)(f)"),
        hipaa=("164.312(c)(1)", "164.312(c)(2)"),
        checks=(integrity.check_audit, integrity.check_durability),
        missing=("Rows are not sealed: who has the database's password can change them, and the audit as well.",),
    ),
    Control(
        id="hostile-input",
        title="What clients send can neither break the service nor reach beyond it",
        statement=(
            "Bodies, lines, tokens and time are limited before anything is allotted; each line is checked against a "
            "schema; chat templates run in a sandbox with limits of time and size; messages are JSON and can't carry "
            "code. A request that crashes its engine fails alone. What a tenant calls in a minute and has enqueued can "
            "be limited, and groups serve tenants by their shares."
        ),
        soc2=("CC6.6", "CC6.8", "PI1.2", "A1.1"),
        gdpr=("32(1)(b)",),
        hipaa=("164.308(a)(5)(ii)(B)",),
        checks=(operations.check_limits,),
        missing=("While Redis is away, calls are not counted; what is enqueued is, by SQL.",),
    ),
    Control(
        id="model-supply",
        title="Models are data, and the ones that are meant",
        statement=(
            "Weights are read from safetensors alone; pickles are never opened, and code that comes with a model is "
            "never run."
        ),
        soc2=("CC6.8", "CC7.1", "CC8.1"),
        gdpr=("32(1)(b)",),
        hipaa=("164.308(a)(5)(ii)(B)", "164.312(c)(1)"),
        checks=(integrity.check_models,),
        missing=("A group compares the files that it loads with no list of sums.",),
        duties=("Compare the sums with those of the model's maker; mount models read-only.",),
    ),
    Control(
        id="changes",
        title="Changes are known and can be undone",
        statement=(
            "The schema changes by numbered revisions, without long locks and while batches run. An unknown setting "
            "is an error. Versions of all packages are pinned."
        ),
        soc2=("CC7.1", "CC8.1"),
        gdpr=("32(1)(b)", "32(1)(d)"),
        hipaa=("164.308(a)(8)",),
        checks=(integrity.check_schema, operations.check_releases),
        missing=("Known holes of the Python packages are not looked up.",),
        duties=("Say who may release, and keep a record of what was.",),
    ),
    Control(
        id="traces",
        title="What was done can be found out",
        statement=(
            "Every call of the API is logged with its id, tenant, key, path and status; attempts, outcomes, usage and "
            "bills stay in SQL with their times; keys know when they were made, last used and revoked. Administrative "
            "acts are logged with who did them, in a chain of hashes (`ryzanstein audit verify`)."
        ),
        soc2=("CC7.2", "CC7.3"),
        gdpr=("5(2)", "33(5)"),
        hipaa=("164.308(a)(1)(ii)(D)", "164.312(b)"),
        checks=(content.check_log_collection, integrity.check_acts),
        missing=(
            "Operators are named by the user and host of the command line, which they choose; whoever owns the "
            "database can write the log of their acts anew, which shows only against a head that was noted elsewhere.",
            "Logs go to the standard error of each process; nothing here keeps or seals them.",
        ),
        duties=(
            "Collect the logs, keep them for as long as your rules ask, and read them.",
            "Note the head of the log of administrative acts now and then, where no operator can change it.",
        ),
    ),
    Control(
        id="availability",
        title="The service goes on, and comes back",
        statement=(
            "PostgreSQL is the only thing that must not be lost. Any process may die at any moment; what ran is run "
            "again elsewhere once, and is billed once."
        ),
        soc2=("A1.1", "A1.2", "A1.3", "CC7.5", "CC9.1"),
        gdpr=("32(1)(b)", "32(1)(c)"),
        hipaa=("164.308(a)(7)(i)", "164.308(a)(7)(ii)(A)", "164.308(a)(7)(ii)(B)", "164.312(a)(2)(ii)"),
        checks=(operations.check_groups, operations.check_copies),
        missing=("Copies of PostgreSQL and of the uploads are not made by this service.",),
        duties=("Make copies, and try to restore them.",),
    ),
    Control(
        id="incidents",
        title="Somebody is told when something is wrong",
        statement=(
            "`ryzanstein doctor` and `/readyz` of gateway and groups say what is wrong and what to do; each error of "
            "the API has an id that its log line has too."
        ),
        soc2=("CC7.3", "CC7.4"),
        gdpr=("33", "34"),
        hipaa=("164.308(a)(6)(i)", "164.308(a)(6)(ii)"),
        missing=("No alarm is sent by this service, and no breach is detected by it.",),
        duties=("Watch readiness and logs; know whom to tell within 72 hours, and within 60 days under HIPAA.",),
    ),
    Control(
        id="processors",
        title="Who processes content is known",
        statement=(
            "Self-hosted: content goes to the servers that the settings name and nowhere else. Nothing is reported to "
            "anybody; a model given by its name is fetched from the hub, which sees that name."
        ),
        soc2=("CC9.2",),
        gdpr=("28", "30"),
        hipaa=("164.308(b)(1)", "164.314(a)"),
        checks=(content.check_places,),
        duties=("Agree in writing with tenants and with whoever hosts the servers; keep the records of Art. 30.",),
    ),
)
