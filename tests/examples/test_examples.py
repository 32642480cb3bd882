"""The examples run, against real parts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote

import anyio
import httpx
import psycopg
import pytest
import uvicorn
from websockets.asyncio.server import serve

from tests.examples.conftest import EXAMPLES


def test_a_batch_is_done_by_three_processes_once(dsn, spawn):
    processes = [spawn("batch", name) for name in ("anna", "berta", "carla")]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    here = [int(re.search(r"(\d+) booked here", line).group(1)) for line in told]
    assert sum(here) == 1000
    with psycopg.connect(dsn) as connection:
        ((rows, invoices),) = connection.execute(
            "SELECT count(*), count(DISTINCT invoice) FROM booking"
        ).fetchall()
        assert (rows, invoices) == (1000, 1000)
    assert "0 booked here, 1000 elsewhere" in spawn("batch", "dora").communicate()[0]


def test_a_batch_that_is_left_midway_is_resumed(dsn, spawn):
    with psycopg.connect(dsn, autocommit=True) as connection:

        def booked() -> int:
            if connection.execute("SELECT to_regclass('booking')").fetchone() == (None,):
                return 0
            ((rows,),) = connection.execute("SELECT count(*) FROM booking").fetchall()
            return rows

        anna = spawn("batch", "anna")
        while booked() < 50:
            assert anna.poll() is None
            time.sleep(0.005)
        anna.send_signal(signal.SIGINT)
        assert anna.communicate()[0] == "left; start it again to go on\n"
        assert anna.returncode == 0
        before = booked()
        assert before < 1000
        here, elsewhere = map(int, re.findall(r"\d+", spawn("batch", "berta").communicate()[0]))
        assert booked() == here + elsewhere == 1000
        assert elsewhere <= before


async def test_a_booking_is_not_made_again_by_who_takes_over_from_a_worker_that_could_not_say_so(
    dsn, example
):
    module = example("batch")
    book, failed = module.book, set()

    async def book_and_break(job, pool, claim) -> None:
        await book(job, pool, claim)
        if claim.task_id not in failed:
            failed.add(claim.task_id)
            raise ConnectionError("just after the commit")

    module.book = book_and_break
    with anyio.fail_after(15):
        result = await module.work("anna", dsn, ["one", "two"])
    assert result.completed_here == failed == {"one", "two"}
    with psycopg.connect(dsn) as connection:
        assert sorted(connection.execute("SELECT invoice FROM booking").fetchall()) == [
            ("one",),
            ("two",),
        ]


def test_pinned_models_move_to_the_gpu_worker_and_back(spawn):
    def start(name: str) -> subprocess.Popen[str]:
        return spawn("gpu_pinning", name)

    def until(process: subprocess.Popen[str], models: int) -> str:
        assert process.stdout is not None
        for line in process.stdout:
            if line.count("model-") == models:
                return line
        raise AssertionError("it ended")

    any_1 = start("any-1")
    until(any_1, 8)
    big_1 = start("big-1")
    until(big_1, 8)
    until(any_1, 0)
    gpu_1 = start("gpu-1")
    assert gpu_1.stdout is not None
    pins = [gpu_1.stdout.readline() for _ in range(8)]
    assert {pin.split(":")[0] for pin in pins} == {f"pin model-{letter}" for letter in "abcdefgh"}
    assert all("gpu-% or big-% or % (renders on a GPU); now on " in pin for pin in pins)
    until(gpu_1, 8)
    until(big_1, 0)
    for process in (gpu_1, big_1, any_1):
        process.send_signal(signal.SIGINT)
        assert "left" in process.communicate()[0]
        if process is gpu_1:
            until(big_1, 8)
        assert process.returncode == 0


def test_each_sensor_is_read_in_its_own_cluster_alone(dsn, empty_dsn, example, spawn, monkeypatch):
    module = example("several_clusters")
    clusters = {"NORTH": dsn, "SOUTH": empty_dsn}
    for cluster, where in clusters.items():
        monkeypatch.setenv(f"{cluster}_DSN", where)

    def all_are_read_by(*names: str) -> None:
        """Waits until these workers are in every cluster, and read all of its sensors."""
        for cluster, where in clusters.items():
            mine = {s for s in module.SENSORS if module.cluster_of(s, [*clusters]) == cluster}
            assert 0 < len(mine) < len(module.SENSORS)
            with psycopg.connect(where, autocommit=True) as connection:
                read, readers, workers = set(), set(), set()
                while read != mine or not readers <= {*names} or workers != {*names}:
                    with suppress(psycopg.errors.UndefinedTable):
                        rows = connection.execute(LATEST).fetchall()
                        read, readers = {row[0] for row in rows}, {row[1] for row in rows}
                        workers = {name for (name,) in connection.execute(WORKERS)}
                    assert read <= mine
                    time.sleep(0.005)

    anna, berta = (spawn("several_clusters", name, *clusters) for name in ("anna", "berta"))
    all_are_read_by("anna", "berta")
    anna.send_signal(signal.SIGTERM)
    assert anna.communicate()[0] == "left\n"
    all_are_read_by("berta")
    berta.send_signal(signal.SIGINT)
    assert berta.communicate()[0] == "left\n"
    assert (anna.returncode, berta.returncode) == (0, 0)


WORKERS = "SELECT name FROM sync_node"
LATEST = "SELECT DISTINCT ON (sensor) sensor, read_by FROM reading ORDER BY sensor, at DESC"


def test_a_further_cluster_takes_its_share_and_nothing_moves_between_the_others(example):
    cluster_of = example("several_clusters").cluster_of
    ids = [f"id-{n}" for n in range(3000)]
    before = {one: cluster_of(one, ["A", "B", "C"]) for one in ids}
    after = {one: cluster_of(one, ["D", "C", "B", "A"]) for one in ids}
    assert {after[one] for one in ids if after[one] != before[one]} == {"D"}
    assert all(650 < count < 850 for count in Counter(after.values()).values())


class Exchange:
    """A WebSocket server that knows who is subscribed to what, and takes `lag` seconds to
    unsubscribe."""

    def __init__(self, lag: float) -> None:
        self.lag = lag
        self.subscribers: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()

    async def handle(self, connection) -> None:
        held: set[str] = set()
        try:
            async for message in connection:
                what, symbol = message.split()
                if what == "subscribe":
                    held.add(symbol)
                    self.subscribers[symbol] += 1
                    self.begun[symbol] += 1
                    self.most[symbol] = max(self.most[symbol], self.subscribers[symbol])
                    await connection.send("100.0")
                elif symbol in held:
                    await asyncio.sleep(self.lag)
                    held.remove(symbol)
                    self.subscribers[symbol] -= 1
                    await connection.send(f"unsubscribed {symbol}")
        finally:
            for symbol in held:
                self.subscribers[symbol] -= 1


@pytest.mark.parametrize("lag", [0, 0.4], ids=["quick", "slow"])
async def test_each_symbol_is_subscribed_once_in_the_cluster(dsn, example, lag):
    module = example("websocket_subscriptions")
    exchange = Exchange(lag)
    prices: dict[str, list[str]] = {"anna": [], "berta": []}

    async def all_subscribed() -> None:
        while any(exchange.subscribers[symbol] != 1 for symbol in module.SYMBOLS):
            await asyncio.sleep(0.005)

    with anyio.fail_after(15):
        async with serve(exchange.handle, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]

            def start(name: str) -> asyncio.Task[None]:
                told = prices[name]
                work = module.work(
                    name, dsn, f"ws://127.0.0.1:{port}", lambda symbol, price: told.append(symbol)
                )
                return asyncio.ensure_future(work)

            anna = start("anna")
            await all_subscribed()
            # The last price may be on its way still.
            while set(prices["anna"]) != set(module.SYMBOLS):
                await asyncio.sleep(0.005)
            berta = start("berta")
            while not prices["berta"]:
                await asyncio.sleep(0.005)
            await all_subscribed()
            anna.cancel()
            await asyncio.wait([anna])
            while set(prices["berta"]) != set(module.SYMBOLS):
                await asyncio.sleep(0.005)
            await all_subscribed()
            berta.cancel()
            await asyncio.wait([berta])
        assert set(exchange.most.values()) == {1}, (
            "two workers were subscribed to one symbol at once"
        )
        assert not +exchange.subscribers


@asynccontextmanager
async def served(app, port: int):
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none")
    )
    running = asyncio.ensure_future(server._serve())
    while not server.started:
        assert not running.done()
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await running


async def health(app) -> dict[str, int]:
    """What an application says of itself that no server has started, or none runs any more."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://here"
    ) as client:
        return {
            what: (await client.get(f"/health/{what}")).status_code for what in ("live", "ready")
        }


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


