"""The command line: ``jobsync-async demo | init | status``. Exit status 0, 1 (what was asked is not so), 2 (usage)."""

from jobsync_async.cli import demo, init, status  # noqa: F401 - each adds its command to the app
from jobsync_async.cli.app import app

__all__ = ["app"]
