"""What lets the tests take less time, and changes nothing in them.

* Hundreds of databases and dozens of servers are made. On a disk, that is mostly the making of
  files; in memory it takes a tenth. So temporary files are kept in memory, where there is room.
* Hundreds of programs are started. Where ``PYTHONDONTWRITEBYTECODE`` is set, each compiles all that
  it imports. So they share a folder for what is compiled.

Both are told by the environment, which every process of the tests inherits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30


def go_fast() -> Callable[[], None]:
    """Do so from now on; returns what deletes the files in the end."""
    in_memory = "TMPDIR" not in os.environ and _has_room()
    folder = tempfile.mkdtemp(prefix="jobsync_async-tests-", dir=_IN_MEMORY if in_memory else None)
    os.chmod(folder, 0o711)  # a server that root starts runs as somebody else
    if in_memory:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(folder, "compiled")))
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def _has_room() -> bool:
    try:
        about = os.statvfs(_IN_MEMORY)
    except (AttributeError, OSError):  # no such system, or no such folder
        return False
    room = about.f_bavail * about.f_frsize
    # The server's programs are copied there, if its user cannot reach them where they are.
    return room >= _ROOM and not about.f_flag & os.ST_NOEXEC and os.access(_IN_MEMORY, os.W_OK)
