"""Making a mutant and running its tests: a copy of the project in which one place is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_COPIED = (
    "jobsync_async",
    "pytest_jobsync_async.py",
    "tests",
    "docs",
    "examples",
    "benchmarks",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
)
_LIMIT_SEC = 400
_UNCHANGED_LIMIT_SEC = 1800  # for the tests of all mutants together
_RED = 1  # pytest's exit status when tests failed; others say that it could not run them


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: what the changed code does, in a few words.
        file: where, below ``jobsync_async``.
        old, new: the text that is replaced, which stands there once, and what it becomes.
        tests: pytest's arguments that choose the tests which must go red.
        quick: whether it belongs to the part that each run of CI tries.
        redundant: why no test can notice it, where that is so; the same reason stands beside the
            line.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    quick: bool = False
    redundant: str | None = None


@dataclass(frozen=True)
class Verdict:
    """How it went: ``"killed"``, ``"survived"``, ``"stale"`` (the text is not there, or not once)
    or ``"broken"``."""

    what: str
    seconds: float
    told: str


class Workshop:
    """A copy of the project, in which one mutant after the other is made. Its tests run on the
    server that `dsn` names."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self._folder = folder
        self._dsn = dsn
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)

    def passes(self, tests: Collection[str]) -> Verdict:
        """Run tests on the code as it is, in two processes: what is red here proves nothing of a
        mutant."""
        started = time.monotonic()
        status, output = self._run(("-n", "2", "--dist", "loadfile", *tests), _UNCHANGED_LIMIT_SEC)
        return Verdict(
            "green" if status == 0 else "broken", time.monotonic() - started, output[-2000:]
        )

    def judge(self, mutant: Mutant, tests: tuple[str, ...] = ()) -> Verdict:
        """Make the mutant, run its tests, and undo it. `tests`, if given, are run instead of its
        own."""
        path = self._folder / "jobsync_async" / mutant.file
        text = path.read_text("utf-8")
        if text.count(mutant.old) != 1:
            return Verdict("stale", 0, f"{mutant.file} has its text {text.count(mutant.old)} times")
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        started = time.monotonic()
        try:
            status, output = self._run(tests or mutant.tests)
        finally:
            path.write_text(text, "utf-8")
        seconds = time.monotonic() - started
        if status == _RED:
            failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return Verdict(
                "killed", seconds, failed[0] if failed else "a test ran into its time limit"
            )
        if status == 0:
            return Verdict("survived", seconds, "every test stayed green")
        return Verdict("broken", seconds, output[-2000:])

    def _run(self, tests: tuple[str, ...], limit_sec: float = _LIMIT_SEC) -> tuple[int, str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "--timeout=60",
            "-p",
            "no:cacheprovider",
            *tests,
        ]
        env = {
            **os.environ,
            "JOBSYNC_TEST_DSN": self._dsn,
            "PYTHONPATH": str(self._folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit_sec)
        except subprocess.TimeoutExpired:  # a mutant may wait for ever: that is a failure, too
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            return _RED, f"{output}\nnot over after {limit_sec:g} s"
        return process.returncode, output
