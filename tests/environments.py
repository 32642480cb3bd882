"""Runs the tests against the built wheel, in environments of their own, as a user would have installed it.

    uv run python -m tests.environments 3.10 3.12 3.13 lowest -- tests/unit

Each name is a version of Python, or `lowest`: the oldest versions of everything that the project says it works with, on the
oldest Python. What follows `--` goes to pytest. Nothing of this repository's package is where the tests run: they are copied.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OLDEST = "3.10"
NEEDED = ("tests", "examples", "docs", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml")
LIMIT_SEC = 1200


def direct_requirements() -> list[str]:
    """Everything that the package and its extras ask for, by name, so that a resolver takes it as asked for directly."""
    found = []
    for requirement in map(Requirement, requires("jobsync-async") or ()):
        marker = str(requirement.marker or "")
        if requirement.name == "jobsync-async" or "platform_system" in marker:
            continue
        if "extra ==" not in marker:
            found.append(str(requirement))
        else:  # the marker names the extra, which is wanted here
            found.append(f"{requirement.name}{_extras(requirement)}{requirement.specifier}")
    return found


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def try_in(name: str, wheel: Path, folder: Path, arguments: list[str]) -> bool:
    """Make one environment, run the tests in it, and say whether they passed."""
    lowest = name == "lowest"
    python = folder / "venv" / "bin" / "python"
    source = folder / "source"
    source.mkdir()
    for needed in NEEDED:
        copy = shutil.copytree if (ROOT / needed).is_dir() else shutil.copy
        copy(ROOT / needed, source / needed)
    _run("uv", "venv", "--quiet", "--python", OLDEST if lowest else name, str(folder / "venv"))
    asked = ["--resolution", "lowest-direct", *direct_requirements()] if lowest else []
    package = f"jobsync-async[demo,testing] @ {wheel.as_uri()}"
    _run("uv", "pip", "install", "--quiet", "--python", str(python), package, "--group", f"{ROOT}/pyproject.toml:dev", *asked)
    where = "import jobsync_async, sys; print(sys.version.split()[0], jobsync_async.__file__)"
    print(f"== {name}:", _run(str(python), "-c", where, cwd=source).strip(), flush=True)
    started = time.monotonic()
    done = subprocess.run([python, "-m", "pytest", "-q", *arguments], cwd=source, check=False, timeout=LIMIT_SEC)
    print(f"== {name}: {'passed' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
    return done.returncode == 0


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SEC)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} … failed")
    return done.stdout


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="3.10, 3.11, …, or lowest")
    own, _, arguments = " ".join(sys.argv[1:]).partition(" -- ")
    names = parser.parse_args(own.split()).names
    with tempfile.TemporaryDirectory(prefix="jobsync_async-") as name:
        folder = Path(name)
        _run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder))
        (wheel,) = folder.glob("*.whl")
        failed = []
        for environment in names:
            (folder / environment).mkdir()
            if not try_in(environment, wheel, folder / environment, arguments.split()):
                failed.append(environment)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
