"""Some tasks want certain machines: pins with fallbacks.

Models are rendered on a worker whose name begins with ``gpu-``. While there is
none, they go to a ``big-`` one, and otherwise to any.

    JOBSYNC_DSN=postgresql://... python gpu_pinning.py big-1
    JOBSYNC_DSN=postgresql://... python gpu_pinning.py gpu-1

Without a name it takes its host and process id. Without JOBSYNC_DSN, libpq's
own settings say where the database is.
"""

import asyncio
import os
import socket
import sys

from jobsync_async import CoordinationConfig, Job

MODELS = [f"model-{letter}" for letter in "abcdefgh"]
REPORTS = [f"report-{number}" for number in range(8)]


async def pin_models(job: Job) -> None:
    """The `lock_provider`, which is called before the worker joins.

    Every worker may register the same pins.
    """
    patterns = ["gpu-%", "big-%", "%"]
    pins = [(model, patterns, "renders on a GPU") for model in MODELS]
    for conflict in await job.register_locks_bulk(pins):
        # Another task on the same token wants other workers.
        print(f"not pinned: {conflict}")


async def show_pins(job: Job) -> None:
    """Say which pins are in force, and where each pinned task runs now."""
    for lock in await job.list_locks():
        owner = await job.owner_of(lock.task_id)
        where = owner.node if owner else "nobody"
        wanted = f"{' or '.join(lock.node_patterns)} ({lock.reason})"
        print(f"pin {lock.task_id}: {wanted}; now on {where}", flush=True)


def mine(job: Job) -> tuple[list[str], list[str]]:
    """The models and the reports that this worker is to do now."""
    return job.filter_owned(MODELS), job.filter_owned(REPORTS)


async def work(name: str, dsn: str) -> None:
    """Say what is ours, whenever that changes."""
    config = CoordinationConfig(dsn=dsn, appname="gpu_")
    job = Job(name, config, lock_provider=pin_models, handle_signals=True)
    async with job:
        await show_pins(job)
        async for change in job.token_changes():
            models, reports = mine(job)
            tasks = f"models {models}; reports {reports}"
            print(f"{name}: {len(change.owned)} tokens; {tasks}", flush=True)


async def main() -> None:
    """What ``python gpu_pinning.py [name]`` does."""
    default = f"{socket.gethostname()}-{os.getpid()}"
    name = sys.argv[1] if len(sys.argv) > 1 else default
    await work(name, os.environ.get("JOBSYNC_DSN", ""))


if __name__ == "__main__":
    asyncio.run(main())
    print("left")
