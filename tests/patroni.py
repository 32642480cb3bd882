"""A cluster of three nodes under Patroni, with etcd and HAProxy, and what can happen to it.

What the documents show is what runs: `docs/patroni.md` has the files, and only addresses, folders
and what the machine lacks are put in here. Needs Debian's packages patroni, etcd-server and
haproxy, or others with the same programs; `JOBSYNC_TEST_PATRONI` names another `patroni` to run.
Everything runs as an ordinary user, and ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import yaml
from psycopg.conninfo import make_conninfo
from typing_extensions import Self

from jobsync_async.embedded import _free_port, _unprivileged
from tests.documents.blocks import ROOT, blocks_of
from tests.faults import warden
from tests.faults.member import clock
from tests.faults.wires import NETWORK, Namespace, Wire

PAGE = ROOT / "docs" / "patroni.md"
SAFE_SINCE = (3, 0, 3)
"""Before, Patroni writes the leader's key over whatever stands there, if it uses etcd by its third
interface."""
NODES = ("db1", "db2", "db3")
_HASTE = {"fsync": "off", "shared_buffers": "32MB", "max_connections": "200"}
_PASSWORD = "secret-1"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def patroni() -> str | None:
    """The program to run."""
    return os.environ.get("JOBSYNC_TEST_PATRONI") or _program("patroni")


@functools.cache
def version() -> tuple[int, ...]:
    """Of Patroni."""
    told = subprocess.run([str(patroni()), "--version"], capture_output=True, text=True, check=True)
    return tuple(int(part) for part in re.findall(r"\d+", told.stdout))


def etcd_interface() -> str:
    """Which one Patroni is to use: the section of its settings. `JOBSYNC_TEST_PATRONI_ETCD` names
    another than the page says for this version."""
    safe = "etcd3" if version() >= SAFE_SINCE else "etcd"
    return os.environ.get("JOBSYNC_TEST_PATRONI_ETCD", safe)


def _server() -> Path | None:
    """The binaries of the newest PostgreSQL that the system has."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pg_rewind")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


@functools.cache
def why_not() -> str | None:
    """What a cluster lacks here; None when nothing."""
    if sys.platform != "linux":
        return "processes are kept together by means that only Linux has"
    needed = {"etcd-server": _program("etcd"), "patroni": patroni(), "haproxy": _program("haproxy")}
    needed["postgresql"] = str(_server() or "")
    missing = " ".join(package for package, found in needed.items() if not found)
    return f"not installed: {missing} (apt-get install {missing})" if missing else None


