"""Some tasks want certain machines: pins with fallbacks.

Models are rendered on a worker whose name begins with ``gpu-``; while there is none, on a ``big-`` one; else anywhere.

    JOBSYNC_DSN=postgresql://... python examples/gpu_pinning.py big-1
    JOBSYNC_DSN=postgresql://... python examples/gpu_pinning.py gpu-1
"""

import asyncio
import os
import sys

from jobsync_async import CoordinationConfig, Job, TokenChange

MODELS = [f"model-{letter}" for letter in "abcdefgh"]
REPORTS = [f"report-{number}" for number in range(8)]


async def pin_models(job: Job) -> None:
    """The `lock_provider`: called before the worker joins. Every worker may register the same pins."""
    await job.register_locks_bulk([(model, ["gpu-%", "big-%", "%"], "renders on a GPU") for model in MODELS])


def mine(job: Job) -> tuple[list[str], list[str]]:
    """The models and the reports that this worker is to do now."""
    return job.filter_owned(MODELS), job.filter_owned(REPORTS)


async def work(name: str, dsn: str) -> None:
    """Say what is ours, whenever that changes."""
    config = CoordinationConfig(dsn=dsn, appname="gpu_")
    async with Job(name, config, lock_provider=pin_models) as job:
        change: TokenChange
        async for change in job.token_changes():
            models, reports = mine(job)
            print(f"{name}: {len(change.owned)} tokens; models {models}; reports {reports}", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(work(sys.argv[1] if len(sys.argv) > 1 else "any-1", os.environ.get("JOBSYNC_DSN", "")))
    except KeyboardInterrupt:
        print("left")
