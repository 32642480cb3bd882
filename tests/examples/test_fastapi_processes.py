"""The FastAPI service as servers run it: several processes on one port, and what they do when they
are told to end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from tests.examples.conftest import EXAMPLES
from tests.examples.test_examples import free_ports, served

FACTORY = "examples.fastapi_service:app_from_environment"
GUNICORN = [
    "gunicorn",
    "-k",
    "uvicorn_worker.UvicornWorker",
    "-w",
    "2",
    "--log-level",
    "warning",
    "--graceful-timeout",
    "10",
]
SERVERS = {
    "uvicorn": [
        "uvicorn",
        "--factory",
        FACTORY,
        "--workers",
        "2",
        "--log-level",
        "warning",
        "--port",
        "{port}",
    ],
    "gunicorn": [*GUNICORN, "-b", "127.0.0.1:{port}", f"{FACTORY}()"],
    "gunicorn --preload": [*GUNICORN, "--preload", "-b", "127.0.0.1:{port}", f"{FACTORY}()"],
}


@asynccontextmanager
async def running(dsn: str, *command: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A server, told to end and waited for; killed with its children if it does not."""
    environment = {**os.environ, "JOBSYNC_DSN": dsn, "PYTHONWARNINGS": ""}
    process = subprocess.Popen(
        command, cwd=EXAMPLES.parent, env=environment, start_new_session=True
    )
    try:
        yield process
        process.terminate()
        await anyio.to_thread.run_sync(process.wait, 20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def workers_of(port: int, count: int) -> set[str]:
    """The names of so many processes that answer at a port and are ready."""
    names: set[str] = set()
    while len(names) < count:
        try:
            # Another connection each time, which may lead to another process.
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{port}/health/ready")
        except httpx.TransportError:
            await asyncio.sleep(0.05)
            continue
        if answer.status_code == 200:
            names.add(answer.json()["worker"])
    return names


@pytest.mark.parametrize("kind", SERVERS)
async def test_two_processes_on_one_port_serve_each_task_at_its_owner_and_send_nobody_in_a_circle(
    dsn, kind
):
    (port,) = free_ports(1)
    program, *arguments = [part.format(port=port) for part in SERVERS[kind]]
    with anyio.fail_after(60):
        async with running(dsn, sys.executable, "-m", program, *arguments):
            names = await workers_of(port, 2)
            servers: dict[str, set[str]] = {}
            hops = set()
            for number in range(60):
                task = f"t{number % 10}"
                async with httpx.AsyncClient(follow_redirects=True, max_redirects=5) as client:
                    answer = await client.get(f"http://127.0.0.1:{port}/tasks/{task}")
                assert answer.status_code == 200, answer.text
                assert answer.text.endswith(f" serves {task}")
                servers.setdefault(task, set()).add(answer.text.split()[0])
                hops.add(len(answer.history))
            assert all(len(of_one) == 1 for of_one in servers.values()), (
                "a task is served by its owner alone"
            )
            assert set.union(*servers.values()) == names
            assert hops == {0, 1}


async def test_a_service_that_is_told_to_end_refuses_no_request(dsn):
    """Clients ask a balancer, which knows what is ready as of a moment ago."""
    ports = free_ports(2)
    targets = set(ports)
    answers, over = 0, asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            for port in ports:
                try:
                    async with httpx.AsyncClient() as client:
                        ready = (
                            await client.get(f"http://127.0.0.1:{port}/health/ready")
                        ).status_code == 200
                except httpx.TransportError:
                    ready = False
                (targets.add if ready else targets.discard)(port)
            await asyncio.sleep(0.2)

    async def ask(number: int) -> None:
        nonlocal answers
        while not over.is_set():
            for port in sorted(targets):
                async with httpx.AsyncClient(follow_redirects=True) as client:
                    answer = await client.get(
                        f"http://127.0.0.1:{port}/tasks/t{(answers + number) % 50}"
                    )
                assert answer.status_code == 200, answer.text
                answers += 1

    example = str(EXAMPLES / "fastapi_service.py")
    with anyio.fail_after(60):
        async with running(dsn, sys.executable, example, str(ports[0]), "stays"):
            async with running(dsn, sys.executable, example, str(ports[1]), "leaves") as leaves:
                for port in ports:
                    await workers_of(port, 1)
                async with anyio.create_task_group() as group:
                    group.start_soon(look)
                    for number in range(3):
                        group.start_soon(ask, number)
                    while answers < 50:
                        await asyncio.sleep(0.01)
                    leaves.terminate()
                    await anyio.to_thread.run_sync(leaves.wait, 20)
                    before = answers
                    while answers < before + 20:
                        await asyncio.sleep(0.01)
                    over.set()


async def test_liveness_says_when_the_job_has_ended_and_so_do_requests(dsn, example):
    app = example("fastapi_service").make_app(dsn, "one")
    (port,) = free_ports(1)
    with anyio.fail_after(15):
        async with (
            served(app, port),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            assert (await client.get("/health/live")).status_code == 200
            app.state.job._engine._fail(RuntimeError("its name was taken over"))
            assert (await client.get("/health/live")).json() == {"status": "ended"}
            for path in ("/health/live", "/health/ready", "/tasks/t1"):
                assert (await client.get(path)).status_code == 503, path


@pytest.mark.filterwarnings("ignore:.*httpx2.*")
def test_an_application_may_be_started_again_as_test_clients_do(dsn, example):
    from fastapi.testclient import TestClient

    app = example("fastapi_service").make_app(dsn, "one")
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/tasks/t1").text == "one serves t1"
