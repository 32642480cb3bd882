"""Hosts on one machine: network namespaces, and between two of them a wire that does what it is
told.

Unlike with `proxy.py`, packets are really lost here: TCP sends them again, gives up, and knows
nothing of the other end. The wire is made of two TUN devices and a thread of the test's process
that takes each IP packet from the one to the other, or does not. That needs root, `ip` and
/dev/net/tun, but neither a firewall's tools nor the kernel's netem, which many lack.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import heapq
import itertools
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from psycopg.conninfo import make_conninfo
from typing_extensions import Self

from jobsync_async.embedded import EmbeddedPostgres
from tests.faults.proxy import Direction

_CLONE_NEWNET = 0x4000_0000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000
_PACKET = 65_536
_PULLED_SEC = 0.3
_NETWORK = "10.213"  # these hosts see no other network, so none is in the way
NETWORK = f"{_NETWORK}.0.0/16"
_numbers = itertools.count()


@functools.cache
def why_not() -> str | None:
    """What stands against namespaces and wires here; None when nothing does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian's package iproute2)"
    try:
        with Namespace() as one, Namespace() as other, Wire(one, other):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or error
        return f"network namespaces and TUN devices cannot be made here: {str(told).strip()}"


def enter(namespace: str | int) -> None:
    """Let the calling thread, and what it starts, live in the network namespace that this path or
    descriptor stands for."""
    if isinstance(namespace, int):
        _call("setns", namespace, _CLONE_NEWNET)
        return
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        _call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


def _call(function: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


class Namespace:
    """A network that nobody else is in, with only a loopback device. Use it as a context manager.

    It has no name that could stay behind: the kernel ends it with the last process that lives in it
    or holds it open.
    """

    def __enter__(self) -> Self:
        self._descriptor = -1
        with _stay_here():
            _call("unshare", _CLONE_NEWNET)
            self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @property
    def path(self) -> str:
        """Where other processes find it, to `enter` it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What the calling thread connects to, listens on and starts in the block is in this
        network."""
        with _stay_here():
            enter(self._descriptor)
            yield

    def ip(self, *arguments: str) -> None:
        """Run `ip` in it."""
        with self.inside():
            subprocess.run(
                ["ip", *arguments], capture_output=True, text=True, check=True, timeout=20
            )


@contextmanager
def _stay_here() -> Iterator[None]:
    """Bring the calling thread back to the network in which it is."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        enter(here)
        os.close(here)


class ServerOnAWire(EmbeddedPostgres):
    """A server in a namespace of its own. Workers reach it by wires; its `dsn` is a socket in the
    file system, which leads there from everywhere and is no matter of networks."""

    def __init__(self, host: Namespace, sockets: Path) -> None:
        super().__init__({"listen_addresses": "*", "unix_socket_directories": str(sockets)})
        self._host = host
        self._sockets = sockets
        sockets.chmod(0o777)  # the server may run as somebody else

    @property
    def dsn(self) -> str:
        return make_conninfo(super().dsn, host=str(self._sockets))

    def start(self) -> None:
        with self._host.inside():
            super().start()

    def _init(self) -> None:
        super()._init()
        with (self._there() / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK} scram-sha-256\n")


class Wire:
    """Joins two namespaces, as hosts of a network of two. Use it as a context manager; thread-safe.

    ``up`` is from the near host to the far one, ``down`` the way back.

    Attributes:
        near_address, far_address: the hosts' addresses on the wire.
        lost: how many packets were.
    """

    def __init__(self, near: Namespace, far: Namespace) -> None:
        number = next(_numbers)
        network = f"{_NETWORK}.{number // 64 % 256}"
        self.near_address, self.far_address = (
            f"{network}.{number % 64 * 4 + host}" for host in (1, 2)
        )
        self._device = f"wire{number}"
        self._hosts = (near, far)
        self._open: dict[Direction, bool] = {"up": True, "down": True}
        self._delay_sec = 0.0
        self.lost = 0
        self._descriptors: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._wake_read, self._wake_write = os.pipe()
        try:
            for host, address in zip(
                self._hosts, (self.near_address, self.far_address), strict=True
            ):
                with host.inside():
                    self._descriptors.append(_tun(self._device))
                host.ip("address", "add", f"{address}/30", "dev", self._device)
                host.ip("link", "set", self._device, "up")
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.write(self._wake_write, b"!")
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._wake_read, self._wake_write, *self._descriptors):
            os.close(descriptor)

    # -- what the network does ---------------------------------------------------------------------

    def cut(self, *directions: Direction) -> None:
        """Lose every packet in the directions (default both), and say nothing."""
        for direction in directions or ("up", "down"):
            self._open[direction] = False

    def restore(self) -> None:
        """Lose none any more."""
        self._open = {"up": True, "down": True}

    def delay(self, seconds: float) -> None:
        """Let every packet take so long from now on, each way."""
        self._delay_sec = seconds

    def reset(self) -> None:
        """Pull the wire out of the near host and put it back: meanwhile it cannot send, and is told
        so at once."""
        self._hosts[0].ip("link", "set", self._device, "down")
        time.sleep(_PULLED_SEC)
        self._hosts[0].ip("link", "set", self._device, "up")

    # -- inside ------------------------------------------------------------------------------------

    def _run(self) -> None:
        near, far = self._descriptors
        ways: dict[int, tuple[Direction, int]] = {near: ("up", far), far: ("down", near)}
        on_the_way: list[tuple[float, int, int, bytes]] = []
        order = itertools.count()
        while True:
            wait = None if not on_the_way else max(0.0, on_the_way[0][0] - time.monotonic())
            readable, _, _ = select.select([self._wake_read, near, far], [], [], wait)
            if self._wake_read in readable:
                return
            for source in readable:
                direction, target = ways[source]
                with suppress(OSError):  # unplugged
                    packet = os.read(source, _PACKET)
                    if self._open[direction]:
                        heapq.heappush(
                            on_the_way,
                            (time.monotonic() + self._delay_sec, next(order), target, packet),
                        )
                    else:
                        self.lost += 1
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(on_the_way)
                with suppress(OSError):  # unplugged, or its queue is full: lost, as on any network
                    os.write(target, packet)


def _tun(name: str) -> int:
    """A descriptor that reads what is sent out of a new device, and writes what is received there.
    Closed, both are gone."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(
            descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
