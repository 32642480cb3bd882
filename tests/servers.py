"""The PostgreSQL server that the tests run on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async.embedded import EmbeddedPostgres
from tests import products

IMAGE = os.environ.get("JOBSYNC_TEST_IMAGE", "postgres:18")


@dataclass(frozen=True)
class Server:
    """Where it is, as a superuser, how it was chosen, and how applications reach it."""

    dsn: str
    kind: str
    road: str

    def given(self, dsn: str) -> str:
        """The DSN that an application gets to a database, which a superuser reaches by `dsn`."""
        return make_conninfo(self.road, dbname=conninfo_to_dict(dsn)["dbname"])

    def __str__(self) -> str:
        with psycopg.connect(self.dsn) as connection:
            return f"PostgreSQL {connection.info.server_version // 10000}, {self.kind}"


@contextmanager
def chosen() -> Iterator[Server]:
    """What `JOBSYNC_TEST_DSN` names; else an embedded one, when `JOBSYNC_EMBEDDED_POSTGRES` names
    its folder; else a container, when a Docker engine answers and has the image; else the embedded
    one that is installed. A product has its own."""
    product = products.chosen()
    if product is not None:
        with products.running(product) as (dsn, road):
            yield Server(dsn, product.like, road)
        return
    dsn = os.environ.get("JOBSYNC_TEST_DSN")
    if dsn:
        yield Server(dsn, "given by JOBSYNC_TEST_DSN", dsn)
        return
    named = os.environ.get("JOBSYNC_EMBEDDED_POSTGRES")
    no_container = f"from {named}" if named else _why_no_container()
    if no_container is None:
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer(IMAGE, driver=None) as container:
            dsn = container.get_connection_url()
            yield Server(dsn, f"container of {IMAGE}", dsn)
        return
    with EmbeddedPostgres() as postgres:
        yield Server(postgres.dsn, f"embedded ({no_container})", postgres.dsn)


def _why_no_container() -> str | None:
    import docker
    from docker.errors import DockerException

    if "DOCKER_HOST" not in os.environ and not _answers("/var/run/docker.sock"):
        return "no Docker engine answers"
    client = None
    try:
        client = docker.from_env(timeout=20)
        try:
            client.images.get(IMAGE)
        except DockerException:
            client.images.pull(IMAGE)
    except (DockerException, OSError):
        return f"no Docker engine that has the image {IMAGE} or can get it answers"
    finally:
        if client is not None:
            client.close()
    return None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
