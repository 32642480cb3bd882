"""examples/deploy: the files are valid, and what their containers run does what they say.

There is no Docker engine and no Kubernetes here. So each container's command runs as a process with
exactly the variables that the file gives it, but for the place of the server and the port.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from jobsync_async import CoordinationConfig
from tests.documents.blocks import blocks_of
from tests.examples.conftest import EXAMPLES
from tests.examples.test_examples import free_ports
from tests.processes import short_lived

DEPLOY = EXAMPLES / "deploy"
PASSWORDS = {"OWNER_PASSWORD": "it's the owner's", "WORKER_PASSWORD": "it's \"a\" $worker's\\"}
SLACK_SEC = 5
"""What the grace period has over the hand-off timeout, to cancel and leave."""


@dataclass
class Container:
    """What one of them runs, with which variables; and what stops it and asks it."""

    command: list[str]
    environment: dict[str, str]
    grace_sec: float = 0
    paths: dict[str, str] = field(default_factory=dict)


def kubernetes() -> dict[str, Container]:
    """The containers of the manifest, by name, as the kubelet would run them."""
    docs = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    named = {(doc["kind"], doc["metadata"]["name"]): doc for doc in docs}
    data = {
        **{name: doc["data"] for (kind, name), doc in named.items() if kind == "ConfigMap"},
        **{name: doc["stringData"] for (kind, name), doc in named.items() if kind == "Secret"},
    }
    assert data["jobsync-login"]["login.sql"] == (DEPLOY / "login.sql").read_text("utf-8")
    data["jobsync-owner"]["password"] = PASSWORDS["OWNER_PASSWORD"]
    data["jobsync-worker"]["password"] = PASSWORDS["WORKER_PASSWORD"]

    def value(one: dict[str, Any]) -> str:
        source = one.get("valueFrom")
        if source is None:
            return str(one["value"])
        if "fieldRef" in source:
            assert source["fieldRef"] == {"fieldPath": "metadata.name"}
            return "jobsync-worker-7d4f-abcde"
        (ref,) = source.values()
        return data[ref["name"]][ref["key"]]

    found = {}
    for kind, name in (("Job", "jobsync-init"), ("Deployment", "jobsync-worker")):
        spec = named[kind, name]["spec"]["template"]["spec"]
        for one in [*spec.get("initContainers", []), *spec["containers"]]:
            environment: dict[str, str] = {}
            for source in one.get("envFrom", []):
                environment |= data[source["configMapRef"]["name"]]
            environment |= {each["name"]: value(each) for each in one["env"]}
            found[one["name"]] = Container(
                one["command"],
                environment,
                spec.get("terminationGracePeriodSeconds", 0),
                {
                    probe: one[f"{probe}Probe"]["httpGet"]["path"]
                    for probe in ("liveness", "readiness", "startup")
                    if f"{probe}Probe" in one
                },
            )
    return {"init": found["tables"], "login": found["login"], "worker": found["worker"]}


def compose() -> dict[str, Container]:
    """The containers of the Compose file, with passwords in place of the variables."""
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    services = yaml.safe_load(text)["services"]
    (default,) = [
        line.removeprefix("CMD ")
        for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
        if line.startswith("CMD ")
    ]

    def given(value: str) -> str:
        if not value.startswith("${"):
            return value
        return PASSWORDS[value.removeprefix("${").removesuffix("}").partition(":")[0]]

    return {
        name: Container(
            services[name].get("command", yaml.safe_load(default)),
            {key: given(value) for key, value in services[name]["environment"].items()},
            float(services[name].get("stop_grace_period", "0s").removesuffix("s")),
            {"readiness": "/health/ready", "liveness": "/health/live"},
        )
        for name in ("init", "login", "worker")
    }


@pytest.fixture(params=[kubernetes, compose])
def containers(request: pytest.FixtureRequest) -> dict[str, Container]:
    return request.param()


@pytest.fixture
def place(empty_dsn: str) -> Iterator[dict[str, str]]:
    """Where the server is, with an owner of the database who is no superuser but may make roles."""
    where = conninfo_to_dict(empty_dsn)
    database, password = (
        sql.Identifier(str(where["dbname"])),
        sql.Literal(PASSWORDS["OWNER_PASSWORD"]),
    )
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        for statement in (
            sql.SQL("CREATE ROLE owner LOGIN CREATEROLE PASSWORD {}").format(password),
            sql.SQL("ALTER DATABASE {} OWNER TO owner").format(database),
            sql.SQL("ALTER SCHEMA public OWNER TO owner"),
        ):
            connection.execute(statement)
        yield {"HOST": str(where["host"]), "PORT": str(where["port"]), "DB": str(where["dbname"])}
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(database))
        roles = "SELECT rolname FROM pg_roles WHERE rolname IN ('owner', 'worker') ORDER BY 1 DESC"
        for (role,) in connection.execute(roles).fetchall():
            for end in ("DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
                connection.execute(sql.SQL(end).format(sql.Identifier(role)))


class Node:
    """Runs containers as processes."""

    def __init__(self, place: dict[str, str], folder: Path, start: Callable[..., Any]) -> None:
        self._place = place
        self._folder = folder
        self._start = start

    def start(self, container: Container, **more: str) -> subprocess.Popen[str]:
        environment = {**container.environment, **more}
        name, port, database = (
            ("PGHOST", "PGPORT", "PGDATABASE")
            if "PGHOST" in environment
            else ("JOBSYNC_HOST", "JOBSYNC_PORT", "JOBSYNC_DBNAME")
        )
        assert name in environment and database in environment
        environment |= dict(zip((name, port, database), self._place.values(), strict=True))
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = [
            str(self._folder / part.rpartition("/")[2]) if part.startswith("/") else part
            for part in container.command
        ]
        return self._start(command, cwd=self._folder, env=environment)

    def run(self, container: Container) -> None:
        process = self.start(container)
        process.communicate()
        assert process.returncode == 0


@pytest.fixture
def node(place: dict[str, str], tmp_path: Path) -> Iterator[Node]:
    shutil.copy(EXAMPLES / "worker.py", tmp_path)
    shutil.copy(DEPLOY / "login.sql", tmp_path)
    with short_lived() as start:
        yield Node(place, tmp_path, start)


def asked(port: int, path: str) -> int:
    """The status that a probe gets; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until_ready(process: subprocess.Popen[str], port: int, container: Container) -> None:
    while asked(port, container.paths["readiness"]) != 200:
        assert process.poll() is None
        time.sleep(0.01)


