"""The command line, as docs/command-line.md describes it. Exit status 0, 1 (what was asked is not
so) or 2 (usage)."""

from jobsync_async.cli import (  # noqa: F401 - each adds its commands to the app
    batch,
    bound,
    certify,
    demo,
    doctor,
    drain,
    evict,
    history,
    init,
    locks,
    owners,
    pause,
    plan,
    prune,
    release,
    status,
    watch,
    web,
)
from jobsync_async.cli.app import app

__all__ = ["app"]
