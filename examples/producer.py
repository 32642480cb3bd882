"""Sends two messages a second to each partition of a topic of Kafka.

    python producer.py localhost:9092 orders 6

It makes the topic first, if there is none.
"""

import asyncio
import itertools
import sys

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, TopicAlreadyExistsError


async def make_topic(servers: str, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    while True:
        try:
            await admin.start()
            break
        except KafkaConnectionError:  # the broker is about to start
            await asyncio.sleep(0.1)
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1)])
    except TopicAlreadyExistsError:
        pass
    finally:
        await admin.close()


async def main() -> None:
    servers, topic, partitions = sys.argv[1], sys.argv[2], int(sys.argv[3])
    await make_topic(servers, topic, partitions)
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        print(f"Sending to the {partitions} partitions of {topic}.", flush=True)
        for number in itertools.count(1):
            for partition in range(partitions):
                value = f"order {number}".encode()
                await producer.send_and_wait(topic, value, partition=partition)
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("The producer has stopped.")
