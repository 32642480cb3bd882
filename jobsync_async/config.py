"""The settings of a cluster, and the relations between them."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async.core.hashing import HASH_FUNCTIONS
from jobsync_async.core.lease import Times, lease_sec
from jobsync_async.core.numbers import check_days, check_seconds, check_whole
from jobsync_async.core.server_profile import Profile, check_profile
from jobsync_async.environment import FromEnvironment, forgetful
from jobsync_async.errors import ConfigError

# PostgreSQL cuts names at 63 bytes without a word. The longest name made from the prefix is that of
# an index.
_MAX_NAME_BYTES = 63
_MAX_APPNAME = _MAX_NAME_BYTES - len("token_next_node_idx")
_MAX_TOKENS = 1_000_000
_PREFIX = r"[a-z_][a-z0-9_]*"

# libpq 14 was the first to tell a primary by its role instead of by what the session may do.
_KNOWS_PRIMARY = 140000
_SHOWN = ("host", "hostaddr", "port", "dbname", "user")

# Set so that a dead network is noticed within a lease; what the DSN or the environment says wins.
_CONNECTION_DEFAULTS = {
    "target_session_attrs": "read-write",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}

# In a URI, credentials end at the only unencoded @, and no / comes before it.
_URI_WITH_ANOTHER_AT = re.compile(
    r"\s*postgres(?:ql)?://(?:[^@?]*/[^@?]*@|[^@/]*@[^?]*@)", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class CoordinationConfig(FromEnvironment):
    """How to reach PostgreSQL, and how a worker behaves.

    Making one checks the values and their relations and does no I/O. `total_tokens` and
    `hash_function` must be the same for all workers of a cluster; what else may differ, and what
    follows from that, is in docs/usage.md. `from_env` makes one from environment variables.

    Attributes:
        host, port, dbname, user, password: None leaves it to libpq's environment and files.
        dsn: a libpq URI or keyword string instead of those five; may name several hosts.
        appname: prefix of every table, channel and advisory-lock key: several clusters share a
            database by it.
        schema: schema of the tables; None takes the first one on the connection's ``search_path``
            at start.
        total_tokens: 1 to 1,000,000; fixed for the life of the cluster.
        hash_function: ``"double_sha256"``, ``"sha256"``, ``"md5"`` or ``"modulo"``; fixed for the
            life of the cluster.
        minimum_nodes: a forming cluster hands out no tokens before so many workers are live.
        heartbeat_interval_sec: seconds between heartbeats.
        heartbeat_timeout_sec: seconds without one after which others expire this worker; its lease
            is a fifth shorter. At most the cluster's bound, which the first worker sets, and
            ``jobsync-async bound`` changes.
        rebalance_check_interval_sec: seconds between the leader's checks that no push was missed.
        rebalance_delay_sec: joins this close together are one rebalance.
        handoff_timeout_sec: seconds that work under way on a revoked token may go on before it is
            cancelled.
        on_handoff_timeout: what to do about work that ignores even that. ``"wait"``: its token
            waits for it, and is shown as stuck. ``"leave"``: the worker hands on everything else
            and ends with `CoordinationError`, one heartbeat interval later; the token is free when
            its lease is over.
        notify: False where LISTEN cannot work, behind a pooler in transaction mode: changes are
            then found by polling, and nothing of a session is relied on.
        poll_interval_sec: seconds between two looks for a change, when `notify` is False.
        failover: ``"lease"``: a worker that cannot be seen to be dead is expired after the timeout.
            ``"session"``: a worker whose database session is gone and does not come back is expired
            within two seconds, which is safe for what is fenced, but not always for what is not:
            see docs/session-failover.md.
        predecessor: the `appname` of a jobsync cluster in this database that this one replaces.
            While a worker of it lives, a worker here holds nothing: `start` waits for them to
            leave, up to ``wait_on_enter``, and if one comes later, this one hands on. See
            docs/how-to/migrate-from-jobsync.md, also for what that cannot see.
        server_profile: how the server is recognised, where it does not show it by itself. None for
            most servers: PostgreSQL and its like by ``"timeline"``, Aurora by ``"shared-storage"``.
            ``"start-time"``: each start of the server counts as a failover that lost commits. All
            workers must agree; one without the setting takes what the cluster was begun with. See
            docs/how-to/managed-servers.md.
        time_zone: an IANA name, such as ``"Europe/Berlin"``. The cluster's date is what the
            server's clock says there. Every worker must give the same.
        keep_history_days: the leader deletes what is older from the history (``jobsync-async
            history``), by the server's clock; None keeps all of it.

    Raises:
        ConfigError: a value, or a relation between two, cannot work. The message says what to
            change.
    """

    host: str | None = None
    port: int | None = None
    dbname: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    dsn: str | None = field(default=None, repr=False)
    appname: str = "sync_"
    schema: str | None = None
    total_tokens: int = 10_000
    hash_function: str = "double_sha256"
    minimum_nodes: int = 1
    heartbeat_interval_sec: float = 5
    heartbeat_timeout_sec: float = 15
    rebalance_check_interval_sec: float = 30
    rebalance_delay_sec: float = 0.1
    handoff_timeout_sec: float = 30
    on_handoff_timeout: Literal["wait", "leave"] = "wait"
    notify: bool = True
    poll_interval_sec: float = 1
    failover: Literal["lease", "session"] = "lease"
    predecessor: str | None = None
    server_profile: Profile | None = None
    time_zone: str = "UTC"
    keep_history_days: float | None = 30

    def __repr__(self) -> str:
        """What differs from the defaults; of a DSN, where it leads and nothing that could be
        secret."""
        parts = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "password" and (value != one.default or one.name == "appname"):
                parts[one.name] = value
        if self.dsn is not None:
            parts["dsn"] = "cannot be used"
            with suppress(ConfigError):
                given = _checked_dsn(self.dsn)
                parts["dsn"] = " ".join(
                    f"{name}={given[name]}" for name in _SHOWN if given.get(name)
                )
        return (
            f"CoordinationConfig({', '.join(f'{name}={value!r}' for name, value in parts.items())})"
        )

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        self._check_connection()

    @property
    def lease_sec(self) -> float:
        """How long a worker may act after sending a heartbeat that was acknowledged."""
        return lease_sec(self.heartbeat_timeout_sec)

    @property
    def times(self) -> Times:
        """What this worker's row says of it, by which all others judge it."""
        return Times(self.heartbeat_timeout_sec, self.heartbeat_interval_sec)

    @property
    def statement_limit_sec(self) -> float:
        """How long a heartbeat may take on the server, so that a second try still fits into the
        lease."""
        return min(10.0, max(0.25, self.lease_sec / 4))

    @property
    def bulk_limit_sec(self) -> float:
        """How long a statement that may touch every token may take, and how long others may wait
        for its locks."""
        return self.statement_limit_sec + self.total_tokens / 50_000

    @property
    def channel(self) -> str:
        """The NOTIFY channel on which changes are announced where the cluster's row names none."""
        return f"{self.appname}changes"

    def conninfo(self, purpose: str, tag: str | None = None, *, reads_only: bool = False) -> str:
        """The libpq connection string, with `purpose` in the session's ``application_name``. Holds
        the password.

        Args:
            tag: is put where it is not cut off, also into a name that was given.
            reads_only: for sessions that write nothing: they need the primary, but not the right to
                write there.
        """
        given = conninfo_to_dict(self.dsn) if self.dsn is not None else self._fields()
        defaults = dict(_CONNECTION_DEFAULTS)
        if reads_only:
            defaults["target_session_attrs"] = (
                "primary" if psycopg.pq.version() >= _KNOWS_PRIMARY else "any"
            )
        defaults["connect_timeout"] = str(max(2, math.ceil(self.statement_limit_sec)))
        defaults["tcp_user_timeout"] = str(round(self.statement_limit_sec * 1000))
        defaults["application_name"] = " ".join(filter(None, ("jobsync_async", tag, purpose)))
        ours = {"client_encoding": "UTF8"}  # whatever the server's encoding, ids travel as UTF-8
        # Cut at 63 bytes, a character outside ASCII being four of them.
        if tag is not None and "application_name" in given:
            name = str(given["application_name"]).encode("ascii", "replace").decode()
            ours["application_name"] = f"{name:.40} {tag}"
        return make_conninfo("", **{**defaults, **given, **ours})

    def _fields(self) -> dict[str, str | int]:
        named = {
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "user": self.user,
            "password": self.password,
        }
        return {name: value for name, value in named.items() if value is not None}

    def _check_names(self) -> None:
        if not isinstance(self.appname, str) or not re.fullmatch(_PREFIX, self.appname, re.ASCII):
            raise ConfigError(
                "appname must match [a-z_][a-z0-9_]*, for it begins the names of tables; got "
                f"{self.appname!r}"
            )
        if len(self.appname) > _MAX_APPNAME:
            raise ConfigError(
                f"appname may have at most {_MAX_APPNAME} characters, for PostgreSQL cuts longer "
                f"names; {self.appname!r} has {len(self.appname)}"
            )
        if self.predecessor is not None:
            self._check_predecessor()
        if self.schema is not None and (
            not isinstance(self.schema, str)
            or not self.schema
            or not _is_text(self.schema)
            or "%" in self.schema  # drivers take it for the start of a parameter
            or len(self.schema.encode()) > _MAX_NAME_BYTES
        ):
            raise ConfigError(
                f"schema must be a name of 1 to {_MAX_NAME_BYTES} bytes without NUL and percent "
                f"signs, or None; got {self.schema!r:.100}"
            )
        if self.hash_function not in HASH_FUNCTIONS:
            raise ConfigError(
                f"hash_function must be one of {', '.join(HASH_FUNCTIONS)}; got "
                f"{self.hash_function!r}"
            )
        if self.on_handoff_timeout not in ("wait", "leave"):
            raise ConfigError(
                f'on_handoff_timeout must be "wait" or "leave"; got {self.on_handoff_timeout!r}'
            )
        if not isinstance(self.notify, bool):
            raise ConfigError(f"notify must be True or False; got {self.notify!r}")
        if self.failover == "session" and not self.notify:
            raise ConfigError(
                'failover="session" needs sessions of its own, which notify=False says there are '
                'not; use failover="lease"'
            )
        if self.failover not in ("lease", "session"):
            raise ConfigError(f'failover must be "lease" or "session"; got {self.failover!r}')
        check_profile(self.server_profile)
        _check_time_zone(self.time_zone)

    def _check_predecessor(self) -> None:
        if not isinstance(self.predecessor, str) or not re.fullmatch(
            _PREFIX, self.predecessor, re.ASCII
        ):
            raise ConfigError(
                "predecessor must be the appname of a jobsync cluster, such as 'sync_'; got "
                f"{self.predecessor!r}"
            )
        if self.predecessor == self.appname and self.schema is None:
            raise ConfigError(
                f"appname and predecessor are both {self.appname!r}: the tables would have the "
                "same names; use another appname, such as 'jobs_', or another schema"
            )

    def _check_numbers(self) -> None:
        check_whole("total_tokens", self.total_tokens, 1, _MAX_TOKENS)
        check_whole("minimum_nodes", self.minimum_nodes, 1, 100_000)
        for name in (
            "heartbeat_interval_sec",
            "heartbeat_timeout_sec",
            "rebalance_check_interval_sec",
            "poll_interval_sec",
        ):
            check_seconds(name, getattr(self, name), zero=False)
        for name in ("rebalance_delay_sec", "handoff_timeout_sec"):
            check_seconds(name, getattr(self, name), zero=True)
        if self.keep_history_days is not None:
            check_days("keep_history_days", self.keep_history_days)
        if 2 * self.heartbeat_interval_sec > self.lease_sec:
            raise ConfigError(
                f"heartbeat_interval_sec={self.heartbeat_interval_sec:g} is too long for "
                f"heartbeat_timeout_sec={self.heartbeat_timeout_sec:g}: the lease is "
                f"{self.lease_sec:g} s and must outlast two intervals, or one late heartbeat would "
                f"end it; use an interval of at most {self.lease_sec / 2:g}"
            )

    def _check_connection(self) -> None:
        given = sorted(self._fields())
        if self.dsn is not None and given:
            raise ConfigError(f"give either dsn or {', '.join(given)}, not both")
        if self.port is not None:
            check_whole("port", self.port, 1, 65535)
        for name in ("host", "dbname", "user", "password"):
            value = getattr(self, name)
            if value is not None and not _is_text(value):
                raise ConfigError(
                    f"{name} must be a string that UTF-8 can encode, without NUL characters, or "
                    "None"
                )
        if self.dsn is not None:
            _checked_dsn(self.dsn)


