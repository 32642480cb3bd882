"""Programs of another Debian release than this machine's, run from a folder: nothing is
installed.

apt fetches them with all that they need, from the archive that this machine uses and with its
keys. They run with the C library that came with them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd")
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_RUN = """#!/bin/sh
exec {loader} --library-path {libraries} --argv0 "$0" "{program}" "$@"
"""


class NotHere(Exception):
    """This machine has no Debian archive, or none that has the package."""


def archive() -> str:
    """Where this machine takes Debian from."""
    for path in _sources():
        for line in path.read_text("utf-8", "replace").splitlines():
            found = re.match(r"(?:deb\b.*?|URIs:)\s*(\S+://\S*/debian)/?(?:\s|$)", line)
            if found and not line.startswith("#"):
                return found[1]
    raise NotHere("this machine takes nothing from a Debian archive")


def _sources() -> Iterator[Path]:
    folder = Path("/etc/apt")
    yield from sorted(folder.glob("sources.list.d/debian*"))
    yield from filter(Path.exists, [folder / "sources.list"])


def unpack(suite: str, folder: Path, *packages: str) -> Path:
    """Fetch packages of a release (such as ``trixie``, ``sid``) with what they need, and unpack
    all of it; the root of what is there. A package may be named with another release, as in
    ``libpq5/experimental``."""
    if shutil.which("apt-get") is None or not KEYS.exists():
        raise NotHere("this is no Debian")
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    suites = {suite, *(one.partition("/")[2] for one in packages if "/" in one)}
    (state / "sources").write_text(
        "".join(f"deb [signed-by={KEYS}] {archive()} {one} main\n" for one in sorted(suites))
    )
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Dir::Etc::sourcelist": state / "sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    switches = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    apt = ["apt-get", "-qq", "-y", *switches]
    _run([*apt, "update"])
    _run([*apt, "--no-install-recommends", "--download-only", "install", *packages])
    root = folder / "root"
    for archived in sorted((state / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--fsys-tarfile", str(archived)], into=root)
    shutil.rmtree(state)
    return root


def runnable(root: Path, *programs: str) -> None:
    """Let programs run with the C library beside which they were unpacked. They keep their places,
    by which some find their files."""
    for name in programs:
        program = root / name
        real = program.with_name(f"{program.name}.real")
        program.rename(real)
        libraries = ":".join(str(root / library) for library in LIBRARIES)
        program.write_text(
            _RUN.format(loader=root / LOADER, libraries=libraries, program=real), "utf-8"
        )
        program.chmod(0o755)


def version(package: str, root: Path) -> str:
    """Of a package that was unpacked."""
    (found,) = (root / "usr/share/doc" / package).glob("changelog.Debian.gz")
    return _run(["zcat", str(found)]).split("(", 1)[1].split(")", 1)[0]


def _run(command: list[str], into: Path | None = None) -> str:
    if into is not None:
        into.mkdir(exist_ok=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as packed:
            subprocess.run(
                ["tar", "-x", "--no-same-owner", "-C", into], stdin=packed.stdout, check=True
            )
        return ""
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        raise NotHere(f"{' '.join(command[:1])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
