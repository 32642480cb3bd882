"""A pooler of the tests' own, for behaviour that no pooler at hand has.

It is a program of its own, and speaks PostgreSQL's protocol. In its modes

* `session`, each client has a session of its own;
* `transaction`, a session is handed on after each transaction;
* `pinning`, the same, until a client changes something of its session: it keeps that one from then
  on. What counts is what Amazon documents for RDS Proxy.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_ROOT = Path(__file__).parents[2]
_TLS, _GSS, _CANCEL = 80877103, 80877104, 80877102
_IDLE = b"I"
# SET and set_config; PREPARE and what belongs to it; temporary objects; cursors; LISTEN; LOAD;
# sequences; session locks. Statements above 16 KB count, too.
_PINS = re.compile(
    rb"^\s*SET\s+(?!LOCAL\b|TRANSACTION\b)|\bset_config\b|^\s*(RESET|PREPARE|EXECUTE|DEALLOCATE|"
    rb"DISCARD|DECLARE|LISTEN|UNLISTEN|LOAD)\b|\bTEMP(ORARY)?\b|\b(nextval|setval|currval)\b|"
    rb"\bpg_(try_)?advisory_(un)?lock",
    re.IGNORECASE,
)
_MOST_BYTES = 16 * 1024


@contextmanager
def running(dsn: str, **how: object) -> Iterator[str]:
    """Run one before the server of a superuser's DSN; the DSN to go through it. `how` is as in
    `Middleman`."""
    start = f"from {__name__} import main; main()"
    command = [sys.executable, "-c", start, json.dumps({"dsn": dsn, **how})]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield make_conninfo(dsn, host="127.0.0.1", port=port)
        finally:
            process.stdin.close()  # it ends with that
            process.wait(10)


class _Gone(Exception):
    """One of the two sides has left."""


@dataclass(eq=False)
class _Session:
    """One on the server."""

    conn: pq.abc.PGconn
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(eq=False)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    given: dict[str, str]
    password: str = ""
    session: _Session | None = None
    status: bytes = _IDLE
    pinned: bool = False
    asked: int = 0  # answers that it waits for
    number: int = 0
    active_at: float = 0.0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, str]:
        return self.given["user"], self.given.get("database", self.given["user"])


class Middleman:
    """Stands between.

    Args:
        dsn: of the server.
        mode: see above.
        name: the application_name of every session; None takes that of the client.
        refuses_options: whether a client that sends `options` is refused.
        cancels: whether a client's request to cancel is passed on.
        idle_sec: end each session that asks nothing for so long, as a time-out on the way.
        suspend_sec: end all sessions when none asks anything for so long, as a server that is
            suspended.
        wake_sec: how long the next connection waits after that.
    """

    def __init__(
        self,
        dsn: str,
        mode: str,
        name: str | None = None,
        refuses_options: bool = False,
        cancels: bool = True,
        idle_sec: float | None = None,
        suspend_sec: float | None = None,
        wake_sec: float = 0.0,
    ) -> None:
        parts = conninfo_to_dict(dsn)
        self._server = {name: parts[name] for name in ("host", "port")}
        self._mode, self._name = mode, name
        self._refuses_options, self._cancels = refuses_options, cancels
        self._idle_sec, self._suspend_sec, self._wake_sec = idle_sec, suspend_sec, wake_sec
        self._idle: dict[tuple[str, str], list[_Session]] = defaultdict(list)
        self._clients: dict[int, _Client] = {}
        self._asleep = False

    async def serve(self) -> None:
        """Until the standard input ends."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), ended.set)
        while not ended.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.1)
            self._end_what_is_idle(loop.time())
        os._exit(0)  # all connections end with it

    # -- what is idle ------------------------------------------------------------------------------

    def _end_what_is_idle(self, now: float) -> None:
        clients = [each for each in self._clients.values() if each.session is not None]
        for_sec = {
            each: 0.0 if each.asked or each.status != _IDLE else now - each.active_at
            for each in clients
        }
        if self._idle_sec is not None:
            self._close(each for each in clients if for_sec[each] >= self._idle_sec)
        if self._suspend_sec is not None and clients and min(for_sec.values()) >= self._suspend_sec:
            self._asleep = True
            text = "terminating connection due to administrator command"
            self._close(clients, _error("57P01", text))

    def _close(self, clients: Iterable[_Client], last_word: bytes = b"") -> None:
        for client in clients:
            client.writer.write(last_word)
            client.writer.close()

    # -- clients -----------------------------------------------------------------------------------

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = None
        try:
            client = await self._start(reader, writer)
            if client is not None:
                self._clients[client.number] = client
                await self._greet(client)
                await self._carry(client)
        except (_Gone, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if client is not None:
                self._clients.pop(client.number, None)
                if client.session is not None:
                    self._end(client.session)
            writer.close()

    async def _start(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> _Client | None:
        while True:
            (length,) = struct.unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(length - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code == _CANCEL:
                await self._cancel(*struct.unpack("!ii", body[4:12]))
                return None
            if code not in (_TLS, _GSS):
                break
            writer.write(b"N")
        texts = body[4:].decode().split("\0")
        client = _Client(reader, writer, dict(zip(texts[::2], texts[1::2], strict=False)))
        client.given.pop("", None)
        client.number = secrets.randbits(30)
        if self._refuses_options and "options" in client.given:
            writer.write(_error("0A000", "command-line options are not supported", "FATAL"))
            return None
        writer.write(_message(b"R", struct.pack("!i", 3)))  # a password in clear text
        _, password = await _read(reader)
        client.password = password.rstrip(b"\0").decode()
        return client

    async def _greet(self, client: _Client) -> None:
        """Log in at the server, and tell the client what it says of itself."""
        if self._asleep:
            await asyncio.sleep(self._wake_sec)
            self._asleep = False
        try:
            session = await self._take(client)
        except psycopg.OperationalError as error:
            client.writer.write(_error("28P01", str(error).strip(), "FATAL"))
            raise _Gone from None
        client.writer.write(_message(b"R", struct.pack("!i", 0)))
        for name in (
            *("server_version", "server_encoding", "client_encoding", "application_name"),
            *("is_superuser", "session_authorization", "DateStyle", "IntervalStyle", "TimeZone"),
            *("integer_datetimes", "standard_conforming_strings", "in_hot_standby"),
            *("default_transaction_read_only", "search_path", "scram_iterations"),
        ):
            value = session.conn.parameter_status(name.encode())
            if value is not None:
                client.writer.write(_message(b"S", name.encode() + b"\0" + value + b"\0"))
        client.writer.write(_message(b"K", struct.pack("!ii", client.number, 1)))
        client.writer.write(_message(b"Z", _IDLE))
        if self._mode == "session":
            client.session = session
            client.active_at = asyncio.get_running_loop().time()
        else:
            self._idle[client.key].append(session)

    async def _carry(self, client: _Client) -> None:
        """What it asks goes to a session, and the answers come back."""
        both = [asyncio.ensure_future(one(client)) for one in (self._answer, self._ask)]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            await asyncio.wait(both)
            for one in both:
                one.cancelled() or one.exception()  # somebody left

    async def _ask(self, client: _Client) -> None:
        while True:
            kind, body = await _read(client.reader)
            client.active_at = asyncio.get_running_loop().time()
            if kind == b"X":
                return
            if client.session is None:
                client.session = await self._take(client)
                client.answered.set()
            if kind in b"QP" and self._mode == "pinning" and not client.pinned:
                named = kind == b"P" and body[:1] != b"\0"
                text = body.partition(b"\0")[2] if kind == b"P" else body
                client.pinned = named or len(text) > _MOST_BYTES or bool(_PINS.search(text))
            if kind in b"QSF":
                client.asked += 1
            client.session.writer.write(_message(kind, body))
            await client.session.writer.drain()

    async def _answer(self, client: _Client) -> None:
        while True:
            if client.session is None:
                client.answered.clear()
                await client.answered.wait()
            session = client.session
            assert session is not None
            kind, body = await _read(session.reader)
            if kind == b"Z":
                client.asked -= 1
                client.status = body
            client.writer.write(_message(kind, body))
            # Before the client can know of the end, so that it finds no session that it has left.
            shared = self._mode != "session" and not client.pinned
            if kind == b"Z" and shared and not client.asked and body == _IDLE:
                client.session = None
                self._idle[client.key].append(session)
            await client.writer.drain()

    # -- sessions ----------------------------------------------------------------------------------

    async def _take(self, client: _Client) -> _Session:
        if self._mode != "session":
            while self._idle[client.key]:
                session = self._idle[client.key].pop()
                if not session.reader.at_eof():
                    return session
                self._end(session)
        user, database = client.key
        given = {
            "user": user,
            "password": client.password,
            "dbname": database,
            "application_name": self._name or client.given.get("application_name", ""),
            "client_encoding": client.given.get("client_encoding", "UTF8"),
            "options": client.given.get("options", ""),
            "sslmode": "disable",
            "gssencmode": "disable",
        }
        conninfo = make_conninfo("", **self._server, **given)
        loop = asyncio.get_running_loop()
        conn = await loop.run_in_executor(None, pq.PGconn.connect, conninfo.encode())
        if conn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError(conn.get_error_message())
        reader, writer = await asyncio.open_connection(
            sock=socket.socket(fileno=os.dup(conn.socket))
        )
        return _Session(conn, reader, writer)

    def _end(self, session: _Session) -> None:
        with suppress(OSError):
            session.writer.write(_message(b"X", b""))
            session.writer.close()
        # Libpq's own descriptor is closed without a word of its own.
        session.conn.finish()

    async def _cancel(self, number: int, secret: int) -> None:
        client = self._clients.get(number)
        if self._cancels and client is not None and client.session is not None:
            cancel = client.session.conn.get_cancel()
            with suppress(psycopg.OperationalError):
                await asyncio.get_running_loop().run_in_executor(None, cancel.cancel)


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head[:1], await reader.readexactly(length - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _error(state: str, text: str, severity: str = "FATAL") -> bytes:
    fields = {"S": severity, "V": severity, "C": state, "M": text}
    body = b"".join(f"{name}{value}".encode() + b"\0" for name, value in fields.items())
    return _message(b"E", body + b"\0")


def main() -> None:
    """Run one as the argument says, until the standard input ends; the port is printed."""
    asyncio.run(Middleman(**json.loads(sys.argv[1])).serve())
