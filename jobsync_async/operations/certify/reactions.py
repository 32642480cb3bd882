"""What certify makes of what workers did, and of how many of them a server carries. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.certify.figures import (
    Fencing,
    Left,
    Limits,
    Load,
    Statement,
)
from jobsync_async.operations.certify.verdicts import Status, Verdict, ms, unmeasured

_MUCH_OF_BOUND = 0.2
_PER_WORKER = 2
_FOR_OTHERS = 9  # what a leader opens for a while, and a worker that starts
_PART_OF_A_PROCESSOR = 0.5
_MESSAGE_SEC = 0.001  # what the statements of a hand-off take, beside their commit
_MOST_TOKENS = 1_000_000
_TOKENS_PER_BOUND_SEC = 50_000  # as CoordinationConfig.bulk_limit_sec counts them

_SLOW = (
    "look for a busy machine, a busy server or a slow network, and run it again; nothing is unsafe "
    "by that"
)


def reaction(
    name: str, took_sec: float | None, limit_sec: float, what: str, *, longest_sec: float = math.inf
) -> Verdict:
    """How soon all tokens were owned evenly again; None: they were not.

    Args:
        longest_sec: above this, something is wrong that time does not explain.
    """
    limit = ms(limit_sec)
    if took_sec is None:
        advice = "workers cannot work together here: see what else fails, and the server's log"
        return Verdict(name, "fail", f"{what}: not in time", limit, advice)
    figures = {"took_sec": round(took_sec, 4), "limit_sec": round(limit_sec, 3)}
    found = f"{what} after {ms(took_sec)}"
    if took_sec <= limit_sec:
        return Verdict(name, "ok", found, limit, "", figures)
    status: Status = "warn" if took_sec <= longest_sec else "fail"
    return Verdict(name, status, found, limit, _SLOW, figures)


def unheard(took_sec: float | None, limits: Limits) -> Verdict:
    """Whether a change is found of which no notification came."""
    name = "lost notification"
    what = "a change that nobody heard of was acted upon"
    if took_sec is None:
        advice = "report it: heartbeats are the net under notifications, and it has a hole"
        return Verdict(name, "fail", f"{what}: not in time", ms(limits.unheard_sec), advice)
    return reaction(name, took_sec, limits.unheard_sec, what)


def ended_sessions(
    took_sec: float | None, limits: Limits, *, ended: int, lost_tokens: bool
) -> Verdict:
    """A worker's sessions were ended by the server."""
    name = "sessions ended"
    if not ended:
        return unmeasured(
            name,
            "this role sees or may end no session of its own",
            "nothing must be changed; after a death, what is left connected waits for the server "
            "to notice",
        )
    if lost_tokens:
        found = f"{ended} ended, and their worker lost tokens"
        return Verdict(
            name, "warn", found, ms(limits.again_sec), "look for what keeps it from reconnecting"
        )
    return reaction(name, took_sec, limits.again_sec, f"{ended} ended, there again")


def fencing(seen: Fencing, limits: Limits) -> list[Verdict]:
    """A worker stood still: when it was replaced, and what its transactions could still do."""
    expiry = reaction(
        "silent worker",
        seen.moved_sec,
        limits.silence_sec,
        "replaced",
        longest_sec=limits.longest_sec,
    )
    return [expiry, _fence(seen, limits)]


def _fence(seen: Fencing, limits: Limits) -> Verdict:
    limit = "a former owner commits nothing"
    advice = "do not rely on fences here: use PostgreSQL itself, and report this"
    figures = {
        "stale_rows": seen.stale_rows,
        "committed": list(seen.committed),
        "passed_sec": None if seen.passed_sec is None else round(seen.passed_sec, 4),
        "back_sec": None if seen.back_sec is None else round(seen.back_sec, 4),
    }
    if seen.moved_sec is None:
        return unmeasured("fence", "nobody took the silent worker's tokens", failed=True)
    broken = [
        text
        for text, is_so in (
            ("a fence held after others had its token", seen.stale_rows > 0),
            ("a former owner committed", "stale" in seen.committed),
            ("a token was given on while a fence locked it", not seen.kept),
            ("an epoch did not rise", not seen.epochs_rose),
        )
        if is_so
    ]
    if broken:
        return Verdict("fence", "fail", "; ".join(broken), limit, advice, figures)
    if "held" not in seen.committed:
        found = "the stale fence was refused; the open transaction with a fence was ended meanwhile"
        advice = (
            "the server or a proxy ends transactions that are idle: a fenced transaction must be "
            "shorter than that"
        )
        return Verdict("fence", "warn", found, limit, advice, figures)
    late = seen.passed_sec is None or seen.passed_sec > limits.again_sec
    passed = "not in time" if seen.passed_sec is None else f"{ms(seen.passed_sec)} after its commit"
    found = f"the stale one was refused; the one that was held was passed on {passed}"
    return Verdict("fence", "warn" if late else "ok", found, limit, _SLOW if late else "", figures)


