"""One process of `start.py`: a worker, or a program that does no more than load psycopg, connect as
often, wait for as many answers, and write the rows of all tokens. It says when it has its first
token, or its last answer."""

from __future__ import annotations

import sys


def ours(appname: str) -> None:
    """The first worker of a cluster whose tables are there."""
    import asyncio

    from jobsync_async import CoordinationConfig, Job

    async def main() -> None:
        async with Job("worker", CoordinationConfig(appname=appname)) as job:
            while not job.my_tokens:  # noqa: ASYNC110 - at the next turn, or there already
                await asyncio.sleep(0)
            print("there", flush=True)
            sys.stdin.read()

    asyncio.run(main())


def least(connections: str, statements: str) -> None:
    """The same answers, one after the other, and the same columns of as many rows."""
    import psycopg

    held = [psycopg.connect("", autocommit=True) for _ in range(int(connections))]
    for _ in range(int(statements)):
        held[0].execute("SELECT 1").fetchall()
    held[0].execute(
        "UPDATE start_least SET node = 'worker', incarnation = %s, epoch = epoch + 1, "
        "next_node = NULL, version = version + 1, assigned_at = now(), revoked_at = NULL",
        ["00000000-0000-0000-0000-000000000001"],
    )
    print("there", flush=True)


if __name__ == "__main__":
    {"ours": ours, "least": least}[sys.argv[1]](*sys.argv[2:])
