"""A worker process that tells of every change of its tokens, with the time on the clock that all processes share.

Each line is JSON: ``t`` (seconds), ``owned`` (how many), ``come`` and ``gone`` (token ids), or an event such as ``leaving``.
A token is gone when the worker has said so; the stream is asked for its next item after that.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from jobsync_async import CoordinationConfig, Job


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps({"t": time.monotonic(), **what}) + "\n")
    sys.stdout.flush()


async def follow(job: Job) -> None:
    async for change in job.token_changes():
        gone = sorted(change.revoked | change.lost)
        tell(owned=len(change.owned), come=sorted(change.assigned), gone=gone)


async def main(name: str) -> None:
    config = CoordinationConfig(appname="own_reaction_")  # the server is in libpq's environment variables
    job = Job(name, config, lock_provider=lambda _: tell(joining=True))  # called when it is connected and about to join
    await job.start()
    following = asyncio.ensure_future(follow(job))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    tell(leaving=True)
    await job.stop()
    await following
    tell(left=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
