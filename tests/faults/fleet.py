"""Starts worker processes, does things to them, and reads afterwards what they did."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from tests.faults import history
from tests.faults.member import Member, clock
from tests.faults.nursery import Nursery

SLACK_SEC = 0.5
"""What the machine may add to any bound: starting a coroutine, a poll of a log, a busy
processor."""


class Fleet:
    """The workers of one test, on one database. `admin` is a connection of the test's own, in
    autocommit."""

    def __init__(
        self, nursery: Nursery, dsn: str, folder: Path, times: dict[str, float], tasks: int
    ) -> None:
        self.dsn = dsn
        self.members: dict[str, Member] = {}
        self.admin = psycopg.connect(dsn, autocommit=True)
        self.report: history.Report | None = None
        self._nursery = nursery
        self._folder = folder
        self._effects = folder / "effects"
        self._effects.touch()
        self.tasks = tasks
        self.config = {"total_tokens": tasks, "hash_function": "modulo", **times}
        self.interval_sec = times["heartbeat_interval_sec"]
        self.timeout_sec = times["heartbeat_timeout_sec"]
        self.lease_sec = 0.8 * self.timeout_sec
        self.takeover_sec = self.timeout_sec + 1
        """How long a task of a worker that is not known to be dead stays without one: its last beat
        is soon seen by others, and must then stand still for the timeout."""

    # -- starting and ending -----------------------------------------------------------------------

    def start(self, *names: str, **options: Any) -> None:
        """Start workers and wait until the tasks are shared evenly among all that run."""
        for name in names:
            self.launch(name, **options)
        self.even(30)

    def launch(
        self,
        name: str,
        *,
        dsn: str | None = None,
        direct_dsn: str | None = None,
        network: str | None = None,
        far: bool = True,
        environment: dict[str, str] | None = None,
        act_every_sec: float = 0.04,
        write_every_sec: float = 0.4,
        patience_sec: float = 600,
        drains: bool = False,
        batch: int = 0,
        batch_from: int | None = None,
        nursery: Nursery | None = None,
        times: dict[str, float] | None = None,
    ) -> Member:
        """Start a worker; does not wait for anything.

        Args:
            dsn: its way to the cluster's tables, if not the test's own.
            direct_dsn: the way of what it writes through the fence, if not the test's own.
            network: the network namespace to live in, as a path.
            far: as if it ran on a host of its own, so that its death is seen by the lease alone.
            environment: start a program of its own with these variables, instead of a fork of the
                nursery.
            patience_sec: how long a user's transaction may take before its connection is given up.
            drains: hand everything on before leaving.
            batch: pieces of a batch to work on. batch_from: its first id, if those of the tasks are
                not to be left out.
            nursery: whose child it is, if not the fleet's.
            times: settings that differ from the fleet's.
        """
        file = str(self._folder / name)
        settings = {
            "name": name,
            "dsn": dsn or self.dsn,
            "direct_dsn": direct_dsn or self.dsn,
            "network": network,
            "far": far,
            "config": {**self.config, **(times or {})},
            "log": f"{file}.log",
            "diary": f"{file}.diary",
            "socket": f"{file}.sock",
            "effects": str(self._effects),
            "act_every_sec": act_every_sec,
            "write_every_sec": write_every_sec,
            "patience_sec": patience_sec,
            "drains": drains,
            "batch": batch,
            "batch_from": batch_from,
        }
        if environment is None:
            born = nursery or self._nursery
            pid = born.start(settings)
            member = Member(name, pid, self._folder, lambda: born.status(pid))
        else:
            command = [sys.executable, "-m", "tests.faults.worker", json.dumps(settings)]
            with open(settings["diary"], "ab") as diary:
                process = subprocess.Popen(
                    command, env={**os.environ, **environment}, stdout=diary, stderr=diary
                )
            member = Member(name, process.pid, self._folder, process.poll)
        assert name not in self.members, "the log is the name's: give each process its own"
        self.members[name] = member
        return member

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def running(self) -> list[Member]:
        """Those that are neither dead nor stopped nor cut off."""
        return [
            m for m in self.members.values() if not m.dead and not m.cut and m.stopped_at is None
        ]

    def leader(self) -> str:
        """Who leads, by what the workers say."""
        (leader,) = [member.name for member in self.running() if member.state[2]]
        return leader

    now = staticmethod(clock)

    def by_age(self) -> list[str]:
        """The names in the table, the oldest first."""
        return [
            name for (name,) in self.admin.execute("SELECT name FROM sync_node ORDER BY joined")
        ]

    def beats(self, name: str) -> int:
        """How many heartbeats of its this worker's row counts."""
        return int(self.value("SELECT beat FROM sync_node WHERE name = %s", name))

    def kill(self, *names: str) -> float:
        """SIGKILL; when the last of them was gone."""
        for name in names:
            os.kill(self.members[name].pid, signal.SIGKILL)
        for name in names:
            self.members[name].await_end(-signal.SIGKILL)
        gone_at = clock()
        self.look()
        return gone_at

    def leave(self, *names: str) -> None:
        """SIGTERM: leave in order; waits for the end."""
        for name in names:
            os.kill(self.members[name].pid, signal.SIGTERM)
        for name in names:
            self.members[name].await_end(0)
        self.look()

    def stop(self, *names: str) -> float:
        """SIGSTOP, not in the middle of a user's transaction, whose fence would hold its token up;
        when the first was sent."""
        now = clock()
        for name in names:
            member = self.members[name]
            while True:
                member.stop()
                if not self._in_transaction(name):
                    break
                member.resume()
        return now

    def _in_transaction(self, name: str) -> bool:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> "
            "'idle' AND xact_start IS NOT NULL"
        )
        return self.value(query, f"user {name}") > 0

    def value(self, query: str, *values: Any) -> Any:
        """The first value of a query's first row, on the test's own connection."""
        row = self.admin.execute(query.encode(), values).fetchone()
        assert row is not None
        return row[0]

    def sessions(self, purpose: str) -> dict[str, int]:
        """Server processes that serve the running workers' sessions of a purpose, such as
        ``listener``."""
        # A frozen process stays in the list: the youngest of a name counts.
        query = """SELECT application_name, pid FROM pg_stat_activity
                   WHERE datname = current_database() ORDER BY backend_start"""
        with self._own_connection() as connection:
            pids = dict(connection.execute(query).fetchall())
        found = {}
        for application, pid in pids.items():
            match application.split():
                case ["jobsync_async", _, name, what] if what == purpose:
                    found[name] = pid
        return {
            member.name: found[member.name] for member in self.running() if member.name in found
        }

    def resume(self, *names: str) -> float:
        """SIGCONT; when the first was sent."""
        now = clock()
        for name in names:
            self.members[name].resume()
        return now

    def tell(self, name: str, do: str, **values: Any) -> None:
        """Have a worker do something; see its methods ``do_...``."""
        self.until(lambda: self[name].said("said", "listening"), 10, f"{name} listens")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as commands:
            commands.sendto(
                json.dumps({"do": do, **values}).encode(), str(self._folder / f"{name}.sock")
            )

    def forget(self, name: str) -> Member:
        """Take a worker that is dead, or dies as it is to, out of the fleet: another may have its
        name."""
        (self._folder / f"{name}.sock").unlink(missing_ok=True)
        return self.members.pop(name)

    def end(self) -> None:
        """Leave nothing behind."""
        self.admin.close()
        for member in self.members.values():
            member.end()

    # -- watching ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what all have written."""
        for member in self.members.values():
            member.look()

    def until(self, condition: Callable[[], object], seconds: float, what: str) -> float:
        """Wait until the condition holds, which is looked at after every look; how many seconds
        that took."""
        began = time.monotonic()
        while True:
            self.look()
            if condition():
                return time.monotonic() - began
            for member in self.members.values():
                if failed := member.said("failed"):
                    raise AssertionError(f"{member.name} failed: {failed}")
            if time.monotonic() - began > seconds:
                raise AssertionError(f"not within {seconds:g} s: {what}; {self.describe()}")
            time.sleep(0.01)

    def watch(self, seconds: float) -> None:
        """Let time pass that is part of the claim: for so long the fault lasts, or nothing may
        happen."""
        deadline = clock() + seconds
        self.until(lambda: clock() >= deadline, seconds + 5, "time passes")

    def owned(self, names: Collection[str] | None = None) -> dict[str, frozenset[int]]:
        """What each worker that runs says that it owns."""
        return {m.name: m.state[3] for m in self.running() if names is None or m.name in names}

    def agree(self) -> bool:
        """Whether every token is owned by exactly one of those that run, as they say themselves."""
        tokens = [token for owned in self.owned().values() for token in owned]
        return len(tokens) == len(set(tokens)) == self.tasks

    def even(self, seconds: float) -> float:
        """Wait until the tokens are shared evenly among those that run; how long that took."""

        def shared() -> bool:
            counts = [len(owned) for owned in self.owned().values()]
            return self.agree() and max(counts) - min(counts) <= 1

        return self.until(shared, seconds, "the tokens are shared evenly")

    def begun(self, tasks: Collection[int], since: float, seconds: float) -> float:
        """Wait until those that run have begun work on each of the tasks after a moment; how long
        after it the last was."""

        def first() -> dict[int, float]:
            found: dict[int, float] = {}
            for member in self.running():
                for _, t, task, _ in member.said("begin", since=since):
                    found[task] = min(t, found.get(task, t))
            return found

        self.until(
            lambda: first().keys() >= set(tasks),
            seconds,
            f"work on tasks {sorted(tasks)} begins again",
        )
        return max((first()[task] for task in tasks), default=since) - since

    def work_goes_on(self, since: float, seconds: float) -> float:
        """Wait until a fenced transaction of every task was committed after a moment; how long
        after it the last was."""

        def first() -> dict[int, float]:
            found: dict[int, float] = {}
            for member in self.members.values():
                for _, t, task, *_ in member.said("commit", since=since):
                    found[task] = min(t, found.get(task, t))
            return found

        self.until(lambda: len(first()) == self.tasks, seconds, "every task is worked on")
        return max(first().values()) - since

    def last_act(self, name: str) -> float:
        """When this worker last passed a check, by the plain file."""
        return max((act.checked for act in self.acts(name)), default=0.0)

    def acts(self, name: str) -> list[history.Act]:
        """What a worker did without the fence."""
        return [act for act in history.acts(self._effects) if act.worker == name]

    def tokens(self) -> dict[int, tuple[Any, int]]:
        """Owner's incarnation and epoch of each token, by the tables."""
        with self._own_connection() as connection:
            rows = connection.execute(
                "SELECT token_id, incarnation, epoch FROM sync_token"
            ).fetchall()
        return {token: (incarnation, epoch) for token, incarnation, epoch in rows}

    @contextmanager
    def no_token_moves(self) -> Iterator[None]:
        """Nothing in the block may change an owner or lose a lease."""
        before = self.tokens()
        since = clock()
        yield
        assert self.tokens() == before, self.describe()
        self.look()
        unhealthy = [
            (m.name, e) for m in self.running() for e in m.said("state", False, since=since)
        ]
        assert not unhealthy, f"a lease was lost: {unhealthy}; {self.describe()}"

    def describe(self) -> str:
        """For a failure's message."""
        states = [
            f"{m.name}: dead={m.dead} stopped={m.stopped_at} cut={m.cut} healthy={m.state[1]} "
            f"leads={m.state[2]} owns={sorted(m.state[3])}"
            for m in self.members.values()
        ]
        diaries = (line for member in self.members.values() for line in member.diary())
        return "\n".join([f"at {clock():.3f}", *states, *diaries])

    # -- judging -----------------------------------------------------------------------------------

    def judge(self) -> history.Report:
        """Read everything and judge it; fails on what must never be, and when there was nothing to
        judge."""
        report = self.weigh()
        assert not report.violations, "\n".join([*report.violations[:10], self.describe()])
        return report

    def weigh(self) -> history.Report:
        """Read everything and judge it; fails only when there was nothing to judge."""
        self.look()
        events = [
            (member.name, event) for member in self.members.values() for event in member.events
        ]
        with self._own_connection() as connection:
            past = history.read(events, self._effects, connection)
        past.pauses = [pause for member in self.members.values() for pause in member.all_pauses()]
        self.report = history.judge(past)
        self.past = past
        assert past.acts and past.commits and past.tokens, "nothing was done"
        return self.report

    @contextmanager
    def _own_connection(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(
            make_conninfo(self.dsn, connect_timeout=5), autocommit=True
        ) as connection:
            yield connection
