"""``jobsync-async`` and ``python -m jobsync_async``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what is missing to run it."""
    try:
        from jobsync_async.cli import app  # noqa: PLC0415 - an optional dependency
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write("the command line needs an extra: pip install 'jobsync-async[cli]'\n")
        sys.exit(2)
    app(prog_name="jobsync-async")


if __name__ == "__main__":
    main()