def statements(seen: Sequence[Statement]) -> Verdict:
    """What workers sent, each against the bound after which it is given up."""
    if not seen:
        return unmeasured("statements", "no worker told of any", failed=True)
    slowest = max(seen, key=lambda one: one.share)
    found = (
        f"{sum(one.latency.times for one in seen):,} of {len(seen)} kinds; nearest to its bound: "
        f"{slowest.name}, p99 {ms(slowest.latency.p99)}"
    )
    limit = f"{ms(_MUCH_OF_BOUND * slowest.bound_sec)}, a fifth of its bound"
    figures = {"slowest": slowest.name, "share": round(slowest.share, 4)}
    advice = ""
    if slowest.share > _MUCH_OF_BOUND:
        advice = (
            "raise heartbeat_timeout_sec, of which bounds are a part, or look for what makes the "
            "server slow"
        )
    status: Status = "fail" if slowest.share > 1 else "warn" if advice else "ok"
    return Verdict("statements", status, found, limit, advice, figures)


def capacity(config: CoordinationConfig, load: Load, wanted: int | None = None) -> Verdict:
    """How many workers this server carries, by arithmetic: docs/certify.md says how.

    Args:
        wanted: how many there are to be; None where that is not said.
    """
    by = {
        f"connections of the {room.of}": (room.free - _FOR_OTHERS) / _PER_WORKER
        for room in load.rooms
    }
    by["heartbeats"] = _PART_OF_A_PROCESSOR * config.heartbeat_interval_sec / load.heartbeat_sec
    if load.commit_sec is not None:
        by["the cluster's row lock"] = config.bulk_limit_sec / (load.commit_sec + _MESSAGE_SEC)
    workers = {what: max(0, math.floor(many)) for what, many in by.items() if math.isfinite(many)}
    first = min(workers, key=lambda what: workers[what])
    tokens = None if load.tokens_per_sec is None else most_tokens(config, load.tokens_per_sec)
    figures = {"workers": workers[first], "first": first, "by": workers, "tokens": tokens}
    found = f"{workers[first]:,} workers; first to give out: {first}"
    if tokens is not None:
        found += f"; {tokens:,} tokens"
    needed = 1 if wanted is None else wanted
    limit = "" if wanted is None else f"{wanted:,} workers"
    if workers[first] >= needed:
        return Verdict("capacity", "ok", found, limit, "", figures)
    advice = (
        f"raise max_connections, or the bound of the role or database, by "
        f"{_PER_WORKER * (needed - workers[first])}"
        if first.startswith("connections")
        else "docs/scaling.md says how to go on: a longer heartbeat_interval_sec, or several "
        "clusters"
    )
    return Verdict("capacity", "fail", found, limit, advice, figures)


def most_tokens(config: CoordinationConfig, per_sec: float) -> int:
    """How many tokens one distribution writes within its bound, which grows with their number."""
    slower_sec = 1 / per_sec - 1 / _TOKENS_PER_BOUND_SEC
    if slower_sec <= 0:
        return _MOST_TOKENS
    return min(_MOST_TOKENS, math.floor(config.statement_limit_sec / slower_sec))


def left_behind(left: Left, *, prefix_given: bool) -> Verdict:
    """What is there after the run."""
    limit = "0 tables, 0 rows, 0 sessions"
    figures = {"tables": left.tables, "rows": left.rows, "sessions": left.sessions}
    if left.tables and not prefix_given:
        advice = "DROP these tables: their names begin with certify_"
        return Verdict("left behind", "fail", f"{left.tables} tables", limit, advice, figures)
    if left.others:
        found = f"nothing of this run; of earlier ones: {', '.join(left.others)}"
        advice = "their owner must drop them: this role may not"
        return Verdict("left behind", "warn", found, limit, advice, figures)
    if left.sessions:
        found = f"{left.sessions} sessions, some seconds after the end"
        advice = "look at pg_stat_activity: a proxy may keep them"
        return Verdict("left behind", "warn", found, limit, advice, figures)
    found = "nothing"
    if prefix_given:
        found = f"your tables, with {left.rows:,} rows that this role may not delete"
    if left.removed:
        found += f"; {left.removed} tables of an earlier run that was killed were removed"
    return Verdict("left behind", "ok", found, limit, "", figures)
