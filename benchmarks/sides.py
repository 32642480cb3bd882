"""The two that are compared, each in an environment of its own: programs that do the same work and print what it took."""

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

PEER = "jobsync==1.3.14"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        python: its interpreter. program: what it runs, with what is to be measured as the first argument.
    """

    python: str
    program: Path
    environment: dict[str, str]

    def command(self, what: str, *arguments: object) -> list[str]:
        return [self.python, str(self.program), what, *map(str, arguments)]

    def measure(self, dsn: str, what: str, *arguments: object, name: str = "benchmark") -> Any:
        """Run the program to its end; what it printed, parsed."""
        environment = {**self.environment, **server(dsn), "PGAPPNAME": name}
        done = subprocess.run(
            self.command(what, *arguments), env=environment, cwd=_HERE.parent, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.program.name} {what} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def server(dsn: str) -> dict[str, str]:
    """Where the server is, as libpq's environment: neither command lines nor errors show the password then."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {names[key]: str(value) for key, value in conninfo_to_dict(dsn).items() if key in names}


def both(folder: Path) -> tuple[Side, Side]:
    """Ours, and the peer's, whose environment is made in `folder` unless it is there already."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # As installed: compiled once, so that compiling does not count as memory.
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    ours = {**environment, "PYTHONPATH": str(_HERE.parent)}
    theirs = folder / "peer"
    python = theirs / "bin" / "python"
    if not (theirs / "complete").exists():
        venv.create(theirs, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", PEER], env=environment, check=True)
        (theirs / "complete").touch()
    return Side(sys.executable, _HERE / "side_ours.py", ours), Side(str(python), _HERE / "side_theirs.py", environment)


def interleaved(rounds: int, sides: Sequence[Side], dsn: str, what: str, *arguments: object) -> list[list[Any]]:
    """Each side measured in turn, `rounds` times over; the answers by side. Each round has an `appname` of its own."""
    answers: list[list[Any]] = [[] for _ in sides]
    for number in range(rounds):
        for index, side in enumerate(sides):
            appname = f"{what[:8]}{'_'.join(map(str, arguments))}_{number}_{'ot'[index]}_".lower()
            answers[index].append(side.measure(dsn, what, appname, *arguments))
    return answers
