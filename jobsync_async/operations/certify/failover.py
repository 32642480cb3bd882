"""What a failover would do on this server, and what it could lose. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from jobsync_async.operations.certify.figures import Settings
from jobsync_async.operations.certify.verdicts import Status, Verdict


@dataclass(frozen=True)
class Recognised:
    """By what workers know the server.

    Attributes:
        by: what makes its identity, for people.
        then: what a failover does here, for people.
        misses: what is not recognised, for people.
        shared_storage: a failover loses no commit.
        by_timeline: a standby that was promoted is told from the server before it.
    """

    by: str
    then: str
    misses: str
    shared_storage: bool
    by_timeline: bool


def from_identity(server: str | None, wait_sec: float) -> Recognised:
    """What an identity shows that was read on a connection.

    Args:
        server: system identifier, timeline and database; without a timeline where that cannot be
            read. None where each statement reads it.
        wait_sec: how long workers wait after a failover.
    """
    timeline = server is None or server.count("/") > 1
    anew = f"nobody acts for {wait_sec:g} s, then the cluster begins anew"
    copies = "a copy of the storage, before `jobsync-async init --clone` was run there"
    if timeline:
        by = "system identifier, timeline and database"
        return Recognised(by, f"after a failover {anew}", copies, False, True)
    misses = f"commits that were lost, unless the cluster's version went back; {copies}"
    by = "system identifier and database; the server does not tell its timeline"
    return Recognised(by, "after a failover workers go on as after a restart", misses, False, False)


def failover(seen: Recognised, settings: Settings, hosts: int) -> Verdict:
    """By what workers recognise one here, what they do then, and what could be lost.

    Args:
        hosts: how many the DSN names.
    """
    if seen.shared_storage:
        lost, advice = "the storage is shared, so no commit is lost", ""
    elif settings.synchronous:
        lost, advice = f"{settings.synchronous} standbys are synchronous", ""
    elif settings.replicas:
        told = "asynchronous" if settings.synchronous == 0 else "of a kind that is not told"
        lost = f"{settings.replicas} standbys are {told}"
        advice = (
            "synchronous_standby_names, so that a failover loses no commit; what is lost (pins, "
            "completions) is lost with its commit"
        )
    else:
        lost, advice = "no standby is to be seen from here", ""
    if not (seen.by_timeline or seen.shared_storage):
        advice = "make sure that a failover loses no commit here: workers would not notice it"
    where = f"the DSN names {hosts} hosts" if hosts > 1 else "the DSN names one host"
    found = f"recognised by {seen.by}; {seen.then}; not recognised: {seen.misses}; {lost}; {where}"
    if hosts == 1 and settings.replicas and not advice:
        advice = "name all hosts, or let the one name lead to the new primary"
    status: Status = "warn" if advice else "ok"
    figures = {
        "by_timeline": seen.by_timeline,
        "shared_storage": seen.shared_storage,
        "replicas": settings.replicas,
        "synchronous": settings.synchronous,
        "hosts": hosts,
    }
    return Verdict("failover", status, found, "no acknowledged commit is lost", advice, figures)
