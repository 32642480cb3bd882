"""What statements touch: the library's own calls on big tables, each with the plan that PostgreSQL
took for it.

The calls are made on a session that is set up as the library does it, in transactions that are
rolled back. The extension auto_explain tells of every plan as it was carried out. So it is the plan
for the very parameters, planned in the very way.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, TypeVar

import psycopg

from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.sql import Queries

T = TypeVar("T")

_NAME = re.compile(r"/\* (\w+) \*/")
_EXPLAIN = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0;
    SET auto_explain.log_analyze = on;
    SET auto_explain.log_timing = off;
    SET auto_explain.log_format = json;
    SET auto_explain.log_level = warning;
"""
# They have no plan.
_UTILITY = {"read_committed", "one_snapshot", "copy_tokens", "refuse_older"}


@dataclass(frozen=True)
class Touched:
    """One statement as it was carried out.

    Attributes:
        rows: all that any step of its plan took in, however often. returned: what came of it.
    """

    name: str
    rows: float
    returned: float
    plan: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join([f"{self.name} touched {self.rows:,.0f} rows", *_lines(self.plan, 1)])


class NamedQueries(Queries):
    """The statements, each with its name in a comment, by which its plan is known."""

    def __getitem__(self, name: str) -> bytes:
        return f"/* {name} */ ".encode() + super().__getitem__(name)


class Watched:
    """Stands in for a `Link` or a `Pool`: one session, whose plans are kept.

    Attributes:
        connection: the session's.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._message: tuple[str, Iterator[str]] = ("", iter(()))
        self._seen: list[Touched] = []
        connection.add_notice_handler(self._on_notice)

    @classmethod
    @asynccontextmanager
    async def open(cls, connector: Connector, plans: str, *more: str) -> AsyncIterator[Watched]:
        """A session as the library sets it up; `more` is said in it afterwards."""
        connection = await connector.open("plans", plans=plans)
        try:
            for statement in (*more, *_EXPLAIN.strip().splitlines()):
                await connection.execute(statement.encode())
            yield cls(connection)
        finally:
            await connection.close()

    async def run(self, work: Callable[[Connection], Awaitable[T]], **_: object) -> T:
        return await work(self.connection)

    async def transaction(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self.connection.transaction():
            return await work(self.connection)

    @asynccontextmanager
    async def undone(self) -> AsyncIterator[None]:
        """What is done meanwhile is rolled back."""
        async with self.connection.transaction(force_rollback=True):
            yield

    async def send(self, statement: str, values: dict[str, Any] | None = None) -> list[Any]:
        """One that is not the library's."""
        cursor = await self.connection.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []

    def take(self) -> list[Touched]:
        """What was carried out since this was asked last."""
        seen, self._seen = self._seen, []
        return seen

    def _on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        _, found, text = (notice.message_primary or "").partition("plan:\n")
        if not found:
            return
        told = json.loads(text)
        query = told["Query Text"]
        # Those of one message are all in its text, and come in order, however often.
        if self._message[0] != query:
            names = [name for name in _NAME.findall(query) if name not in _UTILITY]
            self._message = (query, cycle(names))
        name = next(self._message[1], "")
        plan = told["Plan"]
        self._seen.append(Touched(name, sum(map(_rows, _nodes(plan))), plan["Actual Rows"], plan))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _rows(node: dict[str, Any]) -> float:
    """What a step passed on and what it looked at in vain. It is told per loop. A bitmap counts the
    dead rows of what was rolled back, too; those that live are counted by what reads them."""
    if node["Node Type"] == "Bitmap Index Scan":
        return 0
    each: float = sum(
        value
        for what, value in node.items()
        if what == "Actual Rows" or what.startswith("Rows Removed by")
    )
    return each * float(node["Actual Loops"])


def _lines(node: dict[str, Any], depth: int) -> Iterator[str]:
    """The plan, for people: those steps that took in anything."""
    where = " ".join(str(node[what]) for what in ("Index Name", "Alias") if what in node)
    if rows := _rows(node):
        times = f" in {node['Actual Loops']:,.0f} loops" if node["Actual Loops"] > 1 else ""
        yield f"{'  ' * depth}{node['Node Type']} {where}: {rows:,.0f} rows{times}"
    for part in node.get("Plans", ()):
        yield from _lines(part, depth + 1)