def test_the_containers_make_the_tables_work_with_few_rights_and_leave_in_time(
    containers, node, empty_dsn
):
    if shutil.which("psql") is None:
        pytest.skip("there is no psql")
    worker = containers["worker"]
    for name in ("init", "login"):
        for _ in range(2):  # again changes nothing
            node.run(containers[name])
    ports = free_ports(2)
    first, second = (
        node.start(worker, PORT=str(port), **({"NODE_NAME": f"worker-{port}"} if number else {}))
        for number, port in enumerate(ports)
    )
    for process, port in ((first, ports[0]), (second, ports[1])):
        until_ready(process, port, worker)
        assert {asked(port, path) for path in worker.paths.values()} == {200}
        assert asked(port, "/else") == 503
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sync_node")}
        first_name = worker.environment.get("NODE_NAME") or socket.gethostname()
        assert names == {first_name, f"worker-{ports[1]}"}
        users = connection.execute(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name LIKE 'jobsync%'"
        )
        assert users.fetchall() == [("worker",)]
        owners = connection.execute(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'sync%'"
        )
        assert owners.fetchall() == [("owner",)]
        began = time.monotonic()
        first.send_signal(signal.SIGTERM)
        first.communicate()
        assert first.returncode == 0
        assert time.monotonic() - began < SLACK_SEC
        while connection.execute(
            "SELECT count(*) FILTER (WHERE node = %s), count(*) FROM sync_token",
            [f"worker-{ports[1]}"],
        ).fetchone() != (10_000, 10_000):
            time.sleep(0.01)
    second.send_signal(signal.SIGTERM)
    second.communicate()
    assert second.returncode == 0


def test_work_that_does_not_let_go_is_left_within_the_slack_of_the_grace_period(
    containers, node, tmp_path
):
    program = tmp_path / "worker.py"
    text = program.read_text("utf-8")
    stubborn = text.replace("    finally:\n", "    finally:\n        await asyncio.sleep(600)\n")
    assert stubborn != text
    program.write_text(stubborn, "utf-8")
    node.run(containers["init"])
    (port,) = free_ports(1)
    owner = {
        name: containers["init"].environment[name] for name in ("JOBSYNC_USER", "JOBSYNC_PASSWORD")
    }
    worker = containers["worker"]
    process = node.start(worker, PORT=str(port), JOBSYNC_HANDOFF_TIMEOUT_SEC="1", **owner)
    until_ready(process, port, worker)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
    assert 1 <= time.monotonic() - began < 1 + SLACK_SEC


def test_the_grace_period_is_longer_than_a_hand_off_may_take(containers):
    config = CoordinationConfig.from_env(
        environ={
            name: value
            for name, value in containers["worker"].environment.items()
            if name.startswith("JOBSYNC_")
        }
    )
    assert containers["worker"].grace_sec >= config.handoff_timeout_sec + 2 * SLACK_SEC


@pytest.mark.parametrize("version", ["1.27", "1.32", "1.37"])
def test_the_manifest_is_valid_for_the_versions_of_kubernetes(version):
    for doc in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")):
        kubernetes_validate.validate(doc, version, strict=True)


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_each_file_stands_whole_on_the_page(path):
    page = DEPLOY.parents[1] / "docs" / "how-to" / "containers.md"
    assert [b.text for b in blocks_of(page) if b.title == path.name] == [path.read_text("utf-8")]
