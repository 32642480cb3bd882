"""The server: sessions that run statements on the model of the tables, one at a time each, and
announce commits.

What happens here goes on by itself once a statement has arrived, whatever becomes of the client
that sent it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from psycopg import errors

from jobsync_async.core.server_profile import Profile as Kind

# they enter their statements
from tests.simulation import failing, leading, owning, records, steering, working  # noqa: F401
from tests.simulation.scheduler import Call, Scheduler
from tests.simulation.statements import STATEMENTS, TABLE_OID, Asked, Locked, Result, in_turn
from tests.simulation.tables import Tables, Transaction, View

if TYPE_CHECKING:
    from uuid import UUID

    from tests.simulation.driver import Connection

Reply = Callable[["Result | Exception"], None]
_DEFAULT_LIMIT_SEC = 5.0
# When TCP finds out that the other side is gone without a word.
_KEEPALIVE_SEC = (2.0, 12.0)


class Session:
    """One client's session. A statement that waits for a lock longer than the limit is cancelled; a
    transaction that is left alone for longer ends the session.

    Attributes:
        number, started: what tells it from all others.
        holds: the start of a worker whose lock it holds, with failover by session.
    """

    def __init__(self, server: Server, client: Connection) -> None:
        self.number = next(server.numbers)
        self.started = server.scheduler.now
        self.holds: UUID | None = None
        self.server = server
        self.client = client
        self.limit_sec = _DEFAULT_LIMIT_SEC
        self.listens = False
        self.ended = False
        self.tx: Transaction | None = None
        self.explicit = False
        self._failed = False
        self._running: Any = None
        self._reply: Reply | None = None
        self._timeout: Call | None = None
        self._idle: Call | None = None
        self._end_when_done = False
        self.committing = False

    # -- statements --------------------------------------------------------------------------------

    def execute(self, name: str, values: Any, reply: Reply, *, explicit: bool) -> None:
        """Run a statement, in a transaction that goes on if it is `explicit`; `reply` is called
        with its result or error, unless the session ends before."""
        if self.ended or self._end_when_done:
            return
        if not self.server.up:  # a pooler took it, and has nobody to pass it on to
            self.end()
            return
        assert self._reply is None, "one statement at a time"
        self._stop_idle()
        self._reply = reply
        self.explicit = explicit
        if name in ("commit", "rollback"):
            self._end_transaction(name)
        elif name in ("savepoint", "release", "roll_back_to"):
            self._savepoint(name)
        elif self._failed:
            self._finish(errors.InFailedSqlTransaction("current transaction is aborted"))
        elif name == "listen":
            self.listens = True
            self._finish(Result())
        else:
            self._start(name, values)

    def _start(self, name: str, values: Any) -> None:
        if name in ("prepare_session", "bound_transaction"):
            self.limit_sec = int(values["lock_ms"]) / 1000
        if self.tx is None:
            self.tx = self.server.tables.begin()
        server = self.server
        try:
            run = STATEMENTS[name] if "+" not in name else in_turn(name.split("+"))
            self._running = run(Asked(self, self.tx, values or {}))
        except KeyError:
            raise AssertionError(
                f"the model of the tables does not know the statement {name!r}"
            ) from None
        self._timeout = server.scheduler.after(self.limit_sec, self._too_late)
        self._go_on()

    def _go_on(self) -> None:
        if self._running is None:
            return
        tx, scheduler = self.tx, self.server.scheduler
        assert tx is not None
        try:
            while True:
                request = next(self._running)
                if isinstance(request, Locked):
                    if not tx.try_lock(request.key, request.mode):
                        tx.wait_for(request.key, request.mode, self._go_on)
                        return
                elif request.seconds > 0:
                    scheduler.after(request.seconds, self._go_on)
                    return
        except StopIteration as end:
            result = end.value
        except errors.Error as error:
            self._fail(error)
            return
        self._stop_clock()
        if self.explicit:
            self._finish(result)
        else:
            self._commit_soon(result)

    def _too_late(self) -> None:
        if self._running is not None:
            self._fail(errors.QueryCanceled("canceling statement due to statement timeout"))

    def _fail(self, error: Exception) -> None:
        self._stop_clock()
        if self.tx is not None:
            self.tx.rollback()
            self.tx = None
        self._failed = self.explicit
        self._finish(error)

    def _stop_clock(self) -> None:
        if self._running is not None:
            self._running.close()
        self._running = None
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    # -- the end of a transaction ------------------------------------------------------------------

    def _savepoint(self, what: str) -> None:
        if self._failed:
            error = errors.InFailedSqlTransaction("current transaction is aborted")
            # What failed, failed as a whole.
            self._finish(Result() if what == "roll_back_to" else error)
            return
        if self.tx is None:
            self.tx = self.server.tables.begin()
        getattr(self.tx, what)()
        self._finish(Result())

    def _end_transaction(self, how: str) -> None:
        self.explicit = False
        if how == "commit" and self.tx is not None and not self._failed:
            self._commit_soon(Result())
            return
        self._failed = False
        if self.tx is not None:
            self.tx.rollback()
            self.tx = None
        self._finish(Result())

    def _commit_soon(self, result: Result) -> None:
        """The commit takes its time on the disk, while the locks are held."""
        delay = self.server.commit_delay()
        self.committing = True
        if delay:
            self.server.scheduler.after(delay, self._commit, result)
        else:
            self._commit(result)

    def _commit(self, result: Result) -> None:
        tx, self.tx = self.tx, None
        self.committing = False
        if tx is None:  # the server went down meanwhile
            return
        if tx.notices and self.server.queue_full:
            tx.rollback()
            self._finish(errors.ProgramLimitExceeded("too many notifications in the NOTIFY queue"))
            return
        tx.commit()
        self.server.announce(tx.notices)
        self._finish(result)

    def _finish(self, result: Result | Exception) -> None:
        reply, self._reply = self._reply, None
        if self._end_when_done:
            self.end()
            return
        if self.explicit or self.tx is not None:
            self._idle = self.server.scheduler.after(self.limit_sec, self._left_alone)
        if reply is not None:
            reply(result)

    def _left_alone(self) -> None:
        if self._reply is None and self.client.idle_limit:
            self.end()

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    # -- the end of the session --------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nobody is at work in it."""
        return self._reply is None and self.tx is None and not self._failed

    def client_gone(self) -> None:
        """The client's end was noticed: what is under way goes on, but nothing comes after it."""
        if self._reply is not None:
            self._end_when_done = True
        else:
            self.end()

    def terminate(self) -> None:
        """Somebody ends it. What waits for its commit to reach the disk is committed before."""
        if self.committing:
            self._end_when_done = True
        else:
            self.end()

    def end(self, *, crash: bool = False) -> None:
        """Roll back what is open and forget the session."""
        if self.ended:
            return
        self.ended = True
        self._stop_clock()
        self._stop_idle()
        self._reply = None
        tx, self.tx = self.tx, None
        if tx is not None:
            tx.rollback()
        self.server.sessions.pop(self, None)
        if not crash:
            self.client.server_closed()


