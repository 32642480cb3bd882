"""Kafka consumers without a consumer group's rebalances: each partition is consumed by the worker that owns its token.

    JOBSYNC_DSN=postgresql://... python examples/kafka_consumer.py localhost:9092 orders 12 anna

The name is the host and process id if it is left out; without JOBSYNC_DSN, libpq's own settings say where the database is.

With ``hash_function="modulo"`` and as many tokens as partitions, partition 5 is token 5, and all are spread evenly. Offsets are
committed to Kafka before a partition is handed on, so the next worker goes on where this one stopped.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from jobsync_async import Claim, CoordinationConfig, Job

Handler = Callable[[Claim, ConsumerRecord], Awaitable[None]]


async def consume(claim: Claim, servers: str, topic: str, handle: Handler) -> None:
    """Consume one partition until its token goes."""
    partition = TopicPartition(topic, int(str(claim.task_id)))
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=f"{topic}-workers", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        await consumer.start()
        consumer.assign([partition])
        async for message in consumer:
            # Many messages are fetched at once, and taking the next of them waits for nothing: look here whether to stop.
            await anyio.lowlevel.checkpoint()
            with anyio.CancelScope(shield=True):  # a message is either handled and its offset committed, or neither
                await handle(claim, message)
                await consumer.commit({partition: message.offset + 1})
    finally:
        with anyio.CancelScope(shield=True):
            await consumer.stop()


async def work(name: str, dsn: str, servers: str, topic: str, partitions: int, handle: Handler) -> None:
    """Join, and consume the partitions that are this worker's until it is stopped."""
    config = CoordinationConfig(
        dsn=dsn, appname=f"kafka_{topic}_", total_tokens=partitions, hash_function="modulo", rebalance_delay_sec=0.5
    )
    async with Job(name, config, handle_signals=True) as job:
        await job.run_owned(range(partitions), lambda claim: consume(claim, servers, topic, handle))


async def show(claim: Claim, message: ConsumerRecord) -> None:
    """What to do with a message. An effect elsewhere would send `claim.epoch` along."""
    print(f"partition {claim.task_id}, epoch {claim.epoch}: {message.value!r}", flush=True)


async def main() -> None:
    """What ``python examples/kafka_consumer.py SERVERS TOPIC PARTITIONS [name]`` does."""
    servers, topic, partitions, *given = sys.argv[1:]
    name = given[0] if given else f"{socket.gethostname()}-{os.getpid()}"
    await work(name, os.environ.get("JOBSYNC_DSN", ""), servers, topic, int(partitions), show)


if __name__ == "__main__":
    asyncio.run(main())
    print("left")
