"""Ids of run_batch and run_owned: which can be had, which can be one, and which a database can
hold."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address
from pathlib import PurePosixPath
from uuid import UUID

import anyio
import psycopg
import pytest

from jobsync_async import ConfigError, Job, NotOwner, OwnershipLost, Task
from tests.handling import await_what_somebody_cancels, nothing
from tests.waiting import until

# -- what goes in comes out


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1_000


@dataclass(frozen=True)
class Order:
    number: int


class Name(str):
    __slots__ = ()


OF_EVERY_KIND = (
    7, -(2**90), True, 2.5, 1j, "text", "ä €", "", b"bytes", None, (1, "two"),
    frozenset({3}), UUID(int=5), dt.date(2026, 11, 27), dt.timedelta(1), Decimal("1.50"),
    dt.datetime(2026, 11, 27, tzinfo=dt.timezone.utc), Fraction(1, 3), PurePosixPath("/a/b"),
    ip_address("::1"), Colour.RED, Level.LOW, Order(8), Name("name"), Task, range(4),
)  # fmt: skip


def are(found, given) -> bool:
    """Whether these are the very objects that were given, in any order."""
    return sorted(map(id, found)) == sorted(map(id, given))


@pytest.mark.parametrize("named", [False, True], ids=["ids", "tasks"])
async def test_what_goes_in_comes_out_of_claims_results_and_errors(named):
    tasks = [Task(given, "with a name") for given in OF_EVERY_KIND] if named else OF_EVERY_KIND
    seen = []

    async def handle(claim) -> None:
        seen.append(claim.task_id)

    async def fail(claim) -> None:
        seen.append(claim.task_id)
        raise ValueError("of the test")

    async with Job("a") as job:
        for task, given in zip(tasks, OF_EVERY_KIND, strict=True):
            async with job.claim(task) as claim:
                assert claim.task_id is given
            with pytest.raises(OwnershipLost) as lost:
                claim.check()
            assert lost.value.task_id is given
        assert are((await job.run_batch(tasks, fail, attempts=1)).failed, OF_EVERY_KIND)
        assert are((await job.run_batch(tasks, handle)).completed_here, OF_EVERY_KIND)
        assert are((await job.run_batch(tasks, handle)).completed_elsewhere, OF_EVERY_KIND)
        assert are(seen, OF_EVERY_KIND * 2)
        seen.clear()
        owned = asyncio.ensure_future(job.run_owned(tasks, fail))
        await until(lambda: len(seen) == 2 * len(tasks))  # each is started again
        owned.cancel()
        await asyncio.wait([owned])
        assert are(seen, OF_EVERY_KIND * 2)
        assert are(job.filter_owned(tasks), tasks)
        assert are(await job.add_tasks(tasks, date=dt.date(2000, 1, 1)), tasks)
        await job.drain()
        for task, given in zip(tasks, OF_EVERY_KIND, strict=True):
            for refused in (job.claim(task).__aenter__(), job.add_task(task)):
                with pytest.raises(NotOwner) as raised:
                    await refused
                assert raised.value.task_id is given


async def test_what_goes_in_comes_out_also_where_several_workers_share_it(jobs, admin):
    a, b = await jobs.start("a", "b")
    seen: list[object] = []

    async def handle(claim) -> None:
        seen.append(claim.task_id)

    results = await asyncio.gather(*(job.run_batch(OF_EVERY_KIND, handle) for job in (a, b)))
    assert are(seen, OF_EVERY_KIND)
    here = [result.completed_here for result in results]
    assert all(here)
    assert are([*here[0], *here[1]], OF_EVERY_KIND)
    for result in results:
        assert are([*result.completed_here, *result.completed_elsewhere], OF_EVERY_KIND)
    await admin.execute("UPDATE sync_token SET epoch = epoch + 1")
    for mine in OF_EVERY_KIND:
        job = a if a.owns(mine) else b
        with pytest.raises(OwnershipLost, match="nothing was recorded") as lost:
            await job.add_task(Task(mine), date=dt.date(2000, 1, 1))
        assert lost.value.task_id is mine


# -- ids


async def test_ids_that_cannot_be_had_leave_running_what_runs_and_are_asked_for_again(
    config, caplog
):
    running: set[object] = set()
    answers: list[object] = [["a", "b"]]

    async def handle(claim) -> None:
        running.add(claim.task_id)
        try:
            await anyio.sleep_forever()
        finally:
            running.discard(claim.task_id)

    async def ids() -> object:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(answer)
        if answer is asyncio.CancelledError:
            await await_what_somebody_cancels()
        if isinstance(answer, type):
            raise answer("away for a moment")
        return answer

    asked: list[object] = []
    answers += [
        ConnectionError,
        "BTC",
        None,
        [["unhashable"]],
        [1, True],
        asyncio.CancelledError,
        ["b", "c"],
    ]
    async with Job("a", config) as job:
        owned = asyncio.ensure_future(job.run_owned(ids, handle, refresh_sec=0.01))
        await until(lambda: running == {"a", "b"})
        await until(lambda: len(asked) >= 4)
        assert running == {"a", "b"}
        assert not owned.done()
        for told in ("ConnectionError: away", "ids must be an iterable of task ids"):
            assert told in caplog.text
        await until(lambda: running == {"b", "c"}, 40)
        for told in ("must be hashable", "two of the ids are equal", "raised CancelledError"):
            assert told in caplog.text
        owned.cancel()
        await asyncio.wait([owned])


async def test_an_id_that_is_not_wanted_any_more_may_save_what_it_has(config):
    ids = ["a"]
    seen: list[object] = []

    async def handle(claim) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            seen.append((claim.leaving, claim.valid))

    async with Job("a", config) as job:
        owned = asyncio.ensure_future(job.run_owned(lambda: list(ids), handle, refresh_sec=0.01))
        await until(lambda: job.metrics.claims_active)
        ids.clear()
        await until(lambda: seen)
        assert seen == [("unwanted", True)]
        owned.cancel()
        await asyncio.wait([owned])


class NoHash:
    __hash__ = None


class Unstable:
    def __init__(self) -> None:
        self.number = 0

    def __str__(self) -> str:
        self.number += 1
        return str(self.number)


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")


UNUSABLE = {
    "unhashable": [],
    "unhashable object": NoHash(),
    "not a number": float("nan"),
    "an address": object(),
    "a text of its own each time": Unstable(),
    "no text": Mute(),
    "huge": "x" * 1_000_001,
    "a number of too many digits": 10**5000,
    "nul": "a\0",
    "half a surrogate pair": "\ud800",
}


@pytest.mark.parametrize("bad", UNUSABLE)
async def test_an_id_that_cannot_be_one_is_refused_by_name_before_anything_is_done(bad):
    calls: list[object] = []

    async def handle(claim) -> None:
        calls.append(claim.task_id)

    value = UNUSABLE[bad]
    async with Job("a") as job:
        for attempt in (
            lambda: job.run_batch(["good", value], handle),
            lambda: job.run_owned(["good", value], handle),
            lambda: job.add_task(value),
            lambda: job.add_tasks(["good", value]),
            lambda: job.set_claim(["good", value]),
            lambda: job.claim(value).__aenter__(),
            lambda: job.owner_of(value),
            lambda: asyncio.sleep(0, job.owns(value)),
        ):
            with pytest.raises(ConfigError, match="task id"):
                await attempt()
        assert await job.write_audit() == 0
    assert calls == []


async def test_ids_that_no_result_could_tell_apart_are_refused():
    async with Job("a") as job:
        for ids in ([1, True], [1, 1.0], [0.0, -0.0]):
            with pytest.raises(ConfigError, match="equal and have different texts"):
                await job.run_batch(ids, nothing)
        assert len((await job.run_batch(["a", "a", 1, "1", 1], nothing)).completed_here) == 2


# -- a database that cannot hold every character


@pytest.fixture
def latin(server):
    from uuid import uuid4

    from psycopg.conninfo import make_conninfo

    name = f"latin_{uuid4().hex[:8]}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE "
            "template0".encode()
        )
        yield make_conninfo(server.dsn, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.parametrize("client_encoding", ["", "UTF8"])
async def test_what_the_databases_encoding_lacks_is_escaped_in_texts_and_refused_in_ids(
    latin, make_config, client_encoding
):
    from psycopg.conninfo import make_conninfo

    config = make_config(
        dsn=make_conninfo(
            latin, **({"client_encoding": client_encoding} if client_encoding else {})
        )
    )

    batches = 1

    async def handle(claim) -> None:
        if claim.task_id == "bad":
            await until(lambda: len(job._worker.turns._behind.get("bad", ())) == batches - 1)
            raise ValueError("5 € for naïve \0 \ud800")

    async with Job("ä", config, address="ö") as job:
        assert (await job.run_batch(["bad", "naïve"], handle, attempts=1)).completed_here == {
            "naïve"
        }
        batches = 2  # the second waits for the first one's attempt, and reads what came of it
        again = await asyncio.gather(
            *(job.run_batch(["bad"], handle, attempts=1) for _ in range(2))
        )
        assert {result.failed["bad"] for result in again} >= {
            "ValueError: 5 \\u20ac for naïve \\x00 \\ud800"
        }
        await job.register_lock("x", "ä", reason="costs 5 €")
        assert [lock.reason for lock in await job.list_locks()] == ["costs 5 \\u20ac"]
        for attempt in (
            lambda: job.run_batch(["€"], handle),
            lambda: job.add_task("€"),
            lambda: job.claim("€").__aenter__(),
            lambda: job.register_lock("€", "%"),
            lambda: job.register_lock("x", "€%"),
            lambda: job.clear_locks_by_creator("€"),
        ):
            with pytest.raises(ConfigError, match="encoding"):
                await attempt()
    for job in (Job("€", config), Job("b", config, address="€")):
        with pytest.raises(ConfigError, match="encoding"):
            await job.start()