async def test_requests_reach_the_owner_wherever_they_arrive(dsn, example):
    make_app = example("fastapi_service").make_app
    one, two = free_ports(2)
    addresses = [f"http://127.0.0.1:{port}" for port in (one, two)]
    # What an id may hold must survive the redirect.
    tasks = [*(f"task-{n}" for n in range(20)), "50%", "25%41", "what?", "a#b", "a b", "ü&x=1"]
    with anyio.fail_after(15):
        async with httpx.AsyncClient(follow_redirects=True) as client:
            app_one = make_app(dsn, "one")
            assert await health(app_one) == {"live": 200, "ready": 503}  # not started yet
            async with served(app_one, one):
                async with served(make_app(dsn, "two"), two):
                    assert (await client.get(f"{addresses[0]}/health/live")).json() == {
                        "status": "live"
                    }
                    ready = (await client.get(f"{addresses[1]}/health/ready")).json()
                    assert ready == {"ready": True, "worker": "two", "tokens": 5000}
                    servers = set()
                    for task in tasks:
                        answers = [
                            await client.get(f"{address}/tasks/{quote(task)}")
                            for address in addresses
                        ]
                        assert [answer.status_code for answer in answers] == [200, 200]
                        assert answers[0].text == answers[1].text
                        assert answers[0].text.endswith(f" serves {task}")
                        assert sorted(len(answer.history) for answer in answers) == [0, 1]
                        servers.add(answers[0].text.split()[0])
                    assert servers == {"one", "two"}
                    assert (await client.post(f"{addresses[1]}/drain")).json() == {"tokens": 0}
                    assert (
                        await client.get(f"{addresses[1]}/tasks/task-1")
                    ).text == "one serves task-1"
                # The second one has left: the first serves everything.
                for task in (f"task-{n}" for n in range(20)):
                    assert (
                        await client.get(f"{addresses[0]}/tasks/{task}")
                    ).text == f"one serves {task}"
            # Stopped, but somebody still asks.
            assert await health(app_one) == {
                "live": 200,
                "ready": 503,
            }


def test_the_quick_start_of_the_readme_runs_as_it_stands(dsn, tmp_path):
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    program = next(
        block
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "asyncio.run" in block
    )
    config = re.search(r"CoordinationConfig\(\s*host=.*?\)", program, re.DOTALL)
    assert config is not None
    script = tmp_path / "quick_start.py"
    script.write_text(
        program.replace(config.group(), "CoordinationConfig(dsn=__import__('os').environ['DSN'])"),
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, "DSN": dsn},
        check=True,
        timeout=60,
    )
    assert "doing invoice-1" in done.stdout
    assert "100 done here" in done.stdout
