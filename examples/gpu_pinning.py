"""Some tasks want certain machines: pins with fallbacks.

Models are rendered on a worker whose name begins with ``gpu-``; while there is none, on a ``big-`` one; else anywhere.

    JOBSYNC_DSN=postgresql://... python examples/gpu_pinning.py big-1
    JOBSYNC_DSN=postgresql://... python examples/gpu_pinning.py gpu-1

The name is the host and process id if it is left out; without JOBSYNC_DSN, libpq's own settings say where the database is.
"""

import asyncio
import os
import socket
import sys

from jobsync_async import CoordinationConfig, Job

MODELS = [f"model-{letter}" for letter in "abcdefgh"]
REPORTS = [f"report-{number}" for number in range(8)]


async def pin_models(job: Job) -> None:
    """The `lock_provider`: called before the worker joins. Every worker may register the same pins."""
    pins = [(model, ["gpu-%", "big-%", "%"], "renders on a GPU") for model in MODELS]
    for conflict in await job.register_locks_bulk(pins):
        print(f"not pinned: {conflict}")  # another task on the same token wants other workers


async def show_pins(job: Job) -> None:
    """Say which pins are in force, whoever made them, and where each pinned task runs now."""
    for lock in await job.list_locks():
        owner = await job.owner_of(lock.task_id)
        where = owner.node if owner else "nobody"
        print(f"pin {lock.task_id}: {' or '.join(lock.node_patterns)} ({lock.reason}); now on {where}", flush=True)


def mine(job: Job) -> tuple[list[str], list[str]]:
    """The models and the reports that this worker is to do now."""
    return job.filter_owned(MODELS), job.filter_owned(REPORTS)


async def work(name: str, dsn: str) -> None:
    """Say what is ours, whenever that changes."""
    config = CoordinationConfig(dsn=dsn, appname="gpu_")
    async with Job(name, config, lock_provider=pin_models, handle_signals=True) as job:
        await show_pins(job)
        async for change in job.token_changes():
            models, reports = mine(job)
            print(f"{name}: {len(change.owned)} tokens; models {models}; reports {reports}", flush=True)


async def main() -> None:
    """What ``python examples/gpu_pinning.py [name]`` does."""
    name = sys.argv[1] if len(sys.argv) > 1 else f"{socket.gethostname()}-{os.getpid()}"
    await work(name, os.environ.get("JOBSYNC_DSN", ""))


if __name__ == "__main__":
    asyncio.run(main())
    print("left")
