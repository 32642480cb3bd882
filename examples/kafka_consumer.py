"""Kafka consumers without a consumer group's rebalances.

Each partition is consumed by the worker that owns its token:

    JOBSYNC_DSN=postgresql://... \
        python kafka_consumer.py localhost:9092 orders 6 anna

Without a name it takes its host and process id. Without JOBSYNC_DSN, libpq's
own settings say where the database is.

With ``hash_function="modulo"`` and as many tokens as partitions, partition 5 is
token 5, and all are spread evenly. Offsets are committed to Kafka before a
partition is handed on. So the next worker goes on where this one stopped.
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

Handler = Callable[[Claim[int], ConsumerRecord], Awaitable[None]]


async def consume(
    claim: Claim[int],
    servers: str,
    topic: str,
    handle: Handler,
) -> None:
    """Consume one partition until its token goes."""
    partition = TopicPartition(topic, claim.task_id)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers,
        group_id=f"{topic}-workers",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        await consumer.start()
        consumer.assign([partition])
        async for message in consumer:
            # Many messages are fetched at once, and taking the next of them
            # waits for nothing. Look here whether to stop.
            await anyio.lowlevel.checkpoint()
            # A message is handled and its offset committed, or neither.
            with anyio.CancelScope(shield=True):
                await handle(claim, message)
                await consumer.commit({partition: message.offset + 1})
    finally:
        with anyio.CancelScope(shield=True):
            await consumer.stop()


async def work(
    name: str,
    dsn: str,
    servers: str,
    topic: str,
    partitions: int,
    handle: Handler,
) -> None:
    """Join, and consume this worker's partitions until it is stopped."""
    config = CoordinationConfig(
        dsn=dsn,
        appname=f"kafka_{topic}_",
        total_tokens=partitions,
        hash_function="modulo",
        rebalance_delay_sec=0.5,
    )

    async def run(claim: Claim[int]) -> None:
        await consume(claim, servers, topic, handle)

    async with Job(name, config, handle_signals=True) as job:
        await job.run_owned(range(partitions), run)


async def show(claim: Claim[int], message: ConsumerRecord) -> None:
    """An effect elsewhere would send `claim.epoch` along."""
    said = message.value.decode()
    print(f"partition {claim.task_id}: {said}, epoch {claim.epoch}", flush=True)


async def main() -> None:
    """``python kafka_consumer.py SERVERS TOPIC PARTITIONS [name]``."""
    servers, topic, partitions, *names = sys.argv[1:]
    name = names[0] if names else f"{socket.gethostname()}-{os.getpid()}"
    dsn = os.environ.get("JOBSYNC_DSN", "")
    await work(name, dsn, servers, topic, int(partitions), show)


if __name__ == "__main__":
    asyncio.run(main())
    print("left")