class Program:
    """A program and everything that it starts, in one folder of its own, in one network.

    Args:
        network: the namespace to live in; None for the network of the test.
    """

    def __init__(self, name: str, folder: Path, network: Namespace | None = None) -> None:
        self.name = name
        self.folder = folder / name
        self.network = network
        self.command: list[str] = []
        self._warden: subprocess.Popen[bytes] | None = None
        self.folder.mkdir(mode=0o700)
        self._user = _unprivileged()
        self.owned(self.folder)

    def owned(self, path: Path) -> Path:
        """Let the program's user have the file."""
        if self._user:
            os.chown(path, self._user["user"], self._user["group"])
        return path

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        return self.owned(path)

    def start(self) -> None:
        who = (self._user.get("user", -1), self._user.get("group", -1))
        line = [sys.executable, "-I", "-S", warden.__file__, *map(str, who), *self.command]
        with ExitStack() as stack:
            if self.network is not None:
                stack.enter_context(self.network.inside())
            log = stack.enter_context((self.folder / "log").open("ab"))
            self._warden = subprocess.Popen(
                line, cwd=self.folder, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def end(self) -> None:
        """End all of it, and wait until it has ended."""
        running, self._warden = self._warden, None
        if running is not None:
            assert running.stdin is not None
            running.stdin.close()
            running.wait(20)

    @property
    def pids(self) -> list[int]:
        """All its processes, the program's own first."""
        return [] if self._warden is None else warden.below(self._warden.pid)

    def kill(self) -> None:
        """SIGKILL to everything, as when the machine fails."""
        while pids := self.pids:
            warden.send(pids, signal.SIGKILL)
            time.sleep(0.005)
        self.end()

    def freeze(self) -> None:
        """SIGSTOP to everything, as when the machine hangs."""
        frozen: list[int] = []
        while (pids := self.pids) != frozen:
            warden.send(pids, signal.SIGSTOP)
            frozen = pids

    def freeze_itself(self) -> None:
        """SIGSTOP to the program alone, and nothing that it has started."""
        warden.send(self.pids[:1], signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT to everything."""
        warden.send(self.pids, signal.SIGCONT)

    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")


class Watchdog:
    """Resets a node whose Patroni has not said for long that it lives: a named pipe, which Patroni
    takes for the device."""

    def __init__(self, node: Node) -> None:
        self.path = node.folder / "watchdog"
        self.fired_at: float | None = None
        os.mkfifo(self.path)
        node.owned(self.path)
        self._node = node
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pipe = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        timeout_sec, armed = 60, False
        while True:
            wait = timeout_sec if armed else None
            readable, _, _ = select.select([self._stop_read, pipe], [], [], wait)
            if self._stop_read in readable:
                break
            if readable:
                said = os.read(pipe, 1000)
                if timeouts := re.findall(rb"Ctimeout=(\d+)", said):
                    timeout_sec = int(timeouts[-1])
                armed = not said.endswith(b"V")
            else:
                armed, self.fired_at = False, clock()
                self._node.kill()
        os.close(pipe)

    def close(self) -> None:
        os.write(self._stop_write, b"!")
        self._thread.join(30)
        os.close(self._stop_read)
        os.close(self._stop_write)


class Node(Program):
    """One node: PostgreSQL under Patroni."""

    def __init__(
        self, name: str, folder: Path, address: str, network: Namespace | None = None
    ) -> None:
        super().__init__(name, folder, network)
        self.address = address
        self.port, self.rest_port = _free_port(), _free_port()
        self.watchdog: Watchdog | None = None

    def configure(self, etcd: str, dynamic: dict[str, Any], *, watchdog: bool) -> None:
        """Write the settings of the page, with this machine's places in them.

        Args:
            etcd: its address.
            dynamic: what differs in the dynamic part.
            watchdog: whether there is one, as the page asks for.
        """
        text = block("patroni.yml")
        if self.network is not None:  # nodes are neighbours there, and no net is the same
            text = text.replace("samenet", NETWORK)
        settings = yaml.safe_load(text)
        del settings["etcd3"]
        settings["name"] = self.name
        settings[etcd_interface()] = {"hosts": [etcd]}
        rest, place = (f"{self.address}:{port}" for port in (self.rest_port, self.port))
        settings["restapi"].update(listen=rest, connect_address=rest)
        settings["bootstrap"]["dcs"].update(dynamic)
        settings["bootstrap"]["dcs"]["postgresql"]["parameters"].update(_HASTE)
        settings["postgresql"].update(
            listen=place,
            connect_address=place,
            data_dir=str(self.folder / "data"),
            bin_dir=str(_server()),
            pgpass=str(self.folder / "pgpass"),
            parameters={"unix_socket_directories": str(self.folder)},
        )
        if watchdog:
            self.watchdog = Watchdog(self)
            settings["watchdog"].update(device=str(self.watchdog.path), driver="testing")
        else:
            settings["watchdog"] = {"mode": "off"}
        program = patroni()
        assert program is not None
        self.command = [program, str(self.write("patroni.yml", yaml.safe_dump(settings)))]

    @property
    def dsn(self) -> str:
        """The way to this node, whatever it is."""
        return make_conninfo(
            "", host=self.address, port=self.port, user="postgres", password=_PASSWORD,
            dbname="postgres", connect_timeout=2,
        )  # fmt: skip

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        """What Patroni answers; None when it does not, or says no."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://{self.address}:{self.rest_port}/{path}"
        request = urllib.request.Request(url, data, method=method)
        request.add_header("Content-Type", "application/json")
        patience_sec = 2 if body is None else 60
        try:
            with urllib.request.urlopen(request, timeout=patience_sec) as answer:
                told = answer.read().decode()
        except OSError:
            return None
        with suppress(ValueError):
            return json.loads(told)
        return told

    def leads(self) -> bool:
        """Whether Patroni says that this is the primary."""
        return self.ask("primary") is not None

    def timeline(self) -> int | None:
        return timeline(self.dsn)


def timeline(dsn: str) -> int | None:
    """On which timeline the server is, when it takes writes; None when it does not, or does not
    answer."""
    with suppress(psycopg.Error), psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
            row = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
            assert row is not None
            return int(row[0][:8], 16)
    return None


def block(title: str) -> str:
    """A file that the page shows."""
    (found,) = [block.text for block in blocks_of(PAGE) if block.title == title]
    return found


class PatroniCluster:
    """Three nodes, etcd, and HAProxy before them. Use it as a context manager.

    Args:
        settings: of Patroni's dynamic configuration, over those of the page.
        watchdog: let a watchdog reset a node whose Patroni hangs, as the page has it.
        hub: a namespace for etcd and HAProxy; each node then lives in one of its own, by a wire.

    Attributes:
        wires: each node's wire to the others, if they have any.
    """

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        *,
        watchdog: bool = False,
        hub: Namespace | None = None,
    ) -> None:
        self.settings = {"synchronous_mode": True, **(settings or {})}
        self.nodes: dict[str, Node] = {}
        self.wires: dict[str, Wire] = {}
        self._watchdog = watchdog
        self._hub = hub
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _build(self, stack: ExitStack) -> None:
        # Short: a socket's path has at most a hundred characters.
        folder = Path(tempfile.mkdtemp(prefix="patroni-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        etcd_address = "127.0.0.1"
        for name in NODES:
            address, network = "127.0.0.1", None
            if self._hub is not None:
                network = stack.enter_context(Namespace())
                wire = self.wires[name] = stack.enter_context(Wire(network, self._hub))
                network.ip("route", "add", "default", "via", wire.far_address)
                address, etcd_address = wire.near_address, wire.far_address
            self.nodes[name] = Node(name, folder, address, network)
        if self._hub is not None:
            with self._hub.inside():
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1", "ascii")
        etcd = f"{etcd_address}:{_free_port()}"
        self.etcd = self._etcd(folder, etcd)
        self.haproxy = self._haproxy(folder)
        for node in self.nodes.values():
            node.configure(etcd, self.settings, watchdog=self._watchdog)
            if node.watchdog is not None:
                stack.callback(node.watchdog.close)
        for program in (self.etcd, *self.nodes.values(), self.haproxy):
            stack.callback(program.end)
            program.start()
        with self.near():
            self.settle(90)

    def _etcd(self, folder: Path, place: str) -> Program:
        etcd = Program("etcd", folder, self._hub)
        peers = f"http://127.0.0.1:{_free_port()}"
        options = {
            "data-dir": "data",
            "listen-client-urls": f"http://{place}",
            "advertise-client-urls": f"http://{place}",
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
            "enable-v2": "true",
            "unsafe-no-fsync": "true",
        }
        program = _program("etcd")
        assert program is not None
        etcd.command = [program, *(f"--{name}={value}" for name, value in options.items())]
        return etcd

    def _haproxy(self, folder: Path) -> Program:
        haproxy, self._port = Program("haproxy", folder, self._hub), _free_port()
        text = block("haproxy.cfg").replace("*:5000", f"127.0.0.1:{self._port}")
        for node in self.nodes.values():
            shown = f"server {node.name} {node.name}:5432 check port 8008"
            assert shown in text
            here = f"{node.address}:{node.port} check port {node.rest_port}"
            text = text.replace(shown, f"server {node.name} {here}")
        program = _program("haproxy")
        assert program is not None
        haproxy.command = [program, "-db", "-f", str(haproxy.write("haproxy.cfg", text))]
        return haproxy

    # -- ways to it --------------------------------------------------------------------------------

    @property
    def dsn(self) -> str:
        """All nodes by name, of which the one is taken that takes writes."""
        nodes = self.nodes.values()
        return make_conninfo(
            self.through_haproxy,
            host=",".join(node.address for node in nodes),
            port=",".join(str(node.port) for node in nodes),
            target_session_attrs="read-write",
            load_balance_hosts="random",
        )

    @property
    def through_haproxy(self) -> str:
        return make_conninfo(
            "", host="127.0.0.1", port=self._port, user="postgres", password=_PASSWORD,
            dbname="postgres", connect_timeout=2,
        )  # fmt: skip

    @property
    def network(self) -> str | None:
        """Where workers are to live: a namespace's path, if not where the test does."""
        return None if self._hub is None else self._hub.path

    # -- what it is like ---------------------------------------------------------------------------

    def primary(self) -> Node:
        """The one that leads, which there must be."""
        (node,) = [node for node in self.nodes.values() if node.leads()]
        return node

    def settle(self, seconds: float = 60) -> None:
        """Wait until one leads, two follow it on its timeline, and the mode is as it is to be."""
        until(self.settled, seconds, lambda: f"the cluster is whole:\n{self.describe()}")

    def settled(self) -> bool:
        told = [node.ask("cluster") for node in self.nodes.values()]
        if any(one is None for one in told):
            return False
        members = told[0]["members"]
        leaders = [m for m in members if m["role"] in ("leader", "primary", "master")]
        if len(members) != 3 or len(leaders) != 1:
            return False
        followers = [m for m in members if m not in leaders]
        timeline = leaders[0].get("timeline")
        sync = [m for m in followers if m["role"] in ("sync_standby", "quorum_standby")]
        return (
            all(m["state"] in ("running", "streaming") for m in members)
            and all(m.get("timeline") == timeline and m.get("lag") == 0 for m in followers)
            and bool(sync) == bool(self.settings["synchronous_mode"])
            and self.nodes[leaders[0]["name"]].leads()
            and self._haproxy_leads_to(timeline)
        )

    def _haproxy_leads_to(self, expected: int) -> bool:
        return timeline(self.through_haproxy) == expected

    @contextmanager
    def near(self) -> Iterator[None]:
        """In the network of HAProxy and etcd."""
        with contextlib.nullcontext() if self._hub is None else self._hub.inside():
            yield

    def describe(self) -> str:
        lines = []
        for program in (self.etcd, self.haproxy, *self.nodes.values()):
            lines += [f"-- {program.name}", *program.log().splitlines()[-15:]]
        return "\n".join(lines)

    # -- what is done to it ------------------------------------------------------------------------

    def configure(self, **settings: Any) -> None:
        """Change the dynamic configuration."""
        self.settings.update(settings)
        assert self.primary().ask("config", settings, "PATCH") is not None
        self.settle()

    def switchover(self, to: str | None = None) -> None:
        """Let another node lead; returns when Patroni says that it is done."""
        before = self.primary()
        wanted = {"leader": before.name, **({"candidate": to} if to else {})}
        assert before.ask("switchover", wanted, "POST") is not None, self.describe()


def until(condition: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what()}"
        time.sleep(0.1)
