"""By what a server is recognised, and what that can miss. Pure: values in and out.

* A failover that lost commits changes the *identity* of the server. One that lost none need not.
* All workers of one server make one identity of it, whatever their rights. So the cluster's row
  says how it was begun, and each worker reads that or is refused.
* What kind of server it is, is known from the row, a setting or what it shows. Nothing is guessed.

What a server tells of itself differs from product to product, so there are *profiles*. A profile
says which readings make the identity. The *timeline* rises with each promotion of a standby: it
stands for lost commits. So does the *start time*, which changes with each restart, too. The system
identifier, the database and the table tell another server or a restored dump, and say nothing of
commits. The *address* depends on the way that a worker takes, and the *name of an instance*
changes on shared storage when nothing is lost: neither is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from jobsync_async.errors import ConfigError, SchemaError

Profile = Literal["timeline", "shared-storage", "start-time"]
NAMES: tuple[Profile, ...] = get_args(Profile)

SYSTEM, POSITION, FILE, STARTED = (
    "pg_control_system()",
    "pg_current_wal_lsn()",
    "pg_walfile_name(pg_lsn)",
    "pg_postmaster_start_time()",
)
"""The functions that may be asked."""


class ServerProfile(NamedTuple):
    """What is known of the servers of one kind.

    Attributes:
        name: as `CoordinationConfig.server_profile` has it.
        reads: the functions whose answers make the identity, beside database and table. `SYSTEM` is
            left out of it where it is not needed and refused.
        needs: those of them without which nothing is safe.
        shared_storage: a failover loses no commit, and the workers go on.
        mark: what changes with a failover that lost commits, for people; empty for nothing.
        failover: what one does here, for people.
        misses: what is not recognised, for people.
    """

    name: Profile
    reads: tuple[str, ...]
    needs: tuple[str, ...]
    shared_storage: bool
    mark: str
    failover: str
    misses: str


_ANEW = "nobody acts until every lease from before is over, then the cluster begins anew"
_COPIES = "a copy of the storage, before `jobsync-async init --clone` was run there"
PROFILES: dict[Profile, ServerProfile] = {
    "timeline": ServerProfile(
        "timeline",
        (SYSTEM, POSITION, FILE),
        (SYSTEM, POSITION, FILE),
        False,
        "timeline",
        f"after a failover {_ANEW}; after a restart workers go on",
        _COPIES,
    ),
    "shared-storage": ServerProfile(
        "shared-storage",
        (SYSTEM,),
        (),
        True,
        "",
        "a failover loses no commit, so workers go on as after a restart",
        "commits that were lost all the same, as in a failover to another region, or when the "
        "storage was set back, unless the cluster's version went back with them; and " + _COPIES,
    ),
    "start-time": ServerProfile(
        "start-time",
        (SYSTEM, STARTED),
        (STARTED,),
        False,
        "the moment at which it was started",
        f"after a failover, and after each restart, {_ANEW}",
        _COPIES,
    ),
}


def check_profile(name: object) -> None:
    """Raise ConfigError for what is neither the name of a profile nor None."""
    if name not in (None, *NAMES):
        raise ConfigError(
            f"server_profile must be one of {', '.join(map(repr, NAMES))}, or None; got "
            f"{name!r:.100}"
        )


class Readings(NamedTuple):
    """Which readings make the identity.

    Attributes:
        profile: the name of the profile.
        system: whether the system identifier is among them.
    """

    profile: Profile = "timeline"
    system: bool = True

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that are asked."""
        return tuple(f for f in PROFILES[self.profile].reads if self.system or f != SYSTEM)

    @property
    def recognised_by(self) -> str:
        """What makes the identity, for people."""
        read = ("system identifier" if self.system else "", PROFILES[self.profile].mark, "database")
        return f"{', '.join(filter(None, read))} and table"

    @property
    def advice(self) -> str:
        """What would let more be recognised, for people; empty for nothing."""
        return (
            ""
            if self.system
            else "let the workers' role call pg_control_system(), if that can be had"
        )


BY_TIMELINE = Readings()
"""What most servers are recognised by, and all were by 0.1.0."""
ANY_SERVER = Readings("shared-storage", system=False)
"""What every server allows: for who does not ask which one it is."""


class Refusal(NamedTuple):
    """A function that was refused.

    Attributes:
        function: which one.
        message: what the server said.
        by_rights: it is this role alone that may not ask; another may.
    """

    function: str
    message: str
    by_rights: bool = False


UNKNOWN = "-"
"""Stands in an identity for a system identifier that is not read."""


class Decision(NamedTuple):
    """By what a server is recognised.

    Attributes:
        readings: what makes its identity.
        replaces: the cluster's row was begun here by other readings, which the server refuses
            everybody by now. So nobody can act on that row, and it has to be begun anew.
    """

    readings: Readings
    replaces: bool = False


class _Parsed(NamedTuple):
    readings: Readings
    system: str | None
    database: str
    table: str

    def may_be(self, other: _Parsed) -> bool:
        """Whether both may be one table of one server, whatever was read there."""
        same_system = None in (self.system, other.system) or self.system == other.system
        return same_system and (self.database, self.table) == (other.database, other.table)


def _parsed(identity: str | None) -> _Parsed | None:
    """An identity's parts, with the table; None for what is none. Without a profile's name it is
    one by timeline, as 0.1.0 writes it."""
    parts = [] if identity is None else identity.split("/")
    profile = next((name for name in NAMES if parts[:1] == [name]), None)
    if profile is not None:
        del parts[0]
    if len(parts) != (3 if profile == "shared-storage" else 4):
        return None
    system = None if parts[0] == UNKNOWN else parts[0]
    return _Parsed(Readings(profile or "timeline", system is not None), system, *parts[-2:])


