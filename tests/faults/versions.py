"""Workers of an earlier version of the library, from the repository's history."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST = "c4ca864"
"""The commit that is 0.1.0."""


def checked_out(commit: str, folder: Path) -> str | None:
    """Put the library and its tests into a folder as they were at a commit; None, or why that
    cannot be had."""
    archive = ["git", "-C", str(ROOT), "archive", commit, "jobsync_async", "tests"]
    try:
        done = subprocess.run(archive, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return "git is not installed"
    if done.returncode != 0:
        return (
            f"the repository's history does not reach back to {commit}: "
            f"{done.stderr.decode().strip()}"
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return None


def tables_of(folder: Path) -> str:
    """The SQL that makes the tables as the version in a folder does."""
    program = (
        "from jobsync_async import CoordinationConfig\n"
        "from jobsync_async.postgres.schema import creation_script\n"
        "print(creation_script(CoordinationConfig()))"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    ).stdout