class Server:
    """Attributes:
    sessions: those that are open, in the order of their beginning.
    up: whether it answers; started: since when.
    kind: by what it is recognised; on shared storage no failover loses a commit.
    timeline: raised by every promotion of a standby; by most servers' kind part of the identity.
    keeps: whether a rule of safety is in force.
    commit_delay: seconds that the next commit takes.
    laggard: somebody listens and stays in a transaction; queue_full: nothing can be announced.
    deliver: brings a notification to a session's client.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        random: Random,
        keeps: Callable[[str], bool],
        kind: Kind = "timeline",
    ) -> None:
        self.scheduler = scheduler
        self.random = random
        self.keeps = keeps
        self.kind = kind
        self.timeline = 1
        self.started = 0.0
        self.numbers = count(1)
        self.events = count(1)
        self.tables = Tables(f"{self.identity}/{TABLE_OID}")
        self.sessions: dict[Session, None] = {}
        self.up = True
        self.commit_delay: Callable[[], float] = lambda: 0.0
        self.laggard = False
        self.queue_full = False
        self.deliver: Callable[[Session, str], None] = lambda session, payload: None

    @property
    def identity(self) -> str:
        """System, what stands for lost commits, and database."""
        if self.kind == "shared-storage" or not self.keeps(
            "what can lose commits is not taken for shared storage"
        ):
            return "shared-storage/7/5"
        if self.kind == "start-time":
            return f"start-time/7/{1e6 * self.started:.0f}/5"
        return f"7/{self.timeline:08X}/5"

    def connect(self, client: Connection) -> Session:
        session = Session(self, client)
        self.sessions[session] = None
        return session

    def announce(self, payloads: list[str]) -> None:
        """Tell every session that listens."""
        for payload in payloads:
            for session in list(self.sessions):
                if session.listens:
                    self.deliver(session, payload)

    def queue_usage(self) -> float:
        """PostgreSQL clears the queue when somebody asks how full it is, as far as everybody has
        read it."""
        self.queue_full = self.queue_full and self.laggard
        return 1.0 if self.queue_full else 0.0

    def go_down(self, *, crash: bool = False) -> None:
        """Every session ends, and with it what it had not committed; after a crash nobody tells the
        clients. A pooler keeps those that nobody is at work in."""
        self.up = False
        for session in list(self.sessions):
            if not (session.client.pooled and session.idle):
                session.end(crash=crash)
                if crash:
                    self.scheduler.after(
                        self.random.uniform(*_KEEPALIVE_SEC), session.client.server_closed
                    )

    def come_up(self) -> None:
        """It answers again."""
        if not self.up:
            self.up = True
            self.started = self.scheduler.now

    def become(self, state: View, timeline: int) -> None:
        """Another server in its place, which knows this state. Must be down."""
        assert not self.up, "the old one has stopped before the new one is promoted"
        self.tables.committed = state
        self.timeline = timeline
        self.started = self.scheduler.now  # at another moment than the old one
