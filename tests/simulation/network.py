"""The network between processes and the server: messages that are late, lost, or held up by a
partition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg

from tests.simulation.scheduler import Scheduler
from tests.simulation.server import Server, Session
from tests.simulation.statements import Result

if TYPE_CHECKING:
    from tests.simulation.driver import Connection
    from tests.simulation.process import Process

_CONNECT_TIMEOUT_SEC = 2.0
# A statement that was under way when a partition began may arrive when it ends, long after its
# client gave up.
_LATE_ARRIVAL = 0.7


@dataclass
class Weather:
    """How likely a message meets with each mishap, and how long mishaps last at most.

    Attributes:
        lost_request: the connection breaks before the statement arrives.
        lost_answer: the statement is carried out, and the connection breaks before the answer
            arrives.
        slow, slow_sec: how often a message takes long, and the mean of it.
        notice_lost, notice_doubled, notice_late: the same for notifications.
        commit_slow, commit_sec: how often a commit takes long, with the locks held.
    """

    lost_request: float = 0.0
    lost_answer: float = 0.0
    slow: float = 0.0
    slow_sec: float = 0.2
    notice_lost: float = 0.0
    notice_doubled: float = 0.0
    notice_late: float = 0.0
    commit_slow: float = 0.0
    commit_sec: float = 0.05


class Network:
    """Carries messages. `weather` may be changed at any time; a process's own `cut` says which ways
    it is partitioned."""

    def __init__(self, scheduler: Scheduler, server: Server, random: Random) -> None:
        self.scheduler = scheduler
        self.server = server
        self.random = random
        self.weather = Weather()
        server.commit_delay = self._commit_delay
        server.deliver = self._notify

    def _commit_delay(self) -> float:
        weather = self.weather
        return (
            self.random.expovariate(1 / weather.commit_sec)
            if self.random.random() < weather.commit_slow
            else 0.0
        )

    def _latency(self) -> float:
        weather = self.weather
        if weather.slow and self.random.random() < weather.slow:
            return self.random.expovariate(1 / weather.slow_sec)
        return 0.0005 * self.random.random()

    # -- statements --------------------------------------------------------------------------------

    def send(self, connection: Connection, name: str, values: Any, explicit: bool) -> None:
        """Bring a statement to its session, and the answer back."""
        process, session = connection.process, connection.session
        fate = self.random.random()
        lost_answer = fate < self.weather.lost_answer
        if not lost_answer and fate < self.weather.lost_answer + self.weather.lost_request:
            self.sever(connection, "the connection was reset before the statement arrived")
            return

        def reply(result: Result | Exception) -> None:
            if lost_answer:
                process.trace(f"{name}: carried out, the answer is lost")
                self.sever(connection, "the connection was reset while waiting for an answer")
            else:
                self._to_process(process, connection.answered, result)

        def arrive() -> None:
            session.execute(name, values, reply, explicit=explicit)

        if name in process.frozen_once and connection.purpose.endswith("listener"):
            process.frozen_once = ()
            process.held_out.append((connection, arrive))
        elif process.cut_out or name in process.held or connection.purpose.endswith(process.frozen):
            process.held_out.append((connection, arrive))
        else:
            self.scheduler.after(self._latency(), arrive)

    def _to_process(self, process: Process, call: Callable[..., object], *args: Any) -> None:
        if process.cut_in:
            process.held_in.append((call, args))
        else:
            self.scheduler.after(self._latency(), self._arrive, process, call, args)

    @staticmethod
    def _arrive(process: Process, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if not process.loop.dead:
            process.loop.call_soon(call, *args)

    def sever(self, connection: Connection, why: str) -> None:
        self._to_process(connection.process, connection.broke, why)
        self.client_closed(connection)

    def hang_up(self, connection: Connection, why: str) -> None:
        """The server ends a session: its client learns of it."""
        self._to_process(connection.process, connection.broke, why)

    def client_closed(self, connection: Connection) -> None:
        """A client ends a session: the server learns of it, after what was sent before."""
        process = connection.process
        if process.cut_out or any(held is connection for held, _ in process.held_out):
            # By its keepalive.
            self.scheduler.after(self.random.uniform(1, 6), connection.session.client_gone)
        else:
            self.scheduler.after(0.001 + self._latency(), connection.session.client_gone)

    def connect(self, process: Process, done: Callable[[Exception | None], None]) -> None:
        """Open a connection, which takes a round trip."""
        if process.loop.dead:
            done(psycopg.OperationalError("the process is dead"))
            return

        def answer() -> None:
            refused = None if self.server.up else psycopg.OperationalError("connection refused")
            self._to_process(process, done, refused)

        if process.cut_out or process.cut_in:
            timeout = psycopg.OperationalError("connection timeout expired")
            self.scheduler.after(_CONNECT_TIMEOUT_SEC, self._arrive, process, done, (timeout,))
        else:
            self.scheduler.after(self._latency(), answer)

    # -- notifications -----------------------------------------------------------------------------

    def _notify(self, session: Session, payload: str) -> None:
        connection, weather = session.client, self.weather
        fate = self.random.random()
        if fate < weather.notice_lost:
            return
        copies = 2 if fate > 1 - weather.notice_doubled else 1
        for _ in range(copies):
            if weather.notice_late and self.random.random() < weather.notice_late:
                late = self.random.uniform(0, 3)
                self.scheduler.after(
                    late, self._to_process, connection.process, connection.notified, payload
                )
            else:
                self._to_process(connection.process, connection.notified, payload)

    # -- partitions --------------------------------------------------------------------------------

    def cut(self, process: Process, *, outwards: bool, inwards: bool) -> None:
        """Begin a partition, in one or both directions."""
        process.cut_out, process.cut_in = outwards, inwards

    def heal(self, process: Process) -> None:
        """End it: what was held up arrives now, or never."""
        process.cut_out = process.cut_in = False
        held_out, process.held_out = process.held_out, []
        held_in, process.held_in = process.held_in, []
        for connection, arrive in held_out:
            fate = self.random.random()
            if fate < _LATE_ARRIVAL:  # sent again now, or after a while, as TCP does
                again = self.random.uniform(0, 4) if fate < _LATE_ARRIVAL / 3 else 0.0
                self.scheduler.after(again + self._latency(), arrive)
            else:
                self.sever(connection, "the connection was reset after a partition")
        for call, args in held_in:
            self._to_process(process, call, *args)
