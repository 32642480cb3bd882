"""A service whose instances each serve the tasks that they own, and send a request for another's task there.

    JOBSYNC_DSN=postgresql://... python examples/fastapi_service.py 8001 api-1
    JOBSYNC_DSN=postgresql://... PORT=8001 uvicorn --factory examples.fastapi_service:app_from_environment --port 8001

The name is the host and process id if it is left out; without JOBSYNC_DSN, libpq's own settings say where the database is.

``/health/live`` says that the event loop runs: restart the process when it does not answer. ``/health/ready`` says that this
worker may act: send it no requests while it says 503.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import RedirectResponse

from jobsync_async import CoordinationConfig, Job


def make_app(name: str, address: str, dsn: str) -> FastAPI:
    """The application of one instance, which others reach at `address`."""
    # A request that was redirected must arrive: an instance that dies is replaced within five seconds.
    config = CoordinationConfig(dsn=dsn, appname="api_", heartbeat_interval_sec=1.5, heartbeat_timeout_sec=4)
    job = Job(name, config, address=address)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with job:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready(response: Response) -> dict[str, object]:
        healthy = job.am_i_healthy()
        response.status_code = 200 if healthy else 503
        return {"ready": healthy, "worker": name, "tokens": len(job.my_tokens)}

    @app.get("/tasks/{task_id}")
    async def serve(task_id: str) -> Response:
        if job.can_claim_task(task_id):
            async with job.claim(task_id) as claim:
                return Response(f"{name} serves {claim.task_id}")
        owner = await job.owner_of(task_id)
        if owner is None or owner.address is None or owner.node == name:
            raise HTTPException(503, "this task is changing hands; try again", headers={"Retry-After": "1"})
        return RedirectResponse(f"{owner.address}/tasks/{quote(task_id, safe='')}", status_code=307)

    @app.post("/drain")
    async def drain() -> dict[str, int]:
        """For the hook that runs before the process is stopped: hand everything on first."""
        await job.drain()
        return {"tokens": len(job.my_tokens)}

    return app


def app_from_environment() -> FastAPI:
    """For ``uvicorn --factory``."""
    port = os.environ.get("PORT", "8000")
    address = os.environ.get("ADDRESS", f"http://127.0.0.1:{port}")
    name = os.environ.get("NAME", f"{socket.gethostname()}-{os.getpid()}")
    return make_app(name, address, os.environ.get("JOBSYNC_DSN", ""))


async def main() -> None:
    """What ``python examples/fastapi_service.py PORT [name]`` does."""
    port = int(sys.argv[1])
    name = sys.argv[2] if len(sys.argv) > 2 else f"{socket.gethostname()}-{os.getpid()}"
    app = make_app(name, f"http://127.0.0.1:{port}", os.environ.get("JOBSYNC_DSN", ""))
    await uvicorn.Server(uvicorn.Config(app, port=port)).serve()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:  # uvicorn has shut down in order
        print("left")
