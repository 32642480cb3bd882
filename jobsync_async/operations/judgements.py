"""What the doctor makes of what it finds. Pure: each function takes facts and returns a `Check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.server_profile import PROFILES, Readings
from jobsync_async.errors import ConfigError, SchemaError
from jobsync_async.postgres.pooler import UNNAMED, keeps_name
from jobsync_async.postgres.schema import LEAST_SERVER
from jobsync_async.postgres.sql import LAYOUT
from jobsync_async.runtime.cluster_status import versions as workers_versions
from jobsync_async.runtime.cluster_status import warnings as version_warnings
from jobsync_async.types import NodeInfo

NO_START = "without it no worker starts"
_MUCH_OF_LIMIT = 0.2
_CLOCK_SEC = 2.0
_LONG_TRANSACTION_SEC = 300
# A rebalance of every token leaves a dead row each, and vacuum comes by once a minute: that is no
# bloat yet.
_DEAD_PER_LIVE = 5
_MEBIBYTE = 1 << 20
_GRANT = "`jobsync-async init --role ROLE`, run as the tables' owner, grants what a worker needs"
# Rows of these are updated in place all the time: what they may take up in sound health.
_SMALL = {"cluster": 4 * _MEBIBYTE, "node": 4 * _MEBIBYTE}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: ``"fail"``: a worker cannot work so. ``"warn"``: it can, but look.
        found: what is so.
        advice: what to do; empty when it is ok.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""

    def plain(self) -> dict[str, str]:
        """As JSON can hold it."""
        return asdict(self)


def version(text: str, number: int) -> Check:
    """The server's version."""
    if number < LEAST_SERVER:
        return Check(
            "server version",
            "fail",
            f"PostgreSQL {text}",
            f"upgrade to {LEAST_SERVER // 10000} or newer",
        )
    return Check("server version", "ok", f"PostgreSQL {text}")


def writable(*, standby: bool, read_only: bool) -> Check:
    """Whether it takes writes."""
    if standby:
        advice = (
            "connect to the primary: name all hosts in the DSN, with "
            "target_session_attrs=read-write"
        )
        return Check("writable", "fail", "this server is a standby", advice)
    if read_only:
        advice = "enough for an observer; a worker's role needs default_transaction_read_only = off"
        return Check("writable", "warn", "sessions of this role are read-only", advice)
    return Check("writable", "ok", "the primary, and it takes writes")


def encoding(name: str) -> Check:
    """The database's encoding."""
    if name == "SQL_ASCII":
        return Check("encoding", "fail", name, "create the database anew with ENCODING 'UTF8'")
    return Check("encoding", "ok", name)


def durability(*, fsync: bool, full_page_writes: bool) -> Check:
    """Whether a crash of the server loses what was acknowledged."""
    off = [
        name for name, on in (("fsync", fsync), ("full_page_writes", full_page_writes)) if not on
    ]
    if off:
        advice = (
            "switch it on: a crash of the server may forget owners, pins and completions that it "
            "had acknowledged"
        )
        return Check("durability", "warn", f"{' and '.join(off)} off", advice)
    return Check("durability", "ok", "what is acknowledged survives a crash of the server")


def recognition(
    readings: Readings, evidence: str | None, *, timeline: bool, setting: str | None
) -> Check:
    """By what the server is recognised, and what a failover does here."""
    profile = PROFILES[readings.profile]
    found = (
        f"profile {profile.name}{f' ({evidence})' if evidence else ''}: recognised by "
        f"{readings.recognised_by}; {profile.failover}; not recognised: {profile.misses}"
    )
    if profile.shared_storage and timeline and evidence is None:
        advice = (
            "this server says its timeline, and nothing shows that its storage is shared: if it "
            "has replicas that can take over, lost commits would not be noticed; then leave "
            "server_profile out"
        )
        return Check("failover", "warn", found, advice)
    if profile.name == "start-time" and timeline and setting is not None:
        advice = "this server says its timeline: without server_profile a restart stops nobody"
        return Check("failover", "warn", found, advice)
    return Check("failover", "warn" if readings.advice else "ok", found, readings.advice)


def unrecognised(error: ConfigError | SchemaError) -> Check:
    """It cannot be found out by what the server is recognised; the error says what to do."""
    return Check("failover", "fail", str(error), NO_START)


