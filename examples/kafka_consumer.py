"""Kafka consumers without a consumer group's rebalances: each partition is consumed by the worker that owns its token.

    JOBSYNC_DSN=postgresql://... python examples/kafka_consumer.py anna localhost:9092 orders 12

With ``hash_function="modulo"`` and as many tokens as partitions, partition 5 is token 5, and all are spread evenly. Offsets are
committed to Kafka before a partition is handed on, so the next worker goes on where this one stopped.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import anyio
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from jobsync_async import Claim, CoordinationConfig, Job

Handler = Callable[[Claim, ConsumerRecord], Awaitable[None]]


async def consume(claim: Claim, servers: str, topic: str, handle: Handler) -> None:
    """Consume one partition until its token goes."""
    partition = TopicPartition(topic, int(str(claim.task_id)))
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=f"{topic}-workers", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        consumer.assign([partition])
        async for message in consumer:
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
    async with Job(name, config) as job:
        await job.run_owned(range(partitions), lambda claim: consume(claim, servers, topic, handle))


async def show(claim: Claim, message: ConsumerRecord) -> None:
    """What to do with a message. An effect elsewhere would send `claim.epoch` along."""
    print(f"partition {claim.task_id}, epoch {claim.epoch}: {message.value!r}", flush=True)


if __name__ == "__main__":
    me, bootstrap, orders, count = sys.argv[1:]
    try:
        asyncio.run(work(me, os.environ.get("JOBSYNC_DSN", ""), bootstrap, orders, int(count), show))
    except KeyboardInterrupt:
        print("left")
