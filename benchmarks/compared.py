"""The cases in which both sides do the same: each measured in turn, in processes of their own, on
one server."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import psycopg

from benchmarks.results import Result
from benchmarks.sides import Side, interleaved, server
from jobsync_async import CoordinationConfig
from jobsync_async.core.heartbeat_schedule import SETTLING
from jobsync_async.embedded import EmbeddedPostgres

LOGGED = {"log_statement": "all", "log_line_prefix": "%a|"}
_FIRST_MS = {10_000: 40.0, 1_000_000: 3000.0}
# Until what starting needed is closed again, and nobody counts as new any more.
_SETTLED_SEC = SETTLING * CoordinationConfig().heartbeat_interval_sec + 1


def distribution(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    results = []
    for total, rounds in ((10_000, 5), (100_000, 3), (1_000_000, 1)):
        if quick and total > 10_000:
            results.append(ours_alone(dsn, sides[0], total))
            continue
        ours, theirs = interleaved(2 if quick else rounds, sides, dsn, "distribution", total)
        first = _FIRST_MS.get(total)
        death = 25.0 if total == 10_000 else None
        for event, title, goal in (
            ("first", "first distribution", first),
            ("join", "7th worker joins", None),
            ("death", "1 of 7 dies", death),
        ):
            name = f"{total:,} tokens: {title}"
            results.append(
                Result(
                    name, "ms", [a[event] for a in ours], goal, [a[event] for a in theirs], times=8
                )
            )
        walled = 1.0 if total == 10_000 else None
        name = f"{total:,} tokens: write-ahead log of that death"
        results.append(
            Result(
                name, "MiB", [a["wal"] for a in ours], walled, [a["wal"] for a in theirs], times=1
            )
        )
    return results


def ours_alone(dsn: str, side: Side, total: int) -> Result:
    """The first distribution of so many tokens; theirs takes too long for a quick run."""
    (ours,) = interleaved(1, [side], dsn, "distribution", total)
    return Result(
        f"{total:,} tokens: first distribution",
        "ms",
        [answer["first"] for answer in ours],
        _FIRST_MS.get(total),
    )


def plans(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    results = []
    for pinned in (0, 10_000):
        ours, theirs = interleaved((1 if pinned else 3) if quick else 5, sides, dsn, "plan", pinned)
        name = f"pure plan, 50 workers, 10,000 tokens, {pinned:,} pinned"
        results.append(Result(name, "ms", ours, 5, theirs, times=1))
    return results


def calls(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    rounds = 1 if quick else 5
    results = []
    for hash_function in ("double_sha256",) if quick else ("double_sha256", "sha256", "md5"):
        ours, theirs = interleaved(rounds, sides, dsn, "claiming", hash_function)
        goal = 600_000 if hash_function == "double_sha256" else None
        results.append(
            Result(
                f"can_claim_task, {hash_function}", "/s", ours, goal, theirs, times=1.5, more=True
            )
        )
    (ours,) = interleaved(rounds, sides[:1], dsn, "filtering")
    results.append(Result("filter_owned", "ids/s", ours, 1_000_000, more=True))
    return results


def rows(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    ours, theirs = interleaved(1 if quick else 5, sides, dsn, "rows")
    return [
        Result(
            title,
            "rows/s",
            [a[key] for a in ours],
            goal,
            [a[key] for a in theirs],
            times=times,
            more=True,
        )
        for key, title, goal, times in (
            ("single", "add_task, one by one", None, 1.2),
            ("claims", "set_claim of 10,000", 20_000.0, 1),
            ("audit", "write_audit of 10,000", 20_000.0, 1),
            ("pins", "register_locks_bulk of 10,000", None, 1),
        )
    ]


def memory(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    for side, appname in zip(sides, ("warm_ours_", "warm_theirs_"), strict=True):
        side.measure(dsn, "memory", appname)  # what is imported is compiled from then on
    ours, theirs = interleaved(1 if quick else 3, sides, dsn, "memory")
    return [
        Result(
            "memory of the first Job over `import psycopg`",
            "MiB",
            [a[0] for a in ours],
            8,
            [a[0] for a in theirs],
            times=2,
        ),
        Result("memory of each further Job", "MiB", [a[1] for a in ours], 0.5),
    ]


def steady(postgres: EmbeddedPostgres, sides: Sequence[Side], quick: bool) -> list[Result]:
    """A leader and two others of each side at once while nothing happens; what they send is counted
    by the server's log."""
    seconds = 20 if quick else 60
    names = {"ours": sides[0], "theirs": sides[1]}
    with ExitStack() as stack:
        processes = []
        for role in ("leader", "next", "follower"):
            for which, side in names.items():
                process = subprocess.Popen(
                    side.command("hold", f"steady_{which}_", role),
                    env={
                        **side.environment,
                        **server(postgres.dsn),
                        "PGAPPNAME": f"{which} {role}",
                    },
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                stack.callback(_end, process)
                processes.append(process)
            for process in processes[-len(names) :]:  # whoever joins first leads
                _wait_for("joining", process)
        for process in processes:
            _wait_for("ready", process)
        time.sleep(_SETTLED_SEC)
        held: Counter[str] = Counter()
        before = _statements(postgres)
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            for _ in range(seconds):  # the most at a time: what is opened for a moment counts
                time.sleep(1)
                names_now = connection.execute(
                    "SELECT application_name FROM pg_stat_activity"
                ).fetchall()
                held |= Counter(who for (name,) in names_now if (who := _who(name)))
        sent = _statements(postgres) - before
    results = []
    for role, title, most in (
        ("follower", "follower", 13),
        ("next", "next in age", 25),
        ("leader", "leader", 25),
    ):
        ours, theirs = (f"{which} {role}" for which in names)
        rate = [[sent[who] * 60 / seconds] for who in (ours, theirs)]
        results += [
            Result(f"statements per minute, {title}", "/min", rate[0], most, rate[1], times=4),
            Result(f"connections at most, {title}", "", [held[ours]], 2, [held[theirs]], times=1),
        ]
    return results


def _who(application: str) -> str | None:
    words = application.split()
    if words[:1] == ["jobsync_async"] and len(words) > 2:
        return f"ours {words[2]}"
    return application if words[:1] == ["theirs"] else None


def _statements(postgres: EmbeddedPostgres) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in postgres.log().splitlines():
        application, _, rest = line.partition("|")
        who = _who(application)
        if who and ("statement:" in rest or "execute " in rest):
            counts[who] += 1
    return counts


def _wait_for(what: str, process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    while what not in json.loads(process.stdout.readline()):
        pass


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # all is counted, and theirs takes long to leave
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