def connections(used: int, most: int) -> Check:
    """How many are left."""
    found = f"{used} of {most} in use"
    if used > 0.8 * most:
        return Check(
            "connections",
            "warn",
            found,
            "raise max_connections: a worker keeps 2, and opens up to 6 more for a while",
        )
    return Check("connections", "ok", found)


def idle_sessions(timeout: str) -> Check:
    """Whether the server ends connections that only listen."""
    if timeout not in ("0", "0ms", "0s"):
        advice = (
            "workers switch it off for their own sessions, but those of 0.1.0 do not: while there "
            "are any, set idle_session_timeout = 0 for their role, for a connection that listens "
            "is idle while nothing happens"
        )
        return Check("idle sessions", "warn", f"ended after {timeout}", advice)
    return Check("idle sessions", "ok", "never ended")


def session_names(asked: str, found: str) -> Check:
    """Whether the server knows sessions by the names that they were given."""
    if not keeps_name(asked, found):
        return Check("session names", "warn", f"{found!r} instead of a worker's", UNNAMED)
    return Check("session names", "ok", "as they were given")


def queue(usage: float) -> Check:
    """How full the server's queue of notifications is."""
    found = f"{100 * usage:.0f} % full"
    if usage > 0.5:
        advice = (
            "some session listens and stays in a transaction: end it, for at 100 % no change can "
            "be announced any more, and workers find it only with their next heartbeat or look"
        )
        return Check("notification queue", "fail" if usage > 0.9 else "warn", found, advice)
    return Check("notification queue", "ok", found)


def lease(config: CoordinationConfig, round_trip_sec: float) -> Check:
    """The rule that makes leases safe holds for every `CoordinationConfig`; whether heartbeats are
    fast enough for it."""
    found = (
        f"expired after {config.heartbeat_timeout_sec:g} s, may act for {config.lease_sec:g} s "
        f"after a heartbeat, sends one every {config.heartbeat_interval_sec:g} s; a round trip "
        f"takes {1000 * round_trip_sec:.1f} ms"
    )
    if round_trip_sec > _MUCH_OF_LIMIT * config.statement_limit_sec:
        return Check(
            "lease",
            "warn",
            found,
            "raise heartbeat_timeout_sec: late answers cost a good part of the lease",
        )
    return Check("lease", "ok", found)


def clock(offset_sec: float) -> Check:
    """The server's clock against ours."""
    found = f"the server's is {abs(offset_sec):.3f} s {'ahead' if offset_sec >= 0 else 'behind'}"
    if abs(offset_sec) > _CLOCK_SEC:
        advice = (
            "set the clocks by NTP; nothing is decided by them, but times in logs and status "
            "mislead"
        )
        return Check("clock", "warn", found, advice)
    return Check("clock", "ok", found)


def polling(every_sec: float) -> Check:
    """Where no notification is waited for."""
    return Check("push", "ok", f"not used: changes are polled for every {every_sec:g} s")


def push(took_sec: float | None, *, through_pooler: bool) -> Check:
    """Whether a notification comes back, and how long it took."""
    behind = " through a pooler" if through_pooler else ""
    if took_sec is None:
        advice = (
            "connect directly or through a pooler in session mode, for LISTEN needs a session of "
            "its own; or set notify=False"
        )
        return Check(
            "push",
            "fail",
            f"no notification arrives{behind or ', as through a pooler in transaction mode'}",
            advice,
        )
    return Check("push", "ok", f"NOTIFY to LISTEN took {1000 * took_sec:.1f} ms{behind}")


def tables(schema: str, missing: Sequence[str], total: int, *, schema_exists: bool) -> Check:
    """Whether they are all there."""
    if not schema_exists:
        return Check(
            "tables",
            "fail",
            f"there is no schema {schema!r}",
            "create it, or give another one with --schema",
        )
    if len(missing) == total:
        advice = (
            "`jobsync-async init` makes them, and so does the first worker; or give another "
            "--appname or --schema"
        )
        return Check("tables", "fail", f"none in schema {schema!r}", advice)
    if missing:
        return Check(
            "tables",
            "fail",
            f"missing: {', '.join(missing)}",
            "`jobsync-async init` makes what is missing",
        )
    return Check("tables", "ok", f"all {total} in schema {schema!r}")


