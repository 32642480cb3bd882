"""A server on a copy of another one's data folder, as a storage snapshot makes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from jobsync_async.embedded import EmbeddedPostgres


class Clone(EmbeddedPostgres):
    """A clone of `source`, which must be down while it is made. Its password is the source's."""

    def __init__(self, source: EmbeddedPostgres) -> None:
        super().__init__()
        self._source = source
        self._password = source._password

    def _init(self) -> None:
        data = self._there() / "data"
        shutil.copytree(
            self._source._there() / "data", data, ignore=shutil.ignore_patterns("postmaster.pid")
        )
        data.chmod(0o700)
        for path in (data, *data.rglob("*")) if self._as_user else ():
            self._own(path)

    def _own(self, path: Path) -> None:
        os.chown(path, self._as_user["user"], self._as_user["group"])