def _check_time_zone(name: object) -> None:
    """Raise ConfigError for what is no time zone. Where this machine has no list of them, the
    server has the last word."""
    if name == "UTC":
        return
    refusal = ConfigError(
        f'time_zone must be an IANA name, such as "UTC" or "Europe/Berlin"; got {name!r:.100}'
    )
    if not isinstance(name, str) or not re.fullmatch(
        r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name, re.ASCII
    ):
        raise refusal
    import zoneinfo  # noqa: PLC0415 - most clusters keep the default

    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError):  # such as "Europe", a folder of zones
        if zoneinfo.available_timezones():
            raise refusal from None


def _checked_dsn(dsn: object) -> dict[str, Any]:
    """The parts of a DSN. Raises ConfigError for one that cannot be used, or that libpq would take
    for something else."""
    if not isinstance(dsn, str) or not _is_text(dsn):
        raise ConfigError(
            "dsn must be a string that UTF-8 can encode, without NUL characters, or None"
        )
    if _URI_WITH_ANOTHER_AT.match(dsn):
        # libpq would take a part of the password for a host, a port or a database, and name it in
        # its messages.
        raise ConfigError(
            "the dsn has more than one @, or a / before it: special characters in user and "
            "password must be percent-encoded (@ as %40, / as %2F), or use host, user, password, …"
        )
    parts = _parsed(dsn)
    for port in str(parts.get("port") or "").split(","):
        # Libpq asks the network's names for it, in vain.
        if port and not (port.isascii() and port.isdigit()):
            raise ConfigError("the dsn's port must be a number")
    return parts


def _parsed(dsn: str) -> dict[str, Any]:
    # libpq's message repeats parts of the DSN, the password among them: neither shown nor kept as
    # the error's context.
    with suppress(psycopg.Error):
        return dict(conninfo_to_dict(dsn))
    raise ConfigError(
        "dsn cannot be parsed; give a URI (postgresql://user:password@host:5432/dbname, special "
        "characters in the password percent-encoded) or key=value pairs, or use host, user, "
        "password, …"
    )


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


CoordinationConfig.__init__ = forgetful(CoordinationConfig.__init__)  # type: ignore[method-assign]