def rights(found: Sequence[Any], *, uses_schema: bool) -> Check:
    """What this role may do. Rows have ``table``, ``reads``, ``writes`` and, of what a worker
    needs, what it ``lacks``."""
    if not uses_schema:
        return Check(
            "rights",
            "fail",
            "this role may not use the schema",
            "GRANT USAGE ON SCHEMA … TO the role",
        )
    unread = [row.table for row in found if not row.reads]
    if unread:
        return Check(
            "rights",
            "fail",
            f"may not read {', '.join(unread)}",
            "GRANT SELECT ON these tables TO the role",
        )
    if not any(row.writes for row in found):
        return Check(
            "rights",
            "warn",
            "may look, but not write: an observer's role",
            f"if it is a worker's: {_GRANT}",
        )
    lacking = [f"{', '.join(row.lacks)} on {row.table}" for row in found if row.lacks]
    if lacking:
        return Check("rights", "fail", f"a worker needs also {'; '.join(lacking)}", _GRANT)
    return Check("rights", "ok", "may do all that a worker does")


def settings(rows: Sequence[Any]) -> Check:
    """The cluster row. Rows have ``schema_version``, ``layout``, ``total_tokens`` and
    ``hash_function``."""
    if not rows:
        advice = "the first worker writes them, and so does `jobsync-async init`"
        return Check("table version", "warn", "no settings yet: no worker has ever started", advice)
    row = rows[0]
    layouts = f"layout {row.layout}, for workers that know at least layout {row.schema_version}"
    found = f"{layouts}; {row.total_tokens:,} tokens, hash function {row.hash_function}"
    if row.schema_version > LAYOUT:
        return Check(
            "table version",
            "fail",
            found,
            "install the version of jobsync-async that the workers run",
        )
    if row.layout < LAYOUT:
        advice = (
            f"run `jobsync-async init`, which expands them to layout {LAYOUT}: older workers go on "
            "meanwhile"
        )
        return Check("table version", "fail", found, advice)
    return Check("table version", "ok", found)


def versions(nodes: Sequence[NodeInfo], schema_version: int) -> Check:
    """The workers' versions."""
    found = (
        "; ".join(
            f"{one['library']}: {len(one['nodes'])} workers" for one in workers_versions(nodes)
        )
        or "no worker is there"
    )
    if said := version_warnings(nodes, schema_version):
        return Check("versions", "warn", found, "; ".join(said))
    return Check("versions", "ok", found)


def bloat(appname: str, sizes: Sequence[Any]) -> Check:
    """Rows that vacuum has yet to remove. Rows have ``table``, ``bytes``, ``live`` and ``dead``."""
    swollen = [
        f"{row.table} ({row.bytes / _MEBIBYTE:.1f} MiB, {row.dead:,} dead rows)"
        for row in sizes
        if row.dead > max(20_000, _DEAD_PER_LIVE * row.live)
        or row.bytes > _SMALL.get(row.table.removeprefix(appname), row.bytes)
    ]
    if swollen:
        advice = (
            "look for old transactions that hold vacuum back, then VACUUM these tables (FULL only "
            "while no worker runs)"
        )
        return Check("bloat", "warn", "; ".join(swollen), advice)
    total = sum(row.bytes for row in sizes)
    return Check(
        "bloat",
        "ok",
        f"{total / _MEBIBYTE:.1f} MiB in all, {sum(row.dead for row in sizes):,} dead rows",
    )


def transactions(rows: Sequence[Any]) -> Check:
    """The oldest transaction. Rows have ``pid``, ``application_name``, ``state`` and
    ``seconds``."""
    if rows and rows[0].seconds is not None and rows[0].seconds > _LONG_TRANSACTION_SEC:
        row = rows[0]
        found = (
            f"pid {row.pid} ({row.application_name or 'without a name'}) is {row.state} since "
            f"{row.seconds:.0f} s"
        )
        return Check(
            "transactions",
            "warn",
            found,
            "end it: it keeps vacuum from removing old rows, and may hold a fence's lock",
        )
    return Check("transactions", "ok", "none is old")
