"""What certify makes of what it has measured of the server. Pure: each function takes figures and
returns a `Verdict`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from jobsync_async.operations.certify.figures import (
    STRENGTHS,
    ClockReading,
    Conflicts,
    Keys,
    Latency,
    Pushes,
    Settings,
    TimeOut,
    Waits,
)

Status = Literal["ok", "warn", "fail", "skip"]

_CLOCK_SEC = 2.0
_STEP_SEC = 0.5
_RATE = 1 / 9
_RATE_SPAN_SEC = 5.0
_PUSH_SEC = 0.25
_TIMEOUT_LATE_SEC = 1.0
_SLOW_COMMIT_SEC = 0.1

# Of PostgreSQL, as its documents say.
_CONFLICTS = {
    "KEY SHARE": {"UPDATE"},
    "SHARE": {"NO KEY UPDATE", "UPDATE"},
    "NO KEY UPDATE": {"SHARE", "NO KEY UPDATE", "UPDATE"},
    "UPDATE": set(STRENGTHS),
}
_FENCED = "a fence does not keep a change of owner out: two workers may commit for one token"
_TWICE = "two transactions change one row at once: leases, terms and versions do not hold"
_MUST_CONFLICT = {
    ("KEY SHARE", "UPDATE"): _FENCED,
    ("UPDATE", "KEY SHARE"): _FENCED,
    ("NO KEY UPDATE", "NO KEY UPDATE"): _TWICE,
    ("NO KEY UPDATE", "UPDATE"): _TWICE,
    ("UPDATE", "NO KEY UPDATE"): _TWICE,
    ("UPDATE", "UPDATE"): _TWICE,
}
_MUST_PASS = {
    ("KEY SHARE", "NO KEY UPDATE"): "a token that is fenced cannot be revoked",
    ("NO KEY UPDATE", "KEY SHARE"): "a fence waits for a revocation",
    ("KEY SHARE", "KEY SHARE"): "fences of one token wait for each other",
}
_OTHER_ENGINE = "use PostgreSQL itself for coordination: this engine's locks are not PostgreSQL's"


@dataclass(frozen=True)
class Verdict:
    """One line of the certificate.

    Attributes:
        name: what was looked at.
        status: ``"fail"``: workers cannot work so, or what is promised does not hold. ``"warn"``:
            they can, but look; or it could not be measured. ``"skip"``: it does not apply here.
        found: what was measured, or is so.
        limit: what it is judged against; empty where there is no such thing.
        advice: what to change; empty when there is nothing.
        figures: the numbers alone.
    """

    name: str
    status: Status
    found: str
    limit: str = ""
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def unmeasured(name: str, why: str, advice: str = "", *, failed: bool = False) -> Verdict:
    """It could not be measured, or went wrong on the way."""
    return Verdict(
        name,
        "fail" if failed else "warn",
        f"not measured: {why}",
        advice=advice or "look at the server's log, and run it again",
    )


def skipped(name: str, why: str) -> Verdict:
    """It does not apply here."""
    return Verdict(name, "skip", f"does not apply: {why}")


def ms(seconds: float) -> str:
    """A short time, for people."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.1f} s"


def _spread(latency: Latency) -> str:
    return f"p50 {ms(latency.p50)}, p99 {ms(latency.p99)} of {latency.times:,}"


def row_locks(observed: Conflicts) -> Verdict:
    """Each strength of a row's lock beside each other, against what PostgreSQL documents."""
    name, limit = "row locks", "as PostgreSQL documents"
    pairs = [(held, wanted) for held in STRENGTHS for wanted in STRENGTHS]
    refused = sorted({str(observed[pair]) for pair in pairs if isinstance(observed[pair], str)})
    if refused:
        return Verdict(name, "fail", f"the server refuses them: {refused[0]}", limit, _OTHER_ENGINE)
    differs = [pair for pair in pairs if observed[pair] != (pair[1] in _CONFLICTS[pair[0]])]
    weaker = [pair for pair in differs if not observed[pair]]
    figures = {
        "weaker": [_beside(pair) for pair in weaker],
        "stronger": [_beside(pair) for pair in differs if observed[pair]],
    }
    unsafe = [pair for pair in weaker if pair in _MUST_CONFLICT]
    if unsafe:
        found = f"{_each(unsafe)}: they do not conflict; {_MUST_CONFLICT[unsafe[0]]}"
        return Verdict(name, "fail", found, limit, _OTHER_ENGINE, figures)
    held_up = [pair for pair in differs if pair in _MUST_PASS]
    if held_up:
        found = f"{_each(held_up)}: they conflict; {_MUST_PASS[held_up[0]]}"
        advice = "nothing is unsafe by that; keep fenced transactions short"
        return Verdict(name, "warn", found, limit, advice, figures)
    if differs:
        found = f"{_each(differs)} differ, which no worker needs; the others are so"
        return Verdict(name, "ok", found, limit, "", figures)
    return Verdict(name, "ok", f"all {len(pairs)} pairs", limit, "", figures)


