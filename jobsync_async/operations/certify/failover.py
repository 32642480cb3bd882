"""What a failover would do on this server, and what it could lose. Pure."""

from __future__ import annotations

from jobsync_async.core.server_profile import PROFILES, Readings
from jobsync_async.operations.certify.figures import Settings
from jobsync_async.operations.certify.verdicts import Status, Verdict


def failover(readings: Readings, settings: Settings, hosts: int) -> Verdict:
    """By what workers recognise one here, what they do then, and what could be lost.

    Args:
        readings: what makes the server's identity.
        hosts: how many the DSN names.
    """
    profile = PROFILES[readings.profile]
    lost, advice = _losses(settings) if not profile.shared_storage else ("", "")
    advice = advice or readings.advice
    if hosts == 1 and settings.replicas and not advice and not profile.shared_storage:
        advice = "name all hosts in the DSN, or let its one name lead to the new primary"
    parts = [
        f"profile {profile.name}, by {readings.recognised_by}",
        profile.failover,
        lost,
        f"not recognised: {profile.misses}",
    ]
    status: Status = "warn" if advice else "ok"
    figures = {
        "profile": profile.name,
        "shared_storage": profile.shared_storage,
        "replicas": settings.replicas,
        "synchronous": settings.synchronous,
        "hosts": hosts,
    }
    found = "; ".join(filter(None, parts))
    return Verdict("failover", status, found, "no acknowledged commit is lost", advice, figures)


def _losses(settings: Settings) -> tuple[str, str]:
    """What a failover to a standby may lose, and what to change."""
    if not settings.replicas:
        return "no standby is to be seen from here", ""
    if settings.synchronous:
        return f"{settings.synchronous} of {settings.replicas} standbys are synchronous", ""
    if settings.synchronous is None:
        advice = "grant the role pg_monitor to see whether they are, or ask your provider"
        return f"whether {settings.replicas} standbys are synchronous is not told", advice
    advice = (
        "set synchronous_standby_names, so that a failover loses no commit: pins and completions "
        "are lost with theirs"
    )
    return f"{settings.replicas} standbys are asynchronous", advice
