"""The servers of the peers: each on a free port of the loopback interface, with a folder of its
own, gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.sides import LeftOut, Side

_JARS = Path("/usr/share/java")
_ZOOKEEPER = _JARS / "zookeeper.jar"
_MAIN = "org.apache.zookeeper.server.ZooKeeperServerMain"
_READY_WITHIN_SEC = 30.0


@contextmanager
def zookeeper() -> Iterator[str]:
    """A ZooKeeper of Debian's package with its own default settings; its address.

    Raises:
        LeftOut: it, or Java, is not there and cannot be installed; or it does not start.
    """
    if not _ZOOKEEPER.exists() or shutil.which("java") is None:
        _install("zookeeper")
    java = shutil.which("java")
    if not _ZOOKEEPER.exists() or java is None:
        raise LeftOut(f"there is no Java, or no {_ZOOKEEPER}: install Debian's package zookeeper")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="jobsync_async-zookeeper-") as name:
        folder = Path(name)
        settings = {
            "dataDir": folder / "data",
            "clientPort": port,
            "clientPortAddress": "127.0.0.1",
            "admin.enableServer": "false",  # it would take another port
        }
        (folder / "zoo.cfg").write_text(
            "".join(f"{key}={value}\n" for key, value in settings.items())
        )
        jars = f"{_ZOOKEEPER}:{_JARS / 'slf4j-nop.jar'}"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [java, "-cp", jars, _MAIN, "zoo.cfg"], cwd=folder, stdout=log, stderr=log
            )
        try:
            _wait_for_zookeeper(port, process, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            _end(process)


def _wait_for_zookeeper(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_SEC
    while not _serves(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LeftOut(f"ZooKeeper does not start: {log.read_text('utf-8', 'replace')[-300:]}")
        time.sleep(0.05)


def _serves(port: int) -> bool:
    """Whether it answers the one question that it answers to anybody."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"srvr")
            return connection.recv(100).startswith(b"Zookeeper version")
    except OSError:
        return False


def _install(package: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "-y", package]):
        subprocess.run(
            command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )


@contextmanager
def kafka(side: Side, partitions: int) -> Iterator[str]:
    """The Kafka-compatible broker, with a topic of so many partitions in memory; its address."""
    port = _free_port()
    process = subprocess.Popen(
        side.command("broker", port),
        env=side.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{port}"
    try:
        subprocess.run(side.command("topic", address, partitions), env=side.environment, check=True)
        yield address
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
