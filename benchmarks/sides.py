"""The sides that are compared, each in an environment of its own: programs that do the same work
and print what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

_HERE = Path(__file__).parent


class LeftOut(Exception):
    """A case cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Side:
    """One of them.

    Attributes:
        python: its interpreter. program: what it runs, with what is to be measured as the first
            argument.
    """

    python: str
    program: Path
    environment: dict[str, str]

    def command(self, what: str, *arguments: object) -> list[str]:
        return [self.python, str(self.program), what, *map(str, arguments)]

    def measure(self, dsn: str, what: str, *arguments: object, name: str = "benchmark") -> Any:
        """Run the program to its end; what it printed, parsed."""
        return json.loads(self.run(dsn, what, *arguments, name=name).splitlines()[-1])

    def run(self, dsn: str, what: str, *arguments: object, name: str = "benchmark") -> str:
        """Run the program to its end; what it printed."""
        environment = {**self.environment, **server(dsn), "PGAPPNAME": name}
        done = subprocess.run(
            self.command(what, *arguments),
            env=environment,
            cwd=_HERE.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.program.name} {what} failed:\n{done.stderr[-2000:]}")
        return done.stdout


def server(dsn: str) -> dict[str, str]:
    """Where the server is, as libpq's environment: neither command lines nor errors show the
    password then."""
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    return {names[key]: str(value) for key, value in conninfo_to_dict(dsn).items() if key in names}


def ours() -> Side:
    """This library, in the environment of whoever measures."""
    return Side(
        sys.executable, _HERE / "side_ours.py", {**_environment(), "PYTHONPATH": str(_HERE.parent)}
    )


def peer(name: str, *packages: str) -> Side:
    """``side_NAME.py`` in an environment with these packages, which is made unless it is there
    already.

    Raises:
        LeftOut: they cannot be installed.
    """
    environment = _environment()
    folder = _cache() / f"peer-{name}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists() or complete.read_text() != " ".join(packages):
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *packages],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise LeftOut(f"pip cannot install {' '.join(packages)}: {last[0]}")
        complete.write_text(" ".join(packages))
    return Side(str(python), _HERE / f"side_{name}.py", environment)


def both() -> tuple[Side, Side]:
    """Ours and jobsync."""
    return ours(), peer("jobsync", "jobsync==1.3.14")


def _environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # As installed: compiled once, so that compiling does not count as memory.
    environment["PYTHONPYCACHEPREFIX"] = str(_cache() / "compiled")
    return environment


def _cache() -> Path:
    """Where the peers' environments are kept from one run to the next."""
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "jobsync_async-benchmarks"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def interleaved(
    rounds: int, sides: Sequence[Side], dsn: str, what: str, *arguments: object
) -> list[list[Any]]:
    """Each side measured in turn, `rounds` times over; the answers by side. Each round has an
    `appname` of its own."""
    answers: list[list[Any]] = [[] for _ in sides]
    for number in range(rounds):
        for index, side in enumerate(sides):
            appname = f"{what[:8]}{'_'.join(map(str, arguments))}_{number}_{'ot'[index]}_".lower()
            answers[index].append(side.measure(dsn, what, appname, *arguments))
    return answers