def readings_of(identity: str | None) -> Readings | None:
    """The readings that made an identity; None where it does not say."""
    parsed = _parsed(identity)
    return None if parsed is None else parsed.readings


def read_otherwise(recorded: str | None, here: str | None) -> Readings | None:
    """The readings of the recorded identity, where they are others than those of the identity
    found here, and both may be of one server: then others may act by them. Else None."""
    theirs, ours = _parsed(recorded), _parsed(here)
    if theirs is None or ours is None or not theirs.may_be(ours):
        return None
    return None if theirs.readings == ours.readings else theirs.readings


_AURORA = re.compile(r"\baurora\b|wal_level must be set to", re.IGNORECASE)


def shared_storage(aurora_version: str | None, refusals: Iterable[Refusal] = ()) -> str | None:
    """What shows that the storage is shared; None where nothing does.

    Args:
        aurora_version: what ``aurora_version()`` says, where there is such a function.
        refusals: PostgreSQL itself refuses none of the functions on a primary, and asks for no
            ``wal_level`` there: only Aurora says so.
    """
    if aurora_version is not None:
        return f"Aurora {aurora_version}"
    for refusal in refusals:
        if not refusal.by_rights and _AURORA.search(refusal.message):
            return f"Aurora, for it says: {refusal.message}"
    return None


def decide(
    setting: Profile | None,
    recorded: str | None,
    here: str,
    refusals: Iterable[Refusal] = (),
    evidence: str | None = None,
) -> Decision:
    """By what a server is recognised.

    The cluster's row comes first: what it was begun with counts for all workers of that server.
    Then comes the setting, then what the server shows. Nothing is guessed.

    Args:
        setting: `CoordinationConfig.server_profile`.
        recorded: the identity in the cluster's row; None when there is none.
        here: the identity of this server by any readings, with the table.
        refusals: the functions that were refused here.
        evidence: what shows that the storage is shared.

    Raises:
        ConfigError: the setting is another than the cluster's; or the server refuses everybody
            what is needed, and neither a setting nor evidence says what it is.
        SchemaError: this role alone may not ask for what is needed.
    """
    refused = {refusal.function: refusal for refusal in refusals}
    theirs, ours = _parsed(recorded), _parsed(here)
    replaces = False
    if theirs is not None and ours is not None and theirs.may_be(ours):
        begun = theirs.readings
        lacking = [refused[name] for name in begun.functions if name in refused]
        _require_rights(lacking, begun.profile)
        if not lacking and setting not in (None, begun.profile):
            raise ConfigError(_contradiction(setting, begun.profile))
        if not lacking:
            return Decision(begun)
        replaces = True
    wanted = setting or ("shared-storage" if evidence else "timeline")
    needs = PROFILES[wanted].needs
    lacking = [refused[name] for name in needs if name in refused]
    _require_rights(lacking, wanted)
    if lacking:
        raise ConfigError(_unknown(lacking, setting))
    return Decision(Readings(wanted, SYSTEM in needs or SYSTEM not in refused), replaces)


_CHOICES = (
    "'shared-storage' if a failover loses no commit there, else 'start-time', by which each start "
    "of the server counts as a failover"
)


def _require_rights(lacking: Iterable[Refusal], profile: Profile) -> None:
    """Raise SchemaError where this role alone may not ask."""
    names = [refusal.function for refusal in lacking if refusal.by_rights]
    if names:
        asked = ", ".join(f"pg_catalog.{name}" for name in names)
        raise SchemaError(
            f"this role may not call {' and '.join(names)}, by which a server of the profile "
            f"{profile!r} is recognised: GRANT EXECUTE ON FUNCTION {asked} TO the role; every "
            "worker's role needs it, for all must recognise the server alike; where nobody can "
            f"grant it, set server_profile for a new cluster: {_CHOICES}"
        )


def _told(lacking: Iterable[Refusal]) -> str:
    return "; ".join(f"{refusal.function}: {refusal.message}" for refusal in lacking)


def _unknown(lacking: Iterable[Refusal], setting: Profile | None) -> str:
    choice = "set server_profile" if setting is None else f"server_profile={setting!r} cannot work"
    return (
        f"this server refuses what tells whether a failover lost commits ({_told(lacking)}), and "
        f"nothing shows what kind of server it is; {choice}, in the configuration of all workers: "
        f"{_CHOICES}"
    )


def _contradiction(setting: Profile | None, begun: Profile) -> str:
    return (
        f"server_profile is {setting!r} here and {begun!r} in the running cluster; all workers "
        "must agree: leave the setting out, for a worker takes what the cluster was begun with; "
        "to change it, stop all workers and run "
        f"`jobsync-async init --clone --server-profile {setting}`"
    )


def begun_otherwise(begun: Readings) -> ConfigError:
    """The error for a worker that finds the cluster begun anew on its server by other readings."""
    return ConfigError(
        f"the cluster was begun anew with server_profile {begun.profile!r}, and this worker knows "
        "it by another: start the worker again"
    )


def refused_meanwhile(lacking: Iterable[Refusal], readings: Readings) -> SchemaError:
    """The error for a worker whose server refuses what it was recognised by so far."""
    lacking = list(lacking)
    try:
        _require_rights(lacking, readings.profile)
    except SchemaError as error:
        return error
    return SchemaError(
        f"this server refuses what it was recognised by so far ({_told(lacking)}), so nothing is "
        f"done on it: if it is another product than before, start the worker again, which finds "
        f"that out; the profile was {readings.profile!r}"
    )
