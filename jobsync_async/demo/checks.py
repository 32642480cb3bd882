"""What the demo promises, looked up in the database afterwards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from psycopg import AsyncConnection

from jobsync_async.demo import tables
from jobsync_async.demo.tables import Tables


@dataclass(frozen=True)
class KeptPromise:
    """One promise, and what was found."""

    promise: str
    kept: bool
    found: str


async def check(
    connection: AsyncConnection[Any], own: Tables, folder: str, total: int
) -> list[KeptPromise]:
    """All of them. The files are read once more, here."""

    async def number(statement: str) -> int:
        row = await (await connection.execute(own.fill(statement))).fetchone()
        assert row is not None, "a count has a row"
        return int(row[0])

    row = await (await connection.execute(own.fill(tables.COMPLETIONS))).fetchone()
    assert row is not None, "a count has a row"
    completions, distinct = row
    missing = await number(tables.NOT_COMPLETED)
    overlaps = await number(tables.OVERLAPS)
    repeated = await number(tables.REPEATED)
    results = await (await connection.execute(own.fill(tables.RESULTS))).fetchall()
    wrong = await to_thread.run_sync(_wrong, folder, results)
    return [
        KeptPromise(
            "every file completed exactly once",
            completions == distinct == total and missing == 0,
            f"{completions:,} completions of {distinct:,} files, {missing:,} missing",
        ),
        KeptPromise(
            "no file worked on by two workers at once",
            overlaps == 0,
            f"{overlaps:,} overlaps; {repeated:,} cut short by the kill and done again",
        ),
        KeptPromise(
            "every checksum is right",
            wrong == 0 and len(results) == total,
            f"{wrong:,} wrong of {len(results):,}",
        ),
    ]


def _wrong(folder: str, results: list[tuple[str, str | None]]) -> int:
    """How many checksums are not those of the files."""
    return sum(
        hashlib.sha256(Path(folder, path).read_bytes()).hexdigest() != digest
        for path, digest in results
    )