def _beside(pair: tuple[str, str]) -> str:
    return f"FOR {pair[1]} beside FOR {pair[0]}"


def _each(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(map(_beside, pairs))


def waits(seen: Waits) -> Verdict:
    """What happens to whoever meets another's lock."""
    wrong = [
        text
        for text, is_so in (
            ("a statement did not wait for another's change of its row", not seen.waited),
            (
                "an expiry deleted a worker whose heartbeat had come first",
                seen.deleted > 0,
            ),
            ("a row that was waited for came back as it was before", not seen.reread),
            ("what was committed while a lock was waited for was not seen after it", not seen.seen),
            ("SKIP LOCKED did not pass over the locked row alone", not seen.skipped),
            ("one snapshot showed two moments", not seen.steady),
        )
        if is_so
    ]
    limit = "as READ COMMITTED of PostgreSQL"
    if wrong:
        return Verdict("waiting for locks", "fail", "; ".join(wrong), limit, _OTHER_ENGINE)
    return Verdict(
        "waiting for locks", "ok", "conditions are looked at again after the wait", limit
    )


def advisory_locks(seen: Keys) -> Verdict:
    """Locks by number: who makes tables, and who begins a run of a batch."""
    name, limit = "advisory locks", "as PostgreSQL documents"
    wrong = [
        text
        for text, is_so in (
            ("two had one lock alone", not seen.exclusive),
            ("those that share kept each other out, or let a third in", not seen.shared),
            ("a lock outlived its transaction", not seen.ended),
        )
        if is_so
    ]
    if wrong:
        advice = "make the tables by `jobsync-async init`, and run no batches here"
        return Verdict(name, "fail", "; ".join(wrong), limit, advice)
    if seen.session is False:
        advice = 'do not use failover="session" here'
        return Verdict(name, "warn", "a lock outlived its session", limit, advice)
    of = "" if seen.session is None else ", of transactions and sessions"
    return Verdict(name, "ok", f"exclusive and shared{of}", limit)


def sequence(numbers: Sequence[int]) -> Verdict:
    """Numbers of rows that two sessions made in turn."""
    limit = "rise from row to row"
    if len({*numbers}) < len(numbers):
        advice = "use PostgreSQL itself: two rows of the history cannot have one number"
        return Verdict("sequences", "fail", f"a number came twice in {numbers}", limit, advice)
    if sorted(numbers) != list(numbers):
        advice = "nothing is decided by them; `history` may show what happened at once out of order"
        return Verdict("sequences", "warn", f"{[*numbers]}", limit, advice)
    return Verdict("sequences", "ok", f"{numbers[0]} to {numbers[-1]}, by two sessions", limit)


def bound(seen: TimeOut) -> Verdict:
    """Whether the server ends what takes too long."""
    limit = f"{ms(seen.set_sec)} + {ms(_TIMEOUT_LATE_SEC)}"
    advice = (
        "let no proxy filter what sessions set; without it a stopped worker's transaction holds "
        "its locks until TCP gives up"
    )
    if seen.took_sec is None:
        found = f"set to {ms(seen.set_sec)}, and nothing happened"
        return Verdict(seen.setting, "fail", found, limit, advice)
    figures = {"set_ms": round(1000 * seen.set_sec), "took_ms": round(1000 * seen.took_sec, 1)}
    found = f"acted after {ms(seen.took_sec)}"
    if seen.took_sec > seen.set_sec + _TIMEOUT_LATE_SEC:
        return Verdict(seen.setting, "warn", found, limit, "look for an overloaded server", figures)
    return Verdict(seen.setting, "ok", found, limit, "", figures)


def clocks(readings: Sequence[ClockReading]) -> list[Verdict]:
    """The server's clock and this machine's, over the time of the run."""
    best = min(readings, key=lambda reading: reading.trip_sec)
    offset = best.server - best.wall
    server = _largest_step(readings, lambda reading: reading.server)
    own = _largest_step(readings, lambda reading: reading.wall)
    figures = {
        "offset_sec": round(offset, 4),
        "server_step_sec": round(server, 4),
        "own_step_sec": round(own, 4),
    }
    found = (
        f"the server's is {abs(offset):.3f} s {'ahead' if offset >= 0 else 'behind'}; steps of "
        f"{server:.3f} s there, {own:.3f} s here"
    )
    limit = f"{_CLOCK_SEC:g} s; steps of {_STEP_SEC:g} s"
    advice = ""
    if abs(offset) > _CLOCK_SEC or max(server, own) > _STEP_SEC:
        advice = (
            "set the clocks by NTP, which slews; nothing is decided by them, but dates and times "
            "mislead"
        )
    status: Status = "warn" if advice else "ok"
    return [Verdict("clock", status, found, limit, advice, figures), *_rate(readings)]


def _largest_step(
    readings: Sequence[ClockReading], clock: Callable[[ClockReading], float]
) -> float:
    """How far a clock was set between two looks, beyond what the round trips leave open."""
    steps = [
        abs((clock(b) - clock(a)) - (b.steady - a.steady)) - (a.trip_sec + b.trip_sec) / 2
        for a, b in pairwise(readings)
    ]
    return max([0.0, *steps])


def _rate(readings: Sequence[ClockReading]) -> list[Verdict]:
    """Leases are measured by this machine's clock: how its rate compares with the server's."""
    first, last = readings[0], readings[-1]
    span = last.steady - first.steady
    if span < _RATE_SPAN_SEC:
        return []
    beyond = (first.trip_sec + last.trip_sec) / 2
    apart = abs((last.server - first.server) - span)
    rate = max(0.0, apart - beyond) / span
    figures = {"apart": round(rate, 6), "over_sec": round(span, 1)}
    found, limit = f"{100 * rate:.2f} % apart over {span:.0f} s", f"{100 * _RATE:.0f} %"
    advice = ""
    if rate > _RATE / 10:
        advice = "one of the two clocks was set, or runs wrong: leases rest on this machine's rate"
    status: Status = "fail" if rate > _RATE else "warn" if advice else "ok"
    return [Verdict("clock rate", status, found, limit, advice, figures)]


def pushes(seen: Pushes) -> Verdict:
    """Notifications, there and back."""
    limit = f"p99 {ms(_PUSH_SEC)}, none lost"
    advice = (
        "connect directly or through a pooler in session mode; or set notify=False, and certify "
        "that with --polling"
    )
    if seen.latency is None:
        found = "no notification arrives: LISTEN does not work on this way"
        return Verdict("notifications", "fail", found, limit, advice)
    figures = {**seen.latency.plain(), "lost": seen.lost, "undone": seen.undone}
    found = _spread(seen.latency)
    if seen.lost or seen.undone:
        found = f"{seen.lost} lost, {seen.undone} came of what was rolled back; {found}"
        return Verdict("notifications", "warn", found, limit, advice, figures)
    if seen.latency.p99 > _PUSH_SEC:
        advice = "changes are seen that much later; a worker nearer to the server sees them sooner"
        return Verdict("notifications", "warn", found, limit, advice, figures)
    return Verdict("notifications", "ok", found, limit, "", figures)


def commits(latency: Latency) -> Verdict:
    """How long a small commit takes."""
    limit = f"p99 {ms(_SLOW_COMMIT_SEC)}"
    advice = ""
    if latency.p99 > _SLOW_COMMIT_SEC:
        advice = (
            "look at the disk of the server's log and, with synchronous replication, at the way "
            "to the standby: the cluster's row is locked for as long"
        )
    return Verdict(
        "commit", "warn" if advice else "ok", _spread(latency), limit, advice, latency.plain()
    )


def trips(latency: Latency, statement_limit_sec: float) -> Verdict:
    """A round trip, against the bound of a heartbeat."""
    most = statement_limit_sec / 5
    advice = ""
    if latency.p99 > most:
        advice = (
            "raise heartbeat_timeout_sec, or move workers nearer: late answers cost a good part "
            "of the lease"
        )
    return Verdict(
        "round trip",
        "warn" if advice else "ok",
        _spread(latency),
        f"p99 {ms(most)}",
        advice,
        latency.plain(),
    )


def durability(seen: Settings) -> Verdict:
    """Whether what was acknowledged survives a crash."""
    shown = {
        "fsync": seen.fsync,
        "full_page_writes": seen.full_page_writes,
        "synchronous_commit": seen.synchronous_commit,
        "synchronous_standby_names": seen.synchronous_standby_names,
    }
    told = [f"{name} {value or 'empty'}" for name, value in shown.items() if value is not None]
    found = ", ".join(told)
    limit = "none off"
    off = [name for name, value in shown.items() if value == "off"]
    if off:
        advice = (
            f"switch {' and '.join(off)} on: a crash of the server may forget what it had "
            "acknowledged"
        )
        if off == ["synchronous_commit"]:
            advice += (
                "; workers switch it on for their own statements, but your fenced transactions "
                "have what your role has"
            )
        return Verdict("durability", "warn", found, limit, advice, shown)
    unknown = [name for name, value in shown.items() if value is None]
    if unknown:
        advice = f"ask your provider: the server does not tell {', '.join(unknown)}"
        return Verdict("durability", "warn", found or "not told", limit, advice, shown)
    return Verdict("durability", "ok", found, limit, "", shown)


def worst(verdicts: Collection[Verdict]) -> Status:
    """The verdict on all of them."""
    ranks: tuple[Status, ...] = ("fail", "warn")
    return next((status for status in ranks if any(one.status == status for one in verdicts)), "ok")
