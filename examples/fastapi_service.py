"""A service whose processes each serve the tasks that they own.

A request for another process's task is sent there. As one process, or as two
that share a port:

    JOBSYNC_DSN=postgresql://... python fastapi_service.py 8001 api-1

    JOBSYNC_DSN=postgresql://... \
        uvicorn --factory fastapi_service:app_from_environment \
        --port 8003 --workers 2

    JOBSYNC_DSN=postgresql://... \
        gunicorn -k uvicorn_worker.UvicornWorker -w 2 \
        'fastapi_service:app_from_environment()'

Processes that share a port need an address each. Otherwise a request that is
sent to one of them reaches any. So each also listens on a port of its own, on
the host that HOST names (127.0.0.1 if it is left out). Without JOBSYNC_DSN,
libpq's own settings say where the database is.

``/health/live`` says that the process can work. Restart it when that says 503,
or does not answer. ``/health/ready`` says that this worker may act. Send it no
requests while it says 503.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote

import anyio
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from jobsync_async import CoordinationConfig, Job, JobSyncError

# A task that changes hands has an owner again within this time, also when its
# worker was killed.
PATIENCE_SEC = 6.0


class OwnPort(uvicorn.Server):
    """Serves the same application on a port of this process alone.

    Signals are the main server's.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served(app: FastAPI, door: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
    server = OwnPort(config)
    serving = asyncio.create_task(server.serve(sockets=[door]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def make_app(
    dsn: str,
    name: str | None = None,
    *,
    host: str = "127.0.0.1",
    grace_sec: float = 2,
) -> FastAPI:
    """The application of one process, or of several that are forked after this.

    `host`: where clients reach this machine. `grace_sec`: so long a load
    balancer may take to see that a process is not ready.
    """
    config = CoordinationConfig(
        dsn=dsn,
        appname="api_",
        heartbeat_interval_sec=1.5,
        heartbeat_timeout_sec=4,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Made here, in the process that serves, and anew at each start: name,
        # port and Job are its own.
        with socket.create_server((host, 0)) as door:
            address = f"http://{host}:{door.getsockname()[1]}"
            own_name = name or f"{socket.gethostname()}-{os.getpid()}"
            job = Job(own_name, config, address=address)
            app.state.job, app.state.leaving = job, False
            async with served(app, door), job:
                with first_hand_on(app, job, grace_sec):
                    yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/live")
    async def live(response: Response) -> dict[str, str]:
        job: Job | None = getattr(app.state, "job", None)
        ended = job is not None and job.failure is not None
        response.status_code = 503 if ended else 200
        return {"status": "ended" if ended else "live"}

    @app.get("/health/ready")
    async def ready(response: Response) -> dict[str, object]:
        job: Job | None = getattr(app.state, "job", None)
        healthy = job is not None and job.am_i_healthy()
        healthy = healthy and not app.state.leaving
        response.status_code = 200 if healthy else 503
        return {
            "ready": healthy,
            "worker": job.node_name if job else None,
            "tokens": len(job.my_tokens) if job else 0,
        }

    @app.get("/tasks/{task_id}")
    async def serve(task_id: str) -> Response:
        job: Job = app.state.job
        deadline = time.monotonic() + PATIENCE_SEC
        while True:
            if job.can_claim_task(task_id):
                async with job.claim(task_id) as claim:
                    return Response(f"{job.node_name} serves {claim.task_id}")
            owner = await job.owner_of(task_id)
            if owner and owner.address and owner.node != job.node_name:
                path = f"/tasks/{quote(task_id, safe='')}"
                return RedirectResponse(owner.address + path, status_code=307)
            if time.monotonic() > deadline:
                return unavailable("this task has no owner; try again")
            await asyncio.sleep(0.05)  # it is changing hands

    @app.exception_handler(JobSyncError)
    async def cannot(_: Request, error: JobSyncError) -> Response:
        return unavailable(str(error))

    @app.post("/drain")
    async def drain() -> dict[str, int]:
        """For the hook that runs before the process is stopped."""
        job: Job = app.state.job
        await job.drain()
        return {"tokens": len(job.my_tokens)}

    return app


def unavailable(why: str) -> Response:
    return JSONResponse({"detail": why}, 503, {"Retry-After": "1"})


@contextmanager
def first_hand_on(app: FastAPI, job: Job, grace_sec: float) -> Iterator[None]:
    """On SIGTERM hand everything on before the server closes its port.

    The server would close it at once, and requests that are on their way would
    be refused. So they are answered while everything is handed on, and until
    the load balancer sees that this process is not ready.
    """
    server = signal.getsignal(signal.SIGTERM)
    main_thread = threading.current_thread() is threading.main_thread()
    if not callable(server) or not main_thread:
        yield  # nobody listens to signals here
        return
    leaving: list[asyncio.Task[None]] = []

    async def leave() -> None:
        app.state.leaving = True
        try:
            with anyio.move_on_after(30):
                await job.drain()
            await asyncio.sleep(grace_sec)
        except JobSyncError as error:
            print(f"could not hand on: {error}", file=sys.stderr)
        finally:
            server(signal.SIGTERM, None)

    def told() -> None:
        if leaving:  # again: at once
            leaving[0].cancel()
        else:
            leaving.append(asyncio.create_task(leave()))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, server)


def app_from_environment(name: str | None = None) -> FastAPI:
    """For servers that are given the name of a function."""
    dsn = os.environ.get("JOBSYNC_DSN", "")
    return make_app(dsn, name, host=os.environ.get("HOST", "127.0.0.1"))


async def main() -> None:
    """What ``python fastapi_service.py PORT [name]`` does."""
    port, *names = sys.argv[1:]
    app = app_from_environment(*names)
    await uvicorn.Server(uvicorn.Config(app, port=int(port))).serve()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:  # uvicorn has shut down in order
        print("left")
